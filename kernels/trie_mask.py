# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""Logits with -inf wherever the catalog does not go on, in place: what ``mask_scores`` of the C++ core does on the CPU.

A row is cut into blocks of columns, one program each, that closes what may not follow. A block without an allowed
token, as nearly all are, is written and not read. The first block's program also reads the allowed scores and makes
them usable (see ``reference.usable``): where nothing scores above -HIGHEST, somebody else has forbidden everything that
the catalog allows. No other program writes allowed columns, so that nothing is read while it changes, and repeated runs
give equal bits.
"""

from __future__ import annotations

import torch

from gentrie.kernels import reference
from gentrie.kernels._operations import groups, or_torch
from gentrie.kernels._trie import (
    FINISHED,
    FREE_TEXT,
    checked,
    child_token_index,
    children_of,
    descriptor_row,
    first_edge_from,
    gated,
    has_allowed,
    is_child_open,
    leaves_below,
    token_at,
)
from gentrie.kernels._triton import ceil_div, power_of_two, tl, triton

_SCHEMA = (
    "(Tensor(a!) logits, Tensor states, int begin_token_id, Tensor eos_token_ids, bool dead_may_end, "
    "Tensor descriptors, Tensor? trie_index, Tensor? filters, Tensor? filter_index) -> ()"
)


@triton.jit
def _allowed(trie, allow, state, begin, eos, is_item, place, live):
    """``(token, may follow)`` of the places in a row's list: the children of its state, or the end tokens."""
    in_item = gated(live, is_item)
    index = child_token_index(trie, state, begin, place, in_item)
    token = tl.where(
        is_item, token_at(trie, index, in_item), tl.load(eos + place, mask=gated(live, is_item == 0), other=0)
    )
    is_open = live
    if is_item:
        is_open = is_child_open(trie, allow, state, begin, place, live)
    return token, is_open


@triton.jit
def is_used_up(trie, allow):
    """Whether the filter leaves no item."""
    root = checked(trie, tl.zeros([], tl.int64))
    begin, end = leaves_below(trie, root, root >= 0)
    return has_allowed(allow, begin, end, root >= 0) == 0


@triton.jit
def may_follow(trie, allow, state, num_eos, num_eos_dead):
    """The list of what may follow a checked state outside free text, as ``(first edge, are they children, count)``;
    children that the filter closes are counted too."""
    edge, count = children_of(trie, state)
    begin, end = leaves_below(trie, state, state >= 0)
    is_item = (count > 0) & has_allowed(allow, begin, end, state >= 0)
    is_complete = (state == FINISHED) | ((state >= 0) & (count == 0))
    return edge, is_item, tl.where(is_item, count, tl.where(is_complete, num_eos, num_eos_dead)).to(tl.int64)


@triton.jit
def allowed_columns(trie, allow, state, edge, eos, is_item, count, first, BLOCK: tl.constexpr, LANES: tl.constexpr):
    """``(which, how many)`` of columns ``first`` and on may follow; int32 [BLOCK], not 0 where allowed."""
    low = tl.zeros([], tl.int64)
    high = count
    if is_item & (count > LANES):  # of a wide node the edges into this block alone
        low = first_edge_from(trie, edge, edge + count, first, LANES) - edge
        high = first_edge_from(trie, edge, edge + count, first + BLOCK, LANES) - edge
    lane = tl.arange(0, LANES).to(tl.int64)
    column = tl.arange(0, BLOCK)
    here = tl.zeros([BLOCK], tl.int32)
    num_here = tl.zeros([], tl.int32)
    while low < high:
        place = low + lane
        token, is_open = _allowed(trie, allow, state, edge, eos, is_item, place, place < high)
        inside = is_open & (token >= first) & (token < first + BLOCK)
        num_inside = tl.sum(inside.to(tl.int32), 0)
        if num_inside > 0:
            here += tl.histogram(tl.where(inside, token - first, 0).to(tl.int32), BLOCK)
            here -= tl.where(column == 0, LANES - num_inside, 0)  # the other lanes were counted in the first
        num_here += num_inside
        low += LANES
    return here, num_here


@triton.jit
def best_forbidden(scores, token_stride, highest, trie, allow, state, edge, eos, is_item, count, LANES: tl.constexpr):
    """``(are all tokens that may follow, at least one, forbidden, the best of their scores if so)``: none is above
    -``highest``."""
    lane = tl.arange(0, LANES).to(tl.int64)
    is_forbidden = count > 0
    best = tl.full([], float("-inf"), tl.float32)
    low = tl.zeros([], tl.int64)
    while (low < count) & is_forbidden:
        place = low + lane
        token, is_open = _allowed(trie, allow, state, edge, eos, is_item, place, place < count)
        score = tl.load(scores + token * token_stride, mask=is_open, other=float("-inf")).to(tl.float32)
        best = tl.maximum(best, tl.max(tl.where(score == score, score, float("-inf")), 0))
        is_forbidden = best <= -highest
        low += LANES
    return is_forbidden, best


@triton.jit
def usable(scores, is_forbidden, best, highest, last_resort):
    """What :func:`reference.usable` makes of float32 scores."""
    scores = tl.where(scores == scores, scores, float("-inf"))
    resort = tl.where(scores == best, last_resort, float("-inf"))
    return tl.where(is_forbidden, resort, tl.where(scores > highest, highest, scores))


@triton.jit
def trie_mask_kernel(
    logits,
    row_stride,
    token_stride,
    width,
    num_blocks,
    states,
    begin_token,
    eos,
    num_eos,
    num_eos_dead,
    highest,
    last_resort,
    descriptors,
    num_tries,
    trie_index,
    filters,
    num_filters,
    filter_index,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """One block of columns of one row a program.

    logits: [rows, width], strides in elements, in place; states: int64 [rows]
    begin_token: closed in free rows where the filter leaves no item; negative: none
    eos: int64 [num_eos], allowed behind a complete item; the first num_eos_dead of them in rows that may not go on
    highest, last_resort: HIGHEST and LAST_RESORT of ``reference``
    BLOCK: columns; LANES: allowed tokens handled at once
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // num_blocks
    first = (program % num_blocks) * BLOCK
    trie = descriptor_row(descriptors, trie_index, row, num_tries)
    allow = tl.zeros([], tl.int64)
    if filters is not None:
        allow = descriptor_row(filters, filter_index, row, num_filters)
    state = checked(trie, tl.load(states + row))
    scores = logits + row * row_stride
    minus_infinity = tl.full([], float("-inf"), tl.float32)

    if state == FREE_TEXT:
        if (first == 0) & (begin_token >= 0) & is_used_up(trie, allow):
            tl.store(scores + begin_token * token_stride, minus_infinity)
    else:
        edge, is_item, count = may_follow(trie, allow, state, num_eos, num_eos_dead)
        here, num_here = allowed_columns(trie, allow, state, edge, eos, is_item, count, first, BLOCK, LANES)
        column = first + tl.arange(0, BLOCK)
        closed = column < width
        if num_here > 0:
            closed = closed & (here == 0)
        tl.store(scores + column * token_stride, tl.full([BLOCK], float("-inf"), tl.float32), mask=closed)

        if first == 0:
            is_forbidden, best = best_forbidden(
                scores, token_stride, highest, trie, allow, state, edge, eos, is_item, count, LANES
            )
            lane = tl.arange(0, LANES).to(tl.int64)
            low = tl.zeros([], tl.int64)
            while low < count:
                place = low + lane
                token, is_open = _allowed(trie, allow, state, edge, eos, is_item, place, place < count)
                at = scores + token * token_stride
                before = tl.load(at, mask=is_open, other=0).to(tl.float32)
                after = usable(before, is_forbidden, best, highest, last_resort)
                tl.store(at, after, mask=is_open & (after != before))
                low += LANES


def launch_trie_mask(
    logits: torch.Tensor,
    states: torch.Tensor,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> None:
    """:func:`trie_mask` by the kernel."""
    rows, width = logits.shape
    block = min(4096, power_of_two(width))
    num_blocks = ceil_div(width, block)
    if rows:
        trie_mask_kernel[(rows * num_blocks,)](
            logits,
            logits.stride(0),
            logits.stride(1),
            width,
            num_blocks,
            states,
            begin_token_id,
            eos_token_ids,
            len(eos_token_ids),
            len(eos_token_ids) if dead_may_end else 0,
            reference.HIGHEST[logits.dtype],
            reference.LAST_RESORT,
            descriptors,
            len(descriptors),
            trie_index,
            filters,
            0 if filters is None else len(filters),
            filter_index,
            BLOCK=block,
            LANES=256,
            num_warps=4,
        )


def _trie_mask(
    logits: torch.Tensor,
    states: torch.Tensor,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> None:
    """Set the logits of tokens that may not follow to -inf, in place.

    Rows in free text are left as they are. Rows in an item keep the tokens below which the catalog, less what the
    filter closes, holds a sequence; complete ones the end-of-sequence tokens. Columns at and beyond the vocabulary are
    closed. Of the tokens that may follow, those whose logit is not a number get -inf, and none keeps more than 2**20
    (float16: 65504). Where none has more than the negative of that, the best of them get -8192 and the others -inf.

    Parameters
    ----------
    logits
        bfloat16, float16, float32 or float64 [B, V], V at least the tries' vocab_size, any strides; modified.
    states
        int64 [B], as :func:`trie_walk` gives them. What is no state of the row's trie counts as -1.
    begin_token_id
        In free text it is closed where the row's filter leaves no item; -1: none.
    eos_token_ids
        int64 [E], distinct, in [0, V).
    dead_may_end
        Whether rows that have left the trie, and those that a filter has emptied, may end; otherwise all is -inf.
    descriptors, trie_index, filters, filter_index
        As in :func:`trie_walk`.
    """
    mask_rows(
        logits, states, begin_token_id, eos_token_ids, dead_may_end, descriptors, trie_index, filters, filter_index
    )


def mask_rows(
    logits: torch.Tensor,
    states: torch.Tensor,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    descriptors: torch.Tensor,
    *others: torch.Tensor | None,
) -> torch.Tensor:
    """:func:`trie_mask` in plain torch; returns whether the logit of a token that an item may go on with is not a
    number, bool []."""
    has_nan = torch.zeros((), dtype=torch.bool, device=logits.device)
    for rows, lookups, allowed, *_ in groups(len(logits), descriptors, *others):
        own = states[rows], begin_token_id, eos_token_ids, dead_may_end, lookups, allowed
        has_nan |= reference.trie_mask(logits, rows, *own)
    return has_nan


trie_mask = torch.library.custom_op(
    "gentrie::trie_mask", _trie_mask, mutates_args={"logits"}, device_types="cpu", schema=_SCHEMA
)


@trie_mask.register_fake
def _(logits, *arguments):
    return None


trie_mask.register_kernel("cuda")(or_torch(launch_trie_mask, _trie_mask))
