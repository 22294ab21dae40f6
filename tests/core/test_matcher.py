"""TrieMatcher against what its rules mean by definition."""

from __future__ import annotations

import copy
import pickle

import hypothesis.strategies as st
import pytest
from histories import Case, cases, tokens_met
from hypothesis import given
from strategies import BEGIN, EOS, examples

from gentrie import TokenTrie, TrieMatcher

torch = pytest.importorskip("torch")


def drive(case: Case, data: st.DataObject, steps: int) -> tuple[TrieMatcher, list[int]]:
    """A matcher that accepted what it was offered, allowed tokens more often than not; and its history."""
    matcher, history = TrieMatcher(case.trie, **case.arguments), []
    for _ in range(steps):
        allowed = sorted(case.rules.allowed(history, case.catalog.vocab_size))
        token = data.draw(st.sampled_from(allowed) if allowed and data.draw(st.integers(0, 4)) else anything(case))
        assert_accepts(case, matcher, history, token)
    return matcher, history


def anything(case: Case) -> st.SearchStrategy[int]:
    return st.integers(0, case.catalog.vocab_size - 1) | st.sampled_from([BEGIN, EOS])


def may_follow(case: Case, history: list[int], token: int) -> bool:
    return token in case.rules.allowed(history, case.catalog.vocab_size)


def assert_accepts(case: Case, matcher: TrieMatcher, history: list[int], token: int) -> None:
    expected = may_follow(case, history, token)
    assert matcher.accept_token(token) is expected, (history, token)
    if expected:
        history.append(token)


def assert_stands_at(case: Case, matcher: TrieMatcher, history: list[int]) -> None:
    vocab_size = case.catalog.vocab_size
    allowed = case.rules.allowed(history, vocab_size)
    assert matcher.get_allowed_tokens().tolist() == sorted(allowed), history
    mask = torch.full((2, (vocab_size + 31) // 32), 7, dtype=torch.int32)
    forbids = matcher.fill_next_token_bitmask(mask, 1)
    bits = [t for t in range(vocab_size) if int(mask[1, t // 32]) >> (t % 32) & 1]
    assert bits == sorted(allowed)
    assert forbids is (len(allowed) < vocab_size)
    assert mask[0].eq(7).all()
    place, _, _ = case.rules.read(history)
    ended_turn = case.is_triggered and bool(history) and history[-1] in case.rules.eos
    assert matcher.is_terminated() is (place == "finished" or ended_turn)
    assert matcher.num_accepted == len(history)


@given(cases(), st.data())
@examples(120)
def test_accepts_what_may_follow(case: Case, data: st.DataObject):
    matcher, history = drive(case, data, data.draw(st.integers(0, 14)))
    assert_stands_at(case, matcher, history)


@given(cases(), st.data())
@examples(80)
def test_rollback_fork_and_reset(case: Case, data: st.DataObject):
    matcher, history = drive(case, data, data.draw(st.integers(0, 14)))
    fork = matcher.fork()
    back = data.draw(st.integers(0, len(history)))
    matcher.rollback(back)
    shorter = history[: len(history) - back]
    assert_stands_at(case, matcher, shorter)
    for _ in range(4):
        assert_accepts(case, matcher, shorter, data.draw(anything(case)))
    assert_stands_at(case, matcher, shorter)
    assert_stands_at(case, fork, history)
    fork.reset()
    assert_stands_at(case, fork, [])


@given(cases(), st.data())
@examples(80)
def test_several_tokens_at_once(case: Case, data: st.DataObject):
    matcher, history = drive(case, data, data.draw(st.integers(0, 6)))
    tokens = data.draw(tokens_met(case))
    accepted, ahead = 0, list(history)
    while accepted < len(tokens) and may_follow(case, ahead, tokens[accepted]):
        ahead.append(tokens[accepted])
        accepted += 1
    assert matcher.validate_tokens(tokens) == accepted
    assert_stands_at(case, matcher, history)
    assert matcher.accept_tokens(tokens) is (accepted == len(tokens))
    assert_stands_at(case, matcher, ahead if accepted == len(tokens) else history)


@given(cases(), st.data())
@examples(80)
def test_jump_forward_tokens_are_the_only_choices(case: Case, data: st.DataObject):
    matcher, history = drive(case, data, data.draw(st.integers(0, 14)))
    expected: list[int] = []
    while True:
        place, prefix, given_before = case.rules.read([*history, *expected])
        if place != "item" or not case.rules.left(prefix, given_before):
            break
        choices = case.rules.allowed([*history, *expected], case.catalog.vocab_size)
        if len(choices) != 1:
            break
        expected += choices
    assert matcher.find_jump_forward_tokens().tolist() == expected
    assert_stands_at(case, matcher, history)


def test_unique_closes_the_begin_token_and_a_turn_opens_it_again():
    trie = TokenTrie.from_sequences([[5], [6], [6]], vocab_size=10, end_token_id=4)
    matcher = TrieMatcher(trie, begin_token_id=BEGIN, eos_token_id=EOS, unique=True)
    assert matcher.accept_tokens([BEGIN, 5, 4, BEGIN, 6, 4])
    assert not matcher.accept_token(BEGIN)
    assert matcher.accept_tokens([9, EOS])
    assert matcher.is_terminated()
    assert matcher.accept_tokens([BEGIN, 5, 4])
    by_item = TrieMatcher(trie, begin_token_id=BEGIN, eos_token_id=EOS, unique="item")
    assert by_item.accept_tokens([BEGIN, 6, 4, BEGIN, 6, 4])
    assert not by_item.accept_tokens([BEGIN, 6])


WIDER = TokenTrie.from_sequences([[5, 6], [7]], vocab_size=64, end_token_id=4)


@pytest.mark.parametrize("vocab_size", [None, 96])
def test_free_text_uses_every_token_of_a_wider_model(vocab_size: int | None):
    """What the bitmask leaves open is accepted, and listed where the model's size is known."""
    matcher = TrieMatcher(WIDER, begin_token_id=BEGIN, eos_token_id=EOS, vocab_size=vocab_size)
    mask = torch.zeros(1, 3, dtype=torch.int32)
    assert not matcher.fill_next_token_bitmask(mask)
    assert mask.eq(-1).all()
    assert matcher.validate_tokens(range(2, 96)) == 94
    assert matcher.get_allowed_tokens().tolist() == list(range(vocab_size or 64))
    assert matcher.accept_token(70)
    assert matcher.accept_token(96) is (vocab_size is None)
    assert matcher.accept_tokens([BEGIN, 5])
    assert not matcher.accept_token(70)
    assert matcher.fill_next_token_bitmask(mask)
    assert mask.tolist() == [[1 << 6, 0, 0]]


def test_control_tokens_of_a_wider_model():
    arguments = {"begin_token_id": 80, "eos_token_id": 95, "unique": True}
    with pytest.raises(ValueError, match="begin_token_id=80"):
        TrieMatcher(WIDER, **arguments)
    with pytest.raises(ValueError, match="vocab_size=63 is less than the trie's, 64"):
        TrieMatcher(WIDER, vocab_size=63)
    matcher = TrieMatcher(WIDER, **arguments, vocab_size=96)
    assert matcher.accept_tokens([80, 5, 6, 4, 80, 7, 4])
    mask = torch.zeros(1, 3, dtype=torch.int32)
    assert matcher.fill_next_token_bitmask(mask)
    assert mask.tolist() == [[-1, -1, -1 ^ 1 << 16]]
    assert 80 not in matcher.get_allowed_tokens()
    assert not matcher.accept_token(80)
    with pytest.raises(ValueError, match="2 words a row, fewer than vocab_size=96"):
        matcher.fill_next_token_bitmask(mask[:, :2])
    assert matcher.accept_token(95)
    assert matcher.is_terminated()


def test_copies_are_forks_and_the_trie_stays():
    matcher = TrieMatcher(WIDER)
    for copied in (copy.copy(matcher), copy.deepcopy(matcher)):
        assert copied.accept_token(7)
    assert matcher.num_accepted == 0
    with pytest.raises(TypeError, match="make one in the other process"):
        pickle.dumps(matcher)
    with pytest.raises(AttributeError):
        matcher.trie = WIDER


@pytest.mark.parametrize(
    ("trie", "part"),
    [
        ("items.safetensors", r"trie is a str.*TokenTrie\.load\('items\.safetensors'\)"),
        ([[1, 2]], r"trie is a list.*from_sequences"),
        (None, "trie is a NoneType, expected a TokenTrie"),
    ],
)
def test_what_is_no_trie_is_refused(trie: object, part: str):
    with pytest.raises(TypeError, match=part):
        TrieMatcher(trie)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({"begin_token_id": 5}, ["begin_token_id=5", "catalog"]),
        ({"begin_token_id": 4}, ["begin_token_id=4", "end token"]),
        ({"begin_token_id": 10}, ["begin_token_id=10", "[0, 9]"]),
        ({"begin_token_id": BEGIN, "eos_token_id": 4}, ["eos_token_id=4", "end"]),
        ({"begin_token_id": BEGIN, "eos_token_id": BEGIN}, ["eos_token_id=0", "begin"]),
        ({"eos_token_id": [EOS, 6]}, ["eos_token_id=6", "catalog"]),
        ({"eos_token_id": [EOS, 10]}, ["eos_token_id[1]=10", "[0, 9]"]),
        ({"unique": "items"}, ["unique='items'"]),
        ({"item_filter": [[5]]}, ["item_filter", "shape (1, 1)"]),
        ({"item_filter": [True]}, ["item_filter", "1 entries", "item id 1"]),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], parts: list[str]):
    trie = TokenTrie.from_sequences([[5], [6]], vocab_size=10, end_token_id=4)
    with pytest.raises(ValueError) as error:
        TrieMatcher(trie, **arguments)
    assert all(part in str(error.value) for part in parts), error.value


def test_bad_calls_are_named():
    trie = TokenTrie.from_sequences([[5], [6]], vocab_size=40, end_token_id=4)
    matcher = TrieMatcher(trie)
    assert not matcher.accept_token(-1)
    assert not matcher.accept_token(2**40)
    with pytest.raises(ValueError, match="num_tokens=1"):
        matcher.rollback(1)
    with pytest.raises(ValueError, match="num_tokens=-1"):
        matcher.rollback(-1)
    with pytest.raises(TypeError, match="float64"):
        matcher.accept_tokens([5.0])
    with pytest.raises(ValueError, match="1 words"):
        matcher.fill_next_token_bitmask(torch.zeros(1, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match="index=3"):
        matcher.fill_next_token_bitmask(torch.zeros(1, 2, dtype=torch.int32), 3)
    with pytest.raises(TypeError, match=r"torch\.int64"):
        matcher.fill_next_token_bitmask(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="strides"):
        matcher.fill_next_token_bitmask(torch.zeros(2, 2, dtype=torch.int32).T)
