# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""Token histories to states of the trie without the host: what ``csrc/src/history.cc`` reads, on the device."""

from __future__ import annotations

import torch

from gentrie.kernels import reference
from gentrie.kernels._operations import groups, or_torch
from gentrie.kernels._trie import (
    END_TOKEN,
    FINISHED,
    FREE_TEXT,
    OFF_TRIE,
    ONE_TOKEN,
    advance,
    checked,
    count_at,
    descriptor_row,
    has_allowed,
    is_leaf,
    leaves_below,
    remaining_of,
    run_position,
    run_token_index,
    token_at,
)
from gentrie.kernels._triton import power_of_two, tl, triton

_SCHEMA = (
    "(Tensor history, Tensor? lengths, Tensor? starts, int begin_token_id, Tensor eos_token_ids, Tensor descriptors, "
    "Tensor? trie_index, Tensor? filters, Tensor? filter_index) -> Tensor"
)


@triton.jit
def _is_one_of(tokens, ids, num_ids, IDS: tl.constexpr):
    """Which of a block of tokens stand in a short list."""
    lane = tl.arange(0, IDS)
    listed = tl.load(ids + lane, mask=lane < num_ids, other=0)
    same = (tokens[:, None] == listed[None, :]) & (lane < num_ids)[None, :]
    return tl.max(same.to(tl.int32), 1) > 0


@triton.jit
def walked(
    trie,
    allow,
    ids,
    token_stride,
    end,
    start,
    begin_token,
    eos,
    num_eos,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    EOS: tl.constexpr,
):
    """The state that one history stands at; see :func:`trie_walk`.

    ids: its tokens, of which the first ``end`` count; start: where the response begins, None: behind the last
    begin_token
    eos: int64 [num_eos], EOS its length rounded up
    BLOCK: tokens read at once when a control token is looked for; LANES: edges or run tokens compared at once
    """
    block = tl.arange(0, BLOCK).to(tl.int64)
    lane = tl.arange(0, LANES).to(tl.int64)

    at = tl.zeros([], tl.int64)
    state = tl.full([], FREE_TEXT, tl.int64)
    if start is not None:
        state = tl.where((start >= 0) & (start <= end), 0, OFF_TRIE).to(tl.int64)
        at = tl.minimum(tl.maximum(start, 0), end)
    else:  # behind the last control token, if that is the begin token: from the end, a block at a time
        high = end
        found = tl.full([], -1, tl.int64)
        while (high > 0) & (found < 0):
            place = high - BLOCK + block
            token = tl.load(ids + place * token_stride, mask=place >= 0, other=0)
            is_control = (place >= 0) & ((token == begin_token) | _is_one_of(token, eos, num_eos, EOS))
            found = tl.max(tl.where(is_control, place, -1), 0)
            high -= BLOCK
        last = tl.load(ids + found * token_stride, mask=found >= 0, other=0)
        state = tl.where((found >= 0) & (last == begin_token), 0, FREE_TEXT).to(tl.int64)
        at = found + 1
    state = checked(trie, state)

    eos_lane = tl.arange(0, EOS)
    eos_ids = tl.load(eos + eos_lane, mask=eos_lane < num_eos, other=-1)
    ends_item = tl.max(((eos_ids == count_at(trie, END_TOKEN)) & (eos_lane < num_eos)).to(tl.int32), 0)
    closes_itself = (num_eos == 0) | (ends_item > 0)  # a complete response has ended, whatever comes
    while at < end:
        matched = tl.zeros([], tl.int64)
        if (state >= 0) & (remaining_of(state) > 0):  # as much of the forced run as there is
            count = tl.minimum(tl.minimum(remaining_of(state), end - at), LANES)
            live = lane < count
            token = tl.load(ids + (at + lane) * token_stride, mask=live, other=0)
            index = run_token_index(trie, run_position(trie, state, True) + lane, live)
            matched = tl.min(tl.where(live & (token_at(trie, index, live) != token), lane, count), 0)
            state -= matched * ONE_TOKEN
            at += matched
        if matched == 0:
            if start is None:
                if (state < 0) | is_leaf(trie, state):
                    at = end
                else:
                    state = advance(trie, state, tl.load(ids + at * token_stride), LANES)
                    at += 1
            elif state == OFF_TRIE:  # nothing but an end of sequence matters any more
                place = at + block
                token = tl.load(ids + place * token_stride, mask=place < end, other=0)
                has_ended = tl.max(((place < end) & _is_one_of(token, eos, num_eos, EOS)).to(tl.int32), 0) > 0
                state = tl.where(has_ended, FINISHED, state).to(tl.int64)
                at = tl.where(has_ended, end, at + BLOCK)
            elif is_leaf(trie, state) & closes_itself:
                at = end
            else:
                token = tl.load(ids + at * token_stride)
                is_eos = tl.max(((eos_ids == token) & (eos_lane < num_eos)).to(tl.int32), 0) > 0
                first, last = leaves_below(trie, state, state >= 0)
                is_over = is_leaf(trie, state) | (has_allowed(allow, first, last, state >= 0) == 0)
                if is_eos & is_over:
                    state = tl.where(is_leaf(trie, state), state, FINISHED).to(tl.int64)
                    at = end
                else:
                    state = advance(trie, state, token, LANES)
                    at += 1
    if start is None:
        state = tl.where(is_leaf(trie, state), FREE_TEXT, state).to(tl.int64)
    return state


@triton.jit
def trie_walk_kernel(
    history,
    history_stride,
    token_stride,
    max_length,
    lengths,
    starts,
    starts_stride,
    begin_token,
    eos,
    num_eos,
    descriptors,
    num_tries,
    trie_index,
    filters,
    num_filters,
    filter_index,
    states,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
    EOS: tl.constexpr,
):
    """One row a program.

    history: int64 [rows, max_length], strides in elements; lengths: int64 [rows] or None
    starts: int64, where the response begins, one a row or one for all (stride 0); None: behind the last begin_token
    states: int64 [rows], out
    The others as in :func:`walked`.
    """
    row = tl.program_id(0).to(tl.int64)
    trie = descriptor_row(descriptors, trie_index, row, num_tries)
    allow = tl.zeros([], tl.int64)
    if filters is not None:
        allow = descriptor_row(filters, filter_index, row, num_filters)
    end = tl.zeros([], tl.int64) + max_length
    if lengths is not None:
        end = tl.minimum(tl.maximum(tl.load(lengths + row), 0), end)
    start = None
    if starts is not None:
        start = tl.load(starts + row * starts_stride)
    ids = history + row * history_stride
    state = walked(trie, allow, ids, token_stride, end, start, begin_token, eos, num_eos, BLOCK, LANES, EOS)
    tl.store(states + row, state)


def launch_trie_walk(
    history: torch.Tensor,
    lengths: torch.Tensor | None,
    starts: torch.Tensor | None,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> torch.Tensor:
    """:func:`trie_walk` by the kernel."""
    rows, max_length = history.shape
    states = torch.empty(rows, dtype=torch.int64, device=history.device)
    if rows:
        trie_walk_kernel[(rows,)](
            history,
            history.stride(0),
            history.stride(1),
            max_length,
            lengths,
            starts,
            0 if starts is None or len(starts) == 1 else starts.stride(0),
            begin_token_id,
            eos_token_ids,
            len(eos_token_ids),
            descriptors,
            len(descriptors),
            trie_index,
            filters,
            0 if filters is None else len(filters),
            filter_index,
            states,
            BLOCK=512,
            LANES=128,
            EOS=power_of_two(len(eos_token_ids)),
            num_warps=4,
        )
    return states


def _trie_walk(
    history: torch.Tensor,
    lengths: torch.Tensor | None,
    starts: torch.Tensor | None,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> torch.Tensor:
    """States that histories stand at.

    Parameters
    ----------
    history
        int64 [B, T], any strides.
    lengths
        int64 [B], contiguous: tokens of each row that count, bounded to [0, T]; None: all.
    starts
        int64 [B] or [1]: each response is one item from there on. None: *triggered*, an item behind the row's last
        ``begin_token_id`` unless an end-of-sequence token follows that.
    begin_token_id
        Read where ``starts`` is None.
    eos_token_ids
        int64 [E].
    descriptors, trie_index
        int64 [N, WIDTH], and integers [B] that name a row of it for each history; None: row 0.
    filters, filter_index
        int64 [F, WIDTH], and integers [B]; a number outside [0, F) stands for no filter. Matters to end-of-sequence
        tokens alone, which may stand where a filter leaves nothing.

    Returns
    -------
    int64 [B]. A leaf where a response is complete; -1: off the trie (a start outside the history or a row without a
    trie too); -2: free text; -3: ended elsewhere than at an item's end.
    """
    states = torch.full((len(history),), reference.OFF_TRIE, dtype=torch.int64, device=history.device)
    if starts is None:
        states.copy_(reference.free_rows(history, lengths, begin_token_id, eos_token_ids))
    for group in groups(len(history), descriptors, trie_index, filters, filter_index):
        rows = group.rows
        states[rows] = reference.trie_walk(
            history[rows],
            None if lengths is None else lengths[rows],
            starts if starts is None or len(starts) == 1 else starts[rows],
            begin_token_id,
            eos_token_ids,
            group.lookups,
            group.allowed,
            group.end_token_id,
        )
    return states


trie_walk = torch.library.custom_op(
    "gentrie::trie_walk", _trie_walk, mutates_args=(), device_types="cpu", schema=_SCHEMA
)


@trie_walk.register_fake
def _(history, *arguments):
    return history.new_empty(history.shape[0], dtype=torch.int64)


trie_walk.register_kernel("cuda")(or_torch(launch_trie_walk, _trie_walk))
