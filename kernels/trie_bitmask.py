# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""Bitmasks of the tokens that may follow, in XGrammar's layout: what ``fill_bitmask`` of the C++ core does on the CPU.

A row is cut into blocks of words, one program each. Children are sorted by token, so that a program searches the few
edges that lead into its words and needs no atomics: every word is written once, and repeated runs give equal bits.
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
    has_allowed,
    is_child_open,
    leaves_below,
    token_at,
)
from gentrie.kernels._triton import ceil_div, power_of_two, tl, triton

_SCHEMA = (
    "(Tensor(a!) bitmask, Tensor states, int begin_token_id, Tensor eos_token_ids, bool dead_may_end, "
    "Tensor descriptors, Tensor? trie_index, Tensor? filters, Tensor? filter_index) -> ()"
)


@triton.jit
def _with_bits(words, tokens, inside, first, WORDS: tl.constexpr):
    """``words`` [WORDS] with the bits of tokens set; ``first`` is the first word's first token. Tokens are distinct."""
    num_inside = tl.sum(inside.to(tl.int32), 0)
    if num_inside > 0:
        column = tl.arange(0, WORDS * 32)
        here = tl.histogram(tl.where(inside, tokens - first, 0).to(tl.int32), WORDS * 32)
        here -= tl.where(column == 0, inside.shape[0] - num_inside, 0)  # the other lanes were counted in the first
        bits = tl.reshape((here > 0).to(tl.int32), (WORDS, 32)) << tl.arange(0, 32)[None, :]
        words = words | tl.sum(bits, 1)
    return words


@triton.jit
def trie_bitmask_kernel(
    bitmask,
    row_stride,
    word_stride,
    num_words,
    num_blocks,
    states,
    begin_token,
    eos,
    num_eos,
    num_eos_dead,
    descriptors,
    num_tries,
    trie_index,
    filters,
    num_filters,
    filter_index,
    WORDS: tl.constexpr,
    LANES: tl.constexpr,
):
    """One block of words of one row a program.

    bitmask: int32 [rows, num_words], strides in elements, out; states: int64 [rows]
    begin_token: closed in free rows where the filter leaves no item; negative: none
    eos: int64 [num_eos], allowed behind a complete item; the first num_eos_dead of them in rows that may not go on
    WORDS: words a program; LANES: allowed tokens handled at once
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // num_blocks
    first_word = (program % num_blocks) * WORDS
    first = first_word * 32
    last = first + WORDS * 32
    trie = descriptor_row(descriptors, trie_index, row, num_tries)
    allow = tl.zeros([], tl.int64)
    if filters is not None:
        allow = descriptor_row(filters, filter_index, row, num_filters)
    state = checked(trie, tl.load(states + row))
    word = first_word + tl.arange(0, WORDS)
    words = tl.zeros([WORDS], tl.int32)
    lane = tl.arange(0, LANES).to(tl.int64)

    if state == FREE_TEXT:
        words = words - 1
        root = checked(trie, tl.zeros([], tl.int64))
        begin, end = leaves_below(trie, root, root >= 0)
        if (begin_token >= first) & (begin_token < last) & (has_allowed(allow, begin, end, root >= 0) == 0):
            bit = tl.full([WORDS], 1, tl.int32) << (begin_token & 31)
            words = tl.where(word == (begin_token >> 5), words ^ bit, words)
    else:
        edge, count = children_of(trie, state)
        begin, end = leaves_below(trie, state, state >= 0)
        if (count > 0) & has_allowed(allow, begin, end, state >= 0):
            low = tl.zeros([], tl.int64)
            high = count
            if count > LANES:  # of a wide node the edges into this block alone
                low = first_edge_from(trie, edge, edge + count, first, LANES) - edge
                high = first_edge_from(trie, edge, edge + count, last, LANES) - edge
            while low < high:
                child = low + lane
                live = child < high
                token = token_at(trie, child_token_index(trie, state, edge, child, live), live)
                is_open = is_child_open(trie, allow, state, edge, child, live)
                words = _with_bits(words, token, is_open & (token >= first) & (token < last), first, WORDS)
                low += LANES
        else:
            is_complete = (state == FINISHED) | ((state >= 0) & (count == 0))
            high = tl.where(is_complete, num_eos, num_eos_dead).to(tl.int64)
            low = tl.zeros([], tl.int64)
            while low < high:
                live = low + lane < high
                token = tl.load(eos + low + lane, mask=live, other=0)
                words = _with_bits(words, token, live & (token >= first) & (token < last), first, WORDS)
                low += LANES
    tl.store(bitmask + row * row_stride + word * word_stride, words, mask=word < num_words)


def launch_trie_bitmask(
    bitmask: torch.Tensor,
    states: torch.Tensor,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> None:
    """:func:`trie_bitmask` by the kernel."""
    rows, num_words = bitmask.shape
    words = min(128, power_of_two(num_words))
    num_blocks = ceil_div(num_words, words)
    if rows * num_blocks:
        trie_bitmask_kernel[(rows * num_blocks,)](
            bitmask,
            bitmask.stride(0),
            bitmask.stride(1),
            num_words,
            num_blocks,
            states,
            begin_token_id,
            eos_token_ids,
            len(eos_token_ids),
            len(eos_token_ids) if dead_may_end else 0,
            descriptors,
            len(descriptors),
            trie_index,
            filters,
            0 if filters is None else len(filters),
            filter_index,
            WORDS=words,
            LANES=256,
            num_warps=4,
        )


def _trie_bitmask(
    bitmask: torch.Tensor,
    states: torch.Tensor,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> None:
    """Set the bits of tokens that may follow and clear the others, in place.

    Token t of row r is bit t % 32 of ``bitmask[r, t // 32]``, 1 = allowed. All bits of rows in free text are set, those
    beyond the vocabulary too. Rows in an item have the bits of the tokens below which the catalog, less what the filter
    closes, holds a sequence; complete ones those of the end-of-sequence tokens.

    Parameters
    ----------
    bitmask
        int32 [B, W], any strides, 32 W at least the tries' vocab_size; overwritten.
    states
        int64 [B], contiguous, as :func:`trie_walk` gives them. What is no state of the row's trie counts as -1.
    begin_token_id
        In [0, 32 W): in free text its bit is cleared where the row's filter leaves no item; -1: none.
    eos_token_ids
        int64 [E], contiguous, distinct, in [0, 32 W).
    dead_may_end
        Whether rows that have left the trie, and those that a filter has emptied, may end; otherwise no bit is set.
    descriptors, trie_index, filters, filter_index
        As in :func:`trie_walk`.
    """
    for rows, lookups, allowed, *_ in groups(len(bitmask), descriptors, trie_index, filters, filter_index):
        reference.trie_bitmask(
            bitmask, rows, states[rows], begin_token_id, eos_token_ids, dead_may_end, lookups, allowed
        )


trie_bitmask = torch.library.custom_op(
    "gentrie::trie_bitmask", _trie_bitmask, mutates_args={"bitmask"}, device_types="cpu", schema=_SCHEMA
)


@trie_bitmask.register_fake
def _(bitmask, *arguments):
    return None


trie_bitmask.register_kernel("cuda")(or_torch(launch_trie_bitmask, _trie_bitmask))
