"""TrieLogitsProcessor on histories, without a model, against what its rules mean by definition."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from histories import Case, cases, tokens_met
from hypothesis import given
from strategies import BEGIN, EOS, OUTSIDER, examples

from gentrie import TokenTrie, prefix_allowed_tokens_fn

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gentrie.generation import TrieLogitsProcessor  # noqa: E402
from gentrie.generation.logits_processor import mask_with_torch  # noqa: E402

INT_OF = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.contiguous().view(INT_OF[a.dtype]), b.contiguous().view(INT_OF[b.dtype]))


def expected_scores(scores: torch.Tensor, allowed: list[set[int]], vocab_size: int) -> torch.Tensor:
    """Scores where a token may follow, -inf elsewhere; a row that may go on with anything is left as it is."""
    masked = torch.full_like(scores, -torch.inf)
    for row, tokens in enumerate(allowed):
        columns = sorted(tokens)
        if len(tokens) >= vocab_size - 1:  # free text, perhaps without the begin token
            closed = sorted(set(range(vocab_size)) - tokens)
            masked[row] = scores[row]
            masked[row, closed] = -torch.inf
        else:
            masked[row, columns] = scores[row, columns]
    return masked


@st.composite
def batches(draw: st.DrawFn, case: Case) -> tuple[list[list[int]], list[int]]:
    """Histories of one length behind prompts, and how long each prompt is (0 when triggered)."""
    rows = draw(st.lists(tokens_met(case), min_size=1, max_size=5))
    width = max(map(len, rows)) + draw(st.integers(1, 3))
    return [[OUTSIDER] * (width - len(row)) + row for row in rows], [width - len(row) for row in rows]


@given(cases(needs_eos=True), st.data(), st.sampled_from(list(INT_OF)))
@examples(150)
def test_masks_by_definition(case: Case, data: st.DataObject, dtype: torch.dtype):
    rows, prompts = data.draw(batches(case))
    vocab_size, wider = case.catalog.vocab_size, data.draw(st.integers(0, 2))
    histories = rows if case.is_triggered else [row[prompt:] for row, prompt in zip(rows, prompts, strict=True)]
    allowed = [case.rules.allowed(history, vocab_size) for history in histories]
    places = [case.rules.read(history)[0] for history in histories]
    where: dict[str, Any] = {} if case.is_triggered else {"prompt_length": prompts}
    processor = TrieLogitsProcessor(case.trie, **case.arguments, **where)
    ids = torch.tensor(rows)
    scores = torch.randn(len(rows), vocab_size + wider).to(dtype)
    scores[:, OUTSIDER] = torch.nan
    scores[:, BEGIN] = -0.0
    if all(place == "dead" for place in places):
        with pytest.raises(ValueError, match=r"input_ids\[0\] has left the trie"):
            processor(ids, scores)
        return
    before, expected = scores.clone(), expected_scores(scores, allowed, vocab_size)
    masked = processor(ids, scores)
    assert same_bits(masked, expected)
    assert same_bits(scores, before)
    assert same_bits(processor(ids.int(), scores), expected)
    assert same_bits(processor(ids.T.contiguous().T, scores.T.contiguous().T), expected)
    found = processor._rules.allowed(ids)
    assert (found is None) is all(
        place == "free" and BEGIN in tokens for place, tokens in zip(places, allowed, strict=True)
    )
    if found is not None:
        assert same_bits(mask_with_torch(found, processor._rules.begin_token_id, scores), expected)

    hook = prefix_allowed_tokens_fn(case.trie, **case.arguments, **where)
    for row, tokens in enumerate(allowed):
        assert sorted(hook(row, ids[row])) == sorted(tokens)

    strict = TrieLogitsProcessor(case.trie, **case.arguments, **where, on_dead="error")
    emptied = [row for row, tokens in enumerate(allowed) if places[row] == "item" and tokens == case.rules.eos]
    if "dead" in places:
        with pytest.raises(ValueError, match=rf"input_ids\[{places.index('dead')}\] has left the trie"):
            strict(ids, scores)
    elif emptied:
        with pytest.raises(ValueError, match=rf"input_ids\[{emptied[0]}\].*leave nothing"):
            strict(ids, scores)
    closed = TrieLogitsProcessor(case.trie, **case.arguments, **where, on_dead="mask")(ids, scores)
    for row, place in enumerate(places):
        if place == "dead":
            assert closed[row].eq(-torch.inf).all()
        elif place != "item":
            assert same_bits(closed[row], expected[row])


@given(cases(needs_eos=True).filter(lambda case: not case.is_triggered), st.data())
@examples(60)
def test_response_behind_a_token_sequence(case: Case, data: st.DataObject):
    rows, prompts = data.draw(batches(case))
    marked = [[*row[:prompt], OUTSIDER, BEGIN, *row[prompt:]] for row, prompt in zip(rows, prompts, strict=True)]
    histories = [unpadded(case, row[prompt:], max(prompts) - prompt) for row, prompt in zip(rows, prompts, strict=True)]
    places = [case.rules.read(history)[0] for history in histories]
    # The last occurrence counts, and histories may hold one of their own.
    if any((OUTSIDER, BEGIN) in itertools.pairwise(history) for history in histories) or all(
        place == "dead" for place in places
    ):
        return
    processor = TrieLogitsProcessor(case.trie, **case.arguments, after=[OUTSIDER, BEGIN])
    scores = torch.randn(len(rows), case.catalog.vocab_size)
    allowed = [case.rules.allowed(history, case.catalog.vocab_size) for history in histories]
    for ids in (torch.tensor(marked), torch.tensor(marked).int()):
        assert same_bits(processor(ids, scores), expected_scores(scores, allowed, 10**9))


def unpadded(case: Case, history: list[int], width: int) -> list[int]:
    """A history without its first ``width`` tokens, if they are padding."""
    padding = set(history[:width])
    return history[width:] if len(padding) == 1 and not padding & set(case.rules.oracle.next_tokens(())) else history


def test_padding_on_the_right_is_passed_over():
    trie = TokenTrie.from_sequences([[40, 41], [42]], vocab_size=48, end_token_id=1)
    processor = TrieLogitsProcessor(trie, after=[30, 31])

    def allowed(*rows: list[int]) -> list[list[int]]:
        masked = processor(torch.tensor(rows), torch.zeros(len(rows), 48))
        return [row.isfinite().nonzero().flatten().tolist() for row in masked]

    for pad in (0, 1):  # of its own, or the end token
        assert allowed([20, 30, 31, pad, pad], [21, 22, 23, 30, 31]) == [[40, 42]] * 2
        assert allowed([20, 30, 31, pad, pad, 40], [21, 22, 23, 30, 31, 42]) == [[41], [1]]
        # Behind the widest prompt nothing is padding: that response has left the trie.
        assert allowed([20, 30, 31, pad, pad, pad], [21, 22, 23, 30, 31, 40]) == [[1], [41]]
    assert allowed([20, 30, 31, 0, 7], [21, 22, 23, 30, 31]) == [[1], [40, 42]]  # not one token over and over
    assert allowed([20, 30, 31, 40], [21, 22, 30, 31]) == [[41], [40, 42]]  # a prompt that begins an item


@pytest.mark.parametrize(
    ("after", "is_inside"),
    [
        ([7], True),  # a line break behind each title
        ([6], True),
        ([5, 6], True),
        ([6, 7], True),
        ([9, 9], True),  # in a run
        ([8, 8, 5], False),
        ([30, 5, 30, 5], True),  # only across the beginning: [30, 5, 30, 5], then 30, 5 of the item
        ([5, 30, 5], True),
        ([30, 7], False),
        ([7, 30], False),
        ([5, 7], True),
        ([1], False),  # the end token: what ends with it is over
        ([7, 1], False),
        ([6, 30, 6], False),
    ],
)
def test_a_sequence_that_also_stands_inside_items_is_refused(after: list[int], is_inside: bool):
    rows = [[5, 6, 7], [5, 8, 9, 9, 4, 7], [8, 5, 7], [30, 5, 7], [5, 8, 9, 3, 7]]
    trie = TokenTrie.from_sequences(rows, vocab_size=40, end_token_id=1)
    # By definition: written before an item, it is found at a later place too.
    texts = [[*after, *row] for row in rows]
    assert is_inside == any(
        text[at : at + len(after)] == after for text in texts for at in range(1, len(text) - len(after) + 1)
    )
    if is_inside:
        with pytest.raises(ValueError, match=r"after=\[.*\] also stands inside the catalog's sequences"):
            TrieLogitsProcessor(trie, after=after)
    else:
        TrieLogitsProcessor(trie, after=after)


@given(st.data())
def test_what_stands_inside_items_is_found(data: st.DataObject):
    tokens = st.lists(st.integers(2, 4), min_size=1, max_size=6)
    rows = data.draw(st.lists(tokens, min_size=1, max_size=5))
    after = data.draw(st.lists(st.integers(2, 5), min_size=1, max_size=4))
    trie = TokenTrie.from_sequences(rows, vocab_size=6, end_token_id=1)
    texts = [[*after, *row] for row in rows]
    is_inside = any(
        text[at : at + len(after)] == after for text in texts for at in range(1, len(text) - len(after) + 1)
    )
    with pytest.raises(ValueError, match="also stands inside") if is_inside else nullcontext():
        TrieLogitsProcessor(trie, after=after)


TRIE = TokenTrie.from_sequences([[5, 6], [5, 7], [8]], vocab_size=10, end_token_id=4)


def test_a_history_that_left_the_trie_stays_dead_until_a_begin_or_an_end_of_turn():
    processor = TrieLogitsProcessor(TRIE, begin_token_id=BEGIN, eos_token_id=EOS)
    rows = torch.tensor([[BEGIN, 9, 4, 4], [BEGIN, 9, EOS, 9], [9, BEGIN, 9, BEGIN], [BEGIN, 8, 4, 9]])
    masked = processor(rows, torch.zeros(4, 10))
    assert masked.isfinite().nonzero()[:, 0].bincount().tolist() == [1, 10, 2, 10]
    assert masked[0, EOS] == 0


def test_entries_serve_the_adjacent_rows_of_a_prompt():
    ids = torch.tensor([[9, 5], [9, 5], [5, 9], [8, 9]])
    processor = TrieLogitsProcessor(TRIE, prompt_length=[1, 2], item_filter=[[0], [2]])
    allowed = [row.isfinite().nonzero().flatten().tolist() for row in processor(ids, torch.zeros(4, 10))]
    assert allowed == [[6], [6], [8], [8]]
    with pytest.raises(ValueError, match="item_filter has 2 entries, input_ids has 3 rows"):
        processor(ids[:3], torch.zeros(3, 10))


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({}, ["begin_token_id", "prompt_length", "after"]),
        ({"begin_token_id": BEGIN, "prompt_length": 3}, ["begin_token_id and prompt_length"]),
        ({"begin_token_id": BEGIN}, ["eos_token_id"]),
        ({"begin_token_id": BEGIN, "eos_token_id": EOS, "on_dead": "ignore"}, ["on_dead='ignore'"]),
        ({"prompt_length": -1}, ["prompt_length[0]=-1"]),
        ({"after": []}, ["after"]),
        ({"after": [3, 10]}, ["after[1]=10", "vocab_size=10"]),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], parts: list[str]):
    with pytest.raises(ValueError) as error:
        TrieLogitsProcessor(TRIE, **arguments)
    assert all(part in str(error.value) for part in parts), error.value


@pytest.mark.parametrize(
    ("ids", "scores", "kind", "parts"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 10), TypeError, ["input_ids", "float32"]),
        (torch.zeros(2, 3).long(), torch.zeros(2, 10).long(), TypeError, ["scores", "int64"]),
        (torch.zeros(2, 3).long(), np.zeros((2, 10)), TypeError, ["scores", "ndarray"]),
        (torch.zeros(2, 3).long(), torch.zeros(2, 9), ValueError, ["9 columns", "vocab_size=10"]),
        (torch.zeros(2, 3).long(), torch.zeros(3, 10), ValueError, ["(2, 3)", "(3, 10)"]),
        (torch.zeros(3).long(), torch.zeros(3, 10), ValueError, ["(3,)"]),
        (torch.zeros(2, 3).long(), torch.zeros(2, 10, device="meta"), ValueError, ["cpu", "meta"]),
        (torch.zeros(2, 1).long(), torch.zeros(2, 10), ValueError, ["prompt_length=2", "row 0", "[0, 1]"]),
    ],
)
def test_bad_calls_are_named(ids: Any, scores: Any, kind: type[Exception], parts: list[str]):
    with pytest.raises(kind) as error:
        TrieLogitsProcessor(TRIE, prompt_length=2)(ids, scores)
    assert all(part in str(error.value) for part in parts), error.value


def test_tensors_without_memory_of_their_own_are_refused():
    processor = TrieLogitsProcessor(TRIE, prompt_length=0)
    ids = torch.zeros(1, 0).long()
    zeros = torch._efficientzerotensor((1, 10))
    if zeros.contiguous().data_ptr():  # what torch makes of them differs between releases
        assert processor(ids, zeros).isfinite().nonzero()[:, 1].tolist() == [5, 8]
    else:
        with pytest.raises(TypeError, match="scores is a Tensor without data in memory"):
            processor(ids, zeros)
    with torch._subclasses.FakeTensorMode(), pytest.raises(TypeError, match="is a FakeTensor without data in memory"):
        processor(torch.zeros(1, 1).long(), torch.zeros(1, 10))


def test_a_negated_view_is_read_as_its_values():
    scores = torch.view_as_complex(torch.arange(20.0).reshape(1, 10, 2)).conj().imag
    assert scores.is_neg()
    masked = TrieLogitsProcessor(TRIE, prompt_length=0)(torch.zeros(1, 0).long(), scores)
    assert masked[0, [5, 8]].tolist() == [-11, -17]


def test_a_models_end_token_inside_an_item_is_refused():
    for eos in ([4, 6], 6):
        with pytest.raises(ValueError, match="eos_token_id=6 is also a token of the catalog's sequences"):
            TrieLogitsProcessor(TRIE, prompt_length=0, eos_token_id=eos)


def test_a_row_without_the_sequence_it_begins_after_is_named():
    with pytest.raises(ValueError, match=r"input_ids\[1\].*after"):
        TrieLogitsProcessor(TRIE, after=[3, 3])(torch.tensor([[3, 3], [3, 2]]), torch.zeros(2, 10))


def test_a_complete_item_that_nothing_ends_is_an_error():
    trie = TokenTrie.from_sequences([[5, 6]], vocab_size=10)
    with pytest.raises(ValueError, match="eos_token_id"):
        TrieLogitsProcessor(trie, prompt_length=0)(torch.tensor([[5, 6]]), torch.zeros(1, 10))


def test_no_rows():
    assert TrieLogitsProcessor(TRIE, prompt_length=0)(torch.zeros(0, 4).long(), torch.zeros(0, 10)).shape == (0, 10)
