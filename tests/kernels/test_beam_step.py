"""beam_step: the kernels and the operation against continuations listed one by one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from device_cases import cases, filter_of, make_resident, poisoned, states_of, strided, with_closed
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceTrie
from gentrie.kernels import beam_step as module
from gentrie.kernels.beam_step import beam_step, launch_beam_step

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
Continuation = tuple[int, int, int]


class Row(NamedTuple):
    trie: TokenTrie
    item_filter: ItemFilter | None
    state: int
    score: float
    logits: torch.Tensor


def listed(rows: list[Row], over_vocab: bool, narrow: bool) -> dict[Continuation, float]:
    """Score of every ``(beam, token, next state)`` of one prompt, in float64."""
    found = {}
    for beam, (trie, item_filter, state, score, logits) in enumerate(rows):
        if state < 0 or score == -math.inf:
            continue
        tokens = (item_filter or trie).next_tokens_batch([state])[0]
        columns = np.searchsorted(trie.vocabulary, tokens) if narrow else tokens
        values = logits.double()
        whole = (values if over_vocab else values[columns]).logsumexp(0).item()
        for token, column in zip(tokens.tolist(), columns.tolist(), strict=True):
            total = score + values[column].item() - whole
            if total > -math.inf:
                found[beam, token, trie.advance(state, token)] = total
    return found


def check(results: Any, prompts: list[dict[Continuation, float]], beam_width: int) -> None:
    """Each is a continuation with its score, none is missing that is better, and they are in order."""
    best, parents, tokens, states = (result.cpu() for result in results)
    for prompt, found in enumerate(prompts):
        count = min(beam_width, len(found))
        names = list(zip(*(part[prompt, :count].tolist() for part in (parents, tokens, states)), strict=True))
        assert len(set(names)) == count
        want = sorted(found.values(), reverse=True)[:count]
        got = best[prompt, :count].double()
        tolerance = {"rtol": 2e-6, "atol": 2e-6}
        torch.testing.assert_close(got, torch.tensor([found[name] for name in names]).double(), **tolerance)
        torch.testing.assert_close(got, torch.tensor(want).double(), **tolerance)
        assert (got.diff() <= 0).all()
        assert best[prompt, count:].tolist() == [-math.inf] * (beam_width - count)
        for part in (parents, tokens, states):
            assert part[prompt, count:].tolist() == [-1] * (beam_width - count)


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in (torch.bfloat16, torch.float32))],
)
@examples(3)
@given(st.data())
def test_step_takes_the_best(device: str, dtype: torch.dtype, data: st.DataObject):
    case = data.draw(cases())
    item_filter = with_closed(data.draw, case.trie, filter_of(case))
    other = TokenTrie.from_sequences([[token, 5] for token in range(200)], vocab_size=200)
    pairs = [(case.trie, item_filter), (other, None)]
    resident = make_resident(pairs, device)
    num_prompts, num_beams = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5))
    beam_width = data.draw(st.sampled_from([1, 2, 5, 40]))
    over_vocab, given_normalizers = data.draw(st.booleans()), data.draw(st.booleans())
    chosen = [data.draw(st.sampled_from([0, 0, 1])) for _ in range(num_prompts * num_beams)]
    states = [data.draw(st.sampled_from([-2, -1, *states_of(pairs[i][0])])) for i in chosen]
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    scores = [data.draw(st.sampled_from([0.0, -1.5, -3.25, -math.inf])) for _ in chosen]
    values = torch.from_numpy(rng.normal(size=(len(chosen), 200 + data.draw(st.sampled_from([0, 57]))))).to(dtype)
    values[rng.random(values.shape) < data.draw(st.sampled_from([0, 0.5]))] = -torch.inf
    rows = [
        Row(*pairs[i], state, score, row) for i, state, score, row in zip(chosen, states, scores, values, strict=True)
    ]
    prompts = [
        listed(rows[start : start + num_beams], over_vocab, narrow=False) for start in range(0, len(rows), num_beams)
    ]
    known = values.double().logsumexp(1).float().to(device) if over_vocab and given_normalizers else None
    arguments = (
        strided(data.draw, values, float("nan")).to(device),
        torch.tensor(states, device=device),
        torch.tensor(scores, device=device),
        num_beams,
        beam_width,
        over_vocab,
        known,
        False,
        data.draw(st.sampled_from([0, 200])),
        resident.tries.descriptors,
        torch.tensor([resident.trie_rows[i] for i in chosen], device=device),
        resident.filters.descriptors,
        torch.tensor([resident.filter_rows[i] for i in chosen], device=device),
    )
    with pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans()):  # many tiles and rounds
            patch.setattr(module, "_MAX_TILE", 16)
            patch.setattr(module, "_MAX_KEYS", 64)
            patch.setattr(module, "_COLUMNS", 64)
        if data.draw(st.booleans()):  # few lists fit in one block
            patch.setattr(module, "_FEW_PER_WARP", 4)
        with poisoned():
            check(launch_beam_step(*arguments), prompts, beam_width)
    check(beam_step(*arguments), prompts, beam_width)


@pytest.mark.parametrize("scores", ["any", "equal", "in three values"])
def test_long_lists_of_many_beams(device: str, scores: str):
    """More than the kernel takes at once: it looks for candidates first, of which equal scores leave too many."""
    trie = TokenTrie.from_sequences(np.arange(3, 203)[:, None] * [1, 0] + [0, 2], vocab_size=203)
    resident, on_host = DeviceTrie(trie, device), DeviceTrie(trie, "cpu")
    logits = torch.randn(32, 203, generator=torch.Generator().manual_seed(0))
    alike = (logits[0].sign() * (logits[0].abs() > 1)).expand(32, 203)
    logits = {"any": logits, "equal": logits * 0, "in three values": alike}[scores]
    arguments = torch.zeros(32, dtype=torch.int64), logits.double().logsumexp(1).float(), 16, 40, True, None, False, 200
    on_device = [each.to(device) if isinstance(each, torch.Tensor) else each for each in arguments]
    results = launch_beam_step(logits.to(device), *on_device, resident.descriptors, None, None, None)
    expected = beam_step(logits, *arguments, on_host.descriptors, None, None, None)
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), theirs)


@pytest.mark.parametrize("num_children", [0, 1, 1_000, 100_000])
def test_rows_of_any_number_of_children(device: str, num_children: int):
    vocab_size = 131_072
    tokens = np.sort(np.random.default_rng(0).permutation(np.arange(4, vocab_size))[: max(num_children, 2)])
    trie = TokenTrie.from_sequences(tokens[:, None] * [1, 0] + [0, 7], vocab_size=vocab_size)
    state = 0 if num_children > 1 else trie.advance(0, int(tokens[0]))
    if num_children == 0:
        state = trie.advance(state, 7)
    resident = DeviceTrie(trie, device)
    logits = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0))
    columns = torch.from_numpy(trie.next_tokens(state)).long()
    results = launch_beam_step(
        logits.to(device),
        torch.tensor([state], device=device),
        torch.tensor([-0.5], device=device),
        1,
        10,
        False,
        None,
        False,
        trie.max_branching,
        resident.descriptors,
        None,
        None,
        None,
    )
    best = (logits[0, columns].double().log_softmax(0) - 0.5).topk(min(10, num_children))
    count = len(best.values)
    torch.testing.assert_close(results[0][0, :count].cpu().double(), best.values, rtol=1e-5, atol=1e-5)
    assert results[2][0, :count].tolist() == columns[best.indices].tolist()
    assert results[3][0, :count].tolist() == [trie.advance(state, token) for token in columns[best.indices].tolist()]
    assert results[2][0, count:].tolist() == [-1] * (10 - count)


def test_columns_of_the_catalog_alone(device: str):
    trie = TokenTrie.from_sequences([[5, 9], [5, 70], [33, 9], [8, 8]], vocab_size=100)
    resident = DeviceTrie(trie, device)
    states = [0, trie.advance(0, 5)]
    logits = torch.randn(2, len(trie.vocabulary), generator=torch.Generator().manual_seed(1))
    rows = [Row(trie, None, state, -1.0 * at, logits[at]) for at, state in enumerate(states)]
    arguments = (
        logits.to(device),
        torch.tensor(states, device=device),
        torch.tensor([0.0, -1.0], device=device),
        2,
        4,
        False,
        None,
        True,
        0,
        resident.descriptors,
        None,
        None,
        None,
    )
    expected = [listed(rows, over_vocab=False, narrow=True)]
    check(launch_beam_step(*arguments), expected, 4)
    check(beam_step(*arguments), expected, 4)
