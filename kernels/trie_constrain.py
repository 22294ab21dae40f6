# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""Token histories and scores to masked scores in one launch: ``trie_walk`` and ``trie_mask`` of a step of ``generate``.

A step at a small batch costs what the host needs to launch it, so that the walk is not launched by itself: each program
walks its row's history, then writes its share of the row's columns. All programs of a row read the same history at the
same time, from the cache. A batch is cut into about ``_PROGRAMS`` programs whatever its size, as many as the GPU runs
at once: the walks take no longer than one does, and from that many rows on no history is read twice. That also holds
for long histories, which are read backwards to the last control token: a program that waits for a block of tokens takes
as long as all programs need to read one each (``_PROGRAMS`` * 4 KiB of the cache's several TB/s), so that walks in a
launch of their own would save little there and cost the launch elsewhere.

The scores are written to a new tensor, which ``generate`` wants anyway. As what is read does not change, each program
finds for itself whether all allowed tokens are forbidden by their scores, and repeated runs give equal bits.
"""

from __future__ import annotations

import torch

from gentrie.kernels import reference
from gentrie.kernels._operations import or_torch, register
from gentrie.kernels._trie import FREE_TEXT, OFF_TRIE, advance, checked, descriptor_row, gated
from gentrie.kernels._triton import ceil_div, power_of_two, tl, triton
from gentrie.kernels.trie_mask import allowed_columns, best_forbidden, is_used_up, mask_rows, may_follow, usable
from gentrie.kernels.trie_walk import _trie_walk, walked

_PROGRAMS = 1024
_MAX_BLOCK = 4096  # columns

_SCHEMA = (
    "(Tensor history, Tensor logits, Tensor? starts, Tensor? after, int begin_token_id, Tensor eos_token_ids, "
    "bool dead_may_end, Tensor(a!) faults, Tensor(b!) arrivals, Tensor descriptors, Tensor? trie_index, "
    "Tensor? filters, Tensor? filter_index) -> Tensor"
)


@triton.jit
def _behind_last(ids, token_stride, end, after, num_after, BLOCK: tl.constexpr):
    """One behind the last occurrence of ``after`` in the first ``end`` tokens; -1: there is none."""
    block = tl.arange(0, BLOCK).to(tl.int64)
    high = end
    found = tl.full([], -1, tl.int64)
    while (high >= num_after) & (found < 0):
        place = high - BLOCK + 1 + block
        live = place >= num_after
        same = live.to(tl.int32)
        offset = tl.zeros([], tl.int32)
        while offset < num_after:
            token = tl.load(ids + (place - num_after + offset) * token_stride, mask=live, other=0)
            same = same & (token == tl.load(after + offset)).to(tl.int32)
            offset += 1
        found = tl.max(tl.where(same > 0, place, -1), 0)
        high -= BLOCK
    return found


@triton.jit
def _behind_padding(
    trie,
    history,
    history_stride,
    ids,
    token_stride,
    num_rows,
    end,
    start,
    after,
    num_after,
    TOKENS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Where a response begins whose row has ``after`` before ``start``: where the widest prompt ends, if up to there
    stands one token over and over that no item begins with; otherwise at ``start``."""
    state = checked(trie, tl.zeros([], tl.int64))
    pad = tl.load(ids + start * token_stride, mask=(start >= 0) & (start < end), other=0)
    if (state >= 0) & (start >= 0) & (start < end):
        state = advance(trie, state, pad, LANES)
    last = start
    if (state < 0) & (start >= 0) & (start < end):
        row = tl.zeros([], tl.int64)
        while row < num_rows:
            behind = _behind_last(history + row * history_stride, token_stride, end, after, num_after, TOKENS)
            last = tl.maximum(last, behind)
            row += 1
    low = start
    is_padding = last > start
    while (low < last) & is_padding:
        place = low + tl.arange(0, TOKENS).to(tl.int64)
        token = tl.load(ids + place * token_stride, mask=place < last, other=0)
        is_padding = tl.max(((place < last) & (token != pad)).to(tl.int32), 0) == 0
        low += TOKENS
    return tl.where(is_padding, last, start)


@triton.jit
def _report(state, is_closed, num_rows, faults, arrivals):
    """One row's part in ``faults``. Rows that have arrived are counted in the low half of ``arrivals``, those off the
    trie in the high one; the last row to arrive sees both and leaves 0."""
    if is_closed:
        tl.store(faults + 1, 1)
    own = tl.where(state == OFF_TRIE, (1 << 32) + 1, 1).to(tl.int64)
    total = tl.atomic_add(arrivals, own) + own
    if (total & 0xFFFFFFFF) == num_rows:
        if (total >> 32) == num_rows:
            tl.store(faults, 1)
        tl.store(arrivals, tl.zeros([], tl.int64))


@triton.jit
def trie_constrain_kernel(
    history,
    history_stride,
    token_stride,
    max_length,
    starts,
    num_starts,
    after,
    num_after,
    begin_token,
    eos,
    num_eos,
    num_eos_dead,
    logits,
    row_stride,
    column_stride,
    width,
    highest,
    last_resort,
    masked,
    faults,
    arrivals,
    descriptors,
    num_tries,
    trie_index,
    filters,
    num_filters,
    filter_index,
    filter_rows,
    TOKENS: tl.constexpr,
    LANES: tl.constexpr,
    EOS: tl.constexpr,
    BLOCK: tl.constexpr,
    LISTED: tl.constexpr,
):
    """Programs [rows, parts]: each has a row and every parts-th block of its columns.

    history: int64 [rows, max_length]; logits: [rows, width]; strides in elements
    starts: int64 [num_starts], filter_index: [filter_rows]: of as many rows side by side each, or None
    after: int64 [num_after], behind which a response begins where starts is None; None: behind the last begin_token
    eos: int64 [num_eos], of which rows that may not go on take num_eos_dead, all or none
    masked: [rows, width], contiguous, out; faults: int32 [3]; arrivals: int64 [1], 0
    TOKENS, LANES and EOS as BLOCK, LANES and EOS of ``walked``; BLOCK and LISTED as BLOCK and LANES of ``trie_mask``
    """
    row = tl.program_id(0).to(tl.int64)
    num_rows = tl.num_programs(0)
    trie = descriptor_row(descriptors, trie_index, row, num_tries)
    allow = tl.zeros([], tl.int64)
    if filters is not None:
        allow = descriptor_row(filters, filter_index, row // (num_rows // filter_rows), num_filters)
    ids = history + row * history_stride
    end = tl.zeros([], tl.int64) + max_length
    start = None
    if starts is not None:
        start = tl.load(starts + row // (num_rows // num_starts))
    elif after is not None:
        start = _behind_last(ids, token_stride, end, after, num_after, TOKENS)
        start = _behind_padding(
            trie, history, history_stride, ids, token_stride, num_rows, end, start, after, num_after, TOKENS, LANES
        )
    state = walked(trie, allow, ids, token_stride, end, start, begin_token, eos, num_eos, TOKENS, LANES, EOS)

    is_free = state == FREE_TEXT
    closes_begin = is_free & (begin_token >= 0)
    if closes_begin:
        closes_begin = is_used_up(trie, allow)
    edge, is_item, count = may_follow(trie, allow, state, num_eos, num_eos_dead)
    if tl.program_id(1) == 0:
        _report(state, (is_free == 0) & (count == 0), num_rows, faults, arrivals)

    scores = logits + row * row_stride
    first = tl.program_id(1).to(tl.int64) * BLOCK
    while first < width:
        column = first + tl.arange(0, BLOCK)
        at = scores + column * column_stride
        to = masked + row * width + column
        minus_infinity = tl.full([BLOCK], float("-inf"), tl.float32)
        if is_free:
            is_closed = gated(column == begin_token, closes_begin)
            kept = (column < width) & (is_closed == 0)
            tl.store(to, tl.load(at, mask=kept, other=0), mask=kept)
            tl.store(to, minus_infinity, mask=(column < width) & is_closed)
        else:
            here, num_here = allowed_columns(trie, allow, state, edge, eos, is_item, count, first, BLOCK, LISTED)
            if num_here == 0:
                tl.store(to, minus_infinity, mask=column < width)
            else:
                tl.store(to, minus_infinity, mask=(column < width) & (here == 0))
                kept = (column < width) & (here != 0)
                is_forbidden, best = best_forbidden(
                    scores, column_stride, highest, trie, allow, state, edge, eos, is_item, count, LISTED
                )
                before = tl.load(at, mask=kept, other=0)
                score = before.to(tl.float32)
                fit = usable(score, is_forbidden, best, highest, last_resort)
                tl.store(to, tl.where(fit == score, before, fit), mask=kept)
                if is_item & (tl.max((score != score).to(tl.int32), 0) > 0):
                    tl.store(faults + 2, 1)
        first += tl.num_programs(1) * BLOCK


def launch_trie_constrain(
    history: torch.Tensor,
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    after: torch.Tensor | None,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    faults: torch.Tensor,
    arrivals: torch.Tensor,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> torch.Tensor:
    """:func:`trie_constrain` by the kernel."""
    rows, width = logits.shape
    masked = torch.empty((rows, width), dtype=logits.dtype, device=logits.device)
    if rows:
        num_eos = len(eos_token_ids)
        block = min(_MAX_BLOCK, power_of_two(width))
        trie_constrain_kernel[(rows, min(ceil_div(width, block), ceil_div(_PROGRAMS, rows)))](
            history,
            history.stride(0),
            history.stride(1),
            history.shape[1],
            starts,
            1 if starts is None else len(starts),
            after,
            0 if after is None else len(after),
            begin_token_id,
            eos_token_ids,
            num_eos,
            num_eos if dead_may_end else 0,
            logits,
            logits.stride(0),
            logits.stride(1),
            width,
            reference.HIGHEST[logits.dtype],
            reference.LAST_RESORT,
            masked,
            faults,
            arrivals,
            descriptors,
            len(descriptors),
            trie_index,
            filters,
            0 if filters is None else len(filters),
            filter_index,
            1 if filter_index is None else len(filter_index),
            TOKENS=512,
            LANES=128,
            EOS=power_of_two(num_eos),
            BLOCK=block,
            LISTED=256,
            num_warps=4,
        )
    return masked


def _trie_constrain(
    history: torch.Tensor,
    logits: torch.Tensor,
    starts: torch.Tensor | None,
    after: torch.Tensor | None,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    faults: torch.Tensor,
    arrivals: torch.Tensor,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> torch.Tensor:
    """Logits with -inf for tokens that may not follow token histories: ``trie_walk``, then ``trie_mask`` on a copy.

    Parameters
    ----------
    history
        int64 [B, T], any strides.
    logits
        bfloat16, float16, float32 or float64 [B, V], V at least the tries' vocab_size, any strides.
    starts
        int64 [S], where each response begins; rows [i * B / S, (i + 1) * B / S) take entry i.
    after
        int64 [A]: where ``starts`` is None, responses begin behind the last occurrence of these tokens; rows without
        one are off the trie. Where the widest prompt ends further on, and up to there stands one token over and over
        that no item begins with, that is padding. None too: *triggered*, see ``trie_walk``.
    begin_token_id, eos_token_ids, dead_may_end
        As in ``trie_walk`` and ``trie_mask``.
    faults
        int32 [3], modified: the first becomes 1 where every row is off the trie, the second where a row may not go on
        with any token, the third where the logit of a token that an item may go on with is not a number; otherwise
        they stay.
    arrivals
        int64 [1], 0 before and after: room for the count behind ``faults``. Calls that run at once need one each.
    descriptors, trie_index, filters
        As in ``trie_walk``.
    filter_index
        Integers [F]; as ``starts``, an entry for B / F rows side by side.

    Returns
    -------
    Of the logits' type, [B, V], contiguous.
    """
    rows = len(history)
    masked = logits.clone(memory_format=torch.contiguous_format)
    if not rows:
        return masked
    each_start = None if starts is None else starts.repeat_interleave(rows // len(starts))
    each_filter = None if filter_index is None else filter_index.repeat_interleave(rows // len(filter_index))
    tries = descriptors, trie_index, filters, each_filter
    if starts is None and after is not None and history.shape[1]:
        each_start = reference.behind_last(history, after)
        first = history.gather(1, each_start.clamp(0, history.shape[1] - 1).unsqueeze(1))
        begun = _trie_walk(first, None, torch.zeros_like(each_start), begin_token_id, eos_token_ids, *tries)
        each_start = reference.behind_padding(history, each_start, begun < 0)
    states = _trie_walk(history, None, each_start, begin_token_id, eos_token_ids, *tries)
    has_nan = mask_rows(masked, states, begin_token_id, eos_token_ids, dead_may_end, *tries)
    faults[0] |= (states == reference.OFF_TRIE).all()
    faults[1] |= ((states != reference.FREE_TEXT) & masked.isneginf().all(1)).any()
    faults[2] |= has_nan
    return masked


trie_constrain = register(
    "trie_constrain",
    _SCHEMA,
    cpu=_trie_constrain,
    cuda=or_torch(launch_trie_constrain, _trie_constrain),
    fake=lambda history, logits, *arguments: logits.new_empty(logits.shape),
)
