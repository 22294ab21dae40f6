"""TrieLogitsProcessor on histories, without a model, against what its rules mean by definition."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from histories import Case, cases, tokens_met
from hypothesis import given
from strategies import BEGIN, EOS, OUTSIDER, examples

from gentrie import TokenTrie

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

    hook = case.trie.as_prefix_allowed_tokens_fn(**case.arguments, **where)
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
    histories = [row[prompt:] for row, prompt in zip(rows, prompts, strict=True)]
    places = [case.rules.read(history)[0] for history in histories]
    # The last occurrence counts, and histories may hold one of their own.
    if any((OUTSIDER, BEGIN) in itertools.pairwise(history) for history in histories) or all(
        place == "dead" for place in places
    ):
        return
    processor = TrieLogitsProcessor(case.trie, **case.arguments, after=[OUTSIDER, BEGIN])
    scores = torch.randn(len(rows), case.catalog.vocab_size)
    allowed = [case.rules.allowed(history, case.catalog.vocab_size) for history in histories]
    assert same_bits(processor(torch.tensor(marked), scores), expected_scores(scores, allowed, 10**9))


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


def test_a_row_without_the_sequence_it_begins_after_is_named():
    with pytest.raises(ValueError, match=r"input_ids\[1\].*after"):
        TrieLogitsProcessor(TRIE, after=[3, 3])(torch.tensor([[3, 3], [3, 2]]), torch.zeros(2, 10))


def test_a_complete_item_that_nothing_ends_is_an_error():
    trie = TokenTrie.from_sequences([[5, 6]], vocab_size=10)
    with pytest.raises(ValueError, match="eos_token_id"):
        TrieLogitsProcessor(trie, prompt_length=0)(torch.tensor([[5, 6]]), torch.zeros(1, 10))


def test_no_rows():
    assert TrieLogitsProcessor(TRIE, prompt_length=0)(torch.zeros(0, 4).long(), torch.zeros(0, 10)).shape == (0, 10)
