"""trie_constrain: the kernel and the operation against the processor's C++, and against a walk and a mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from device_cases import as_batch, cases, filter_of, make_resident, poisoned, spoil, strided, tokens_met, with_closed
from hypothesis import given
from hypothesis import strategies as st
from strategies import BEGIN, EOS, OTHER_EOS, OUTSIDER, examples

from gentrie import TokenTrie
from gentrie.device import DeviceTrie
from gentrie.kernels import trie_constrain as module
from gentrie.kernels.trie_constrain import launch_trie_constrain, trie_constrain
from gentrie.kernels.trie_mask import trie_mask
from gentrie.kernels.trie_walk import trie_walk

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def found_by(function: Any, arguments: tuple[Any, ...]) -> tuple[torch.Tensor, list[int]]:
    """Masked logits and faults."""
    logits = arguments[1].clone()
    faults, arrivals = torch.zeros(3, dtype=torch.int32, device=logits.device), torch.zeros(1, device=logits.device)
    arrivals = arrivals.long()
    masked = function(*arguments[:7], faults, arrivals, *arguments[7:])
    assert masked.is_contiguous()
    assert arrivals.item() == 0
    assert torch.equal(arguments[1].nan_to_num(1), logits.nan_to_num(1)), "the logits given were written to"
    return masked, faults.tolist()


def walked_and_masked(
    starts: torch.Tensor | None, filter_index: torch.Tensor, arguments: tuple[Any, ...]
) -> tuple[torch.Tensor, list[int]]:
    """The same by the two operations, with an entry a row in ``starts`` and ``filter_index``."""
    history, logits, _, _, begin, eos, dead_may_end, *tries = arguments
    states = trie_walk(history, None, starts, begin, eos, *tries[:3], filter_index)
    masked = logits.clone()
    trie_mask(masked, states, begin, eos, dead_may_end, *tries[:3], filter_index)
    is_closed = (masked.isneginf().all(1) & (states != -2)).any()
    numbers = torch.zeros_like(logits)
    trie_mask(numbers, states, begin, eos, False, *tries[:3], filter_index)
    is_item = (states >= 0) & ~torch.isin(numbers.argmax(1), eos)
    has_nan = (logits.isnan() & ~numbers.isneginf())[is_item].any()
    return masked, [int((states == -1).all()), int(is_closed), int(has_nan)]


@pytest.mark.parametrize("dtype", DTYPES)
@examples(4)
@given(st.data())
def test_constrains_as_a_walk_and_a_mask(device: str, dtype: torch.dtype, data: st.DataObject):
    case = data.draw(cases(needs_eos=True))
    item_filter = with_closed(data.draw, case.trie, filter_of(case))
    other = TokenTrie.from_sequences([[4, 5], [4, 4]], vocab_size=6)
    resident = make_resident([(case.trie, item_filter), (other, None)], device)
    groups, size = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 2))
    rows = [data.draw(tokens_met(case)) for _ in range(groups * size)]
    longest = max(map(len, rows)) + 1
    history = as_batch([[OUTSIDER] * (longest - len(row)) + row for row in rows], EOS, longest)
    starts, after = None, None
    how = "begin" if case.is_triggered else data.draw(st.sampled_from(["starts", "after"]))
    if how == "starts":
        starts = torch.tensor(data.draw(st.lists(st.integers(-1, longest + 1), min_size=groups, max_size=groups)))
    elif how == "after":
        after = torch.tensor(data.draw(st.sampled_from([[OUTSIDER], [OUTSIDER, rows[0][0] if rows[0] else EOS]])))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = torch.from_numpy(rng.normal(size=(len(rows), case.trie.vocab_size + 3))).to(dtype)
    spoil(values, rng, data.draw(st.sampled_from([0, 0.5, 1])))
    first, second = resident.trie_rows
    pairs = [(first, resident.filter_rows[0]), (first, -1), (second, -1), (-1, -1)]
    chosen = data.draw(st.lists(st.sampled_from(pairs), min_size=groups, max_size=groups))
    filter_index = torch.tensor([row for _, row in chosen])
    arguments = (
        strided(data.draw, history, 7).to(device),
        strided(data.draw, values, float("nan")).to(device),
        None if starts is None else starts.to(device),
        None if after is None else after.to(device),
        BEGIN if case.is_triggered else -1,
        torch.tensor(data.draw(st.sampled_from([[], [EOS], [EOS, OTHER_EOS]])), dtype=torch.int64, device=device),
        data.draw(st.booleans()),
        resident.tries.descriptors,
        torch.tensor([row for row, _ in chosen], device=device).repeat_interleave(size),
        resident.filters.descriptors,
        filter_index.to(device),
    )
    if after is not None:
        tries = {first: case.trie, second: other}
        own = [tries.get(row) for row, _ in chosen for _ in range(size)]
        starts = torch.tensor(starts_behind(history.tolist(), after.tolist(), own))
    elif starts is not None:
        starts = starts.repeat_interleave(size)
    expected = walked_and_masked(
        None if starts is None else starts.to(device), filter_index.repeat_interleave(size).to(device), arguments
    )
    with pytest.MonkeyPatch.context() as patch, poisoned():
        if data.draw(st.booleans()):  # several blocks of columns, in one program or in several
            patch.setattr(module, "_MAX_BLOCK", 16)
            patch.setattr(module, "_PROGRAMS", data.draw(st.sampled_from([1, 8])))
        masked, faults = found_by(launch_trie_constrain, arguments)
    torch.testing.assert_close(masked, expected[0], rtol=0, atol=0, equal_nan=True)
    assert faults == expected[1]
    masked, faults = found_by(trie_constrain, arguments)
    torch.testing.assert_close(masked, expected[0], rtol=0, atol=0, equal_nan=True)
    assert faults == expected[1]


def starts_behind(rows: list[list[int]], after: list[int], tries: list[TokenTrie | None]) -> list[int]:
    """The same for rows that may be padded on the right."""
    starts = [last_behind(row, after) for row in rows]
    widest = max(starts)
    is_padded = [
        0 <= start < widest
        and len(set(row[start:widest])) == 1
        and (trie is None or row[start] >= trie.vocab_size or trie.advance(0, row[start]) < 0)
        for row, start, trie in zip(rows, starts, tries, strict=True)
    ]
    return [widest if padded else start for start, padded in zip(starts, is_padded, strict=True)]


def last_behind(row: list[int], after: list[int]) -> int:
    """Where a response behind ``after`` begins; -1: nowhere."""
    width = len(after)
    return max((end for end in range(width, len(row) + 1) if row[end - width : end] == after), default=-1)


def test_padding_on_the_right_is_passed_over(device: str):
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10)
    resident = DeviceTrie(trie, device)
    eos, after = torch.tensor([EOS], device=device), torch.tensor([2, 3], device=device)
    rows = [[2, 3, 0, 0], [9, 9, 2, 3], [2, 3, 5, 6], [2, 3, 0, 9], [9, 2, 3, 0]]
    for tail, expected in (([], [[5, 7], [5, 7], [EOS], [EOS], [5, 7]]), ([0], [[EOS]] * 5)):
        history = torch.tensor([row + tail for row in rows], device=device)
        given = (
            history,
            torch.zeros(5, 10, device=device),
            None,
            after,
            -1,
            eos,
            True,
            resident.descriptors,
            *[None] * 3,
        )
        for function in (launch_trie_constrain, trie_constrain):
            masked, _ = found_by(function, given)
            assert [torch.nonzero(row == 0)[:, 0].tolist() for row in masked.cpu()] == expected


@pytest.mark.parametrize("length", [513, pytest.param(1600, marks=pytest.mark.slow)])
def test_histories_longer_than_a_block(device: str, length: int):
    """The response is looked for from the end, over borders of blocks."""
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10)
    resident = DeviceTrie(trie, device)
    eos = torch.tensor([EOS], device=device)
    places = torch.tensor([2, 3, 514, 515, length, length - 510, length - 511, length - 512]).clamp(2, length)
    history = torch.full((len(places), length), 9)
    history[:, ::2] = 4  # no padding, which is one token over and over
    history[torch.arange(len(places)), places - 1] = 3
    history[torch.arange(len(places)), places - 2] = 2
    logits = torch.zeros(len(places), 10, device=device)
    tries = resident.descriptors, None, None, None
    for after in ([3], [2, 3]):
        where = None, torch.tensor(after, device=device), -1
        masked, _ = found_by(launch_trie_constrain, (history.to(device), logits, *where, eos, True, *tries))
        allowed = [torch.nonzero(row == 0)[:, 0].tolist() for row in masked.cpu()]
        assert allowed == [[5, 7] if place == length else [EOS] for place in places.tolist()]


def test_no_rows(device: str):
    resident = DeviceTrie(TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10), device)
    nothing = torch.zeros(0, 3, dtype=torch.int64, device=device)
    eos = torch.tensor([EOS], device=device)
    given = nothing, torch.zeros(0, 10, device=device), eos, None, -1, eos, True, resident.descriptors, None, None, None
    for function in (launch_trie_constrain, trie_constrain):
        masked, faults = found_by(function, given)
        assert (tuple(masked.shape), faults) == ((0, 10), [0, 0, 0])
