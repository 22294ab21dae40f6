# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""One step of a beam search over the catalog, that reads the scores of valid tokens alone.

``beam_select`` reads each row's valid tokens, a tile of children a program, and keeps the best of each tile with the
tile's part of the normaliser. ``beam_reduce`` merges what the tiles and beams of a prompt kept, in as many rounds as
its size takes; the last round sorts and looks up where the chosen tokens lead. There are no atomics: repeated runs give
equal bits.
"""

from __future__ import annotations

import torch

from gentrie.kernels import reference
from gentrie.kernels._operations import groups, or_torch
from gentrie.kernels._select import order_key, take_greatest
from gentrie.kernels._trie import (
    checked,
    child_token_index,
    children_of,
    descriptor_row,
    is_child_open,
    token_at,
)
from gentrie.kernels._triton import ceil_div, power_of_two, tl, triton
from gentrie.kernels.beam_reduce import beam_reduce_kernel

MAX_BEAM_WIDTH = 1024
"""Continuations of a prompt that are kept at most: searches of 512 beams keep twice as many."""

_MAX_TILE = 4096
_MAX_KEYS = 16384
_FEW_PER_WARP = 64
_COLUMNS = 8192

_SCHEMA = (
    "(Tensor logits, Tensor states, Tensor scores, int num_beams, int beam_width, bool over_vocab, "
    "Tensor? normalizers, bool narrow, int max_branching, Tensor descriptors, Tensor? trie_index, Tensor? filters, "
    "Tensor? filter_index) -> (Tensor, Tensor, Tensor, Tensor)"
)


@triton.jit
def normalizer_part(values, live):
    """``(m, s)`` such that the sum of exponentials of live values is ``s * exp(m)``; m is finite."""
    greatest = tl.max(tl.where(live, values, float("-inf")), 0)
    greatest = tl.where(greatest == float("-inf"), 0.0, greatest)
    return greatest, tl.sum(tl.where(live, tl.exp(values - greatest), 0.0), 0)


@triton.jit
def row_parts_kernel(logits, row_stride, token_stride, width, num_parts, part_max, part_sum, COLUMNS: tl.constexpr):
    """Parts of each row's normaliser over the whole vocabulary, COLUMNS columns a program; out: [rows, num_parts]."""
    program = tl.program_id(0).to(tl.int64)
    row = program // num_parts
    column = (program % num_parts) * COLUMNS + tl.arange(0, COLUMNS)
    live = column < width
    values = tl.load(logits + row * row_stride + column * token_stride, mask=live, other=float("-inf")).to(tl.float32)
    greatest, total = normalizer_part(values, live)
    tl.store(part_max + program, greatest)
    tl.store(part_sum + program, total)


@triton.jit
def _select_children(
    trie,
    allow,
    state,
    edge,
    count,
    first,
    beam,
    logits,
    token_stride,
    width,
    beam_width,
    program,
    kept_scores,
    kept_codes,
    num_kept,
    part_max,
    part_sum,
    LANES: tl.constexpr,
    KEPT: tl.constexpr,
    NARROW: tl.constexpr,
):
    """``beam_select_kernel`` for the children [first, first + LANES) of one row, whose logits these are."""
    child = first + tl.arange(0, LANES).to(tl.int64)
    live = is_child_open(trie, allow, state, edge, child, child < count)
    index = child_token_index(trie, state, edge, child, live)
    column = index
    if not NARROW:
        column = token_at(trie, index, live)
    live = live & (column < width)
    values = tl.load(logits + column * token_stride, mask=live, other=float("-inf")).to(tl.float32)
    if part_max is not None:
        greatest, total = normalizer_part(values, live)
        tl.store(part_max + program, greatest)
        tl.store(part_sum + program, total)
    taken = take_greatest(order_key(values), live, beam_width)
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(kept_scores + program * KEPT + place, values, mask=taken)
    tl.store(kept_codes + program * KEPT + place, (beam << 32) | child, mask=taken)
    tl.store(num_kept + program, tl.sum(taken.to(tl.int32), 0))


@triton.jit
def beam_select_kernel(
    logits,
    row_stride,
    token_stride,
    width,
    states,
    beam_scores,
    num_beams,
    num_tiles,
    beam_width,
    descriptors,
    num_tries,
    trie_index,
    filters,
    num_filters,
    filter_index,
    kept_scores,
    kept_codes,
    num_kept,
    part_max,
    part_sum,
    TILE: tl.constexpr,
    FEW: tl.constexpr,
    KEPT: tl.constexpr,
    NARROW: tl.constexpr,
):
    """One tile of the children of one row a program.

    logits: [rows, width], strides in elements; NARROW: columns are vocabulary indices, not token ids
    states, beam_scores: int64 and float32 [rows]
    kept_scores, kept_codes: float32 and int64 [rows, num_tiles, KEPT], out: logits and ``beam << 32 | child`` of the
        tile's best beam_width children, in the children's order; num_kept: int32 [rows, num_tiles], out
    part_max, part_sum: float32 [rows, num_tiles], out: parts of the normaliser over valid tokens; None: not wanted
    """
    program = tl.program_id(0).to(tl.int64)
    row = program // num_tiles
    trie = descriptor_row(descriptors, trie_index, row, num_tries)
    allow = tl.zeros([], tl.int64)
    if filters is not None:
        allow = descriptor_row(filters, filter_index, row, num_filters)
    state = checked(trie, tl.load(states + row))
    state = tl.where(tl.load(beam_scores + row) == float("-inf"), -1, state).to(tl.int64)
    edge, count = children_of(trie, state)
    first = (program % num_tiles) * TILE
    scores = logits + row * row_stride
    # Nearly all nodes have few children: for those one lane a thread does.
    if count - first <= FEW:
        _select_children(
            trie,
            allow,
            state,
            edge,
            count,
            first,
            row % num_beams,
            scores,
            token_stride,
            width,
            beam_width,
            program,
            kept_scores,
            kept_codes,
            num_kept,
            part_max,
            part_sum,
            FEW,
            KEPT,
            NARROW,
        )
    else:
        _select_children(
            trie,
            allow,
            state,
            edge,
            count,
            first,
            row % num_beams,
            scores,
            token_stride,
            width,
            beam_width,
            program,
            kept_scores,
            kept_codes,
            num_kept,
            part_max,
            part_sum,
            TILE,
            KEPT,
            NARROW,
        )


def launch_beam_step(
    logits: torch.Tensor,
    states: torch.Tensor,
    scores: torch.Tensor,
    num_beams: int,
    beam_width: int,
    over_vocab: bool,
    normalizers: torch.Tensor | None,
    narrow: bool,
    max_branching: int,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`beam_step` by the kernels."""
    rows, width = logits.shape
    prompts, device = rows // num_beams, logits.device
    best_scores = torch.empty(prompts, beam_width, dtype=torch.float32, device=device)
    # An operation's results must not share memory, as parts of one tensor would.
    parents, tokens, next_states = (
        torch.empty(prompts, beam_width, dtype=torch.int64, device=device) for _ in range(3)
    )
    if not rows:
        return best_scores, parents, tokens, next_states
    beam_scores = scores.float().contiguous()
    branching = min(max_branching, width) if max_branching > 0 else width
    tile, kept = min(_MAX_TILE, power_of_two(branching)), power_of_two(beam_width)
    num_tiles = ceil_div(branching, tile)
    part_max = part_sum = None
    num_parts = 1 if normalizers is not None else ceil_div(width, _COLUMNS) if over_vocab else num_tiles
    if normalizers is not None:
        part_max, part_sum = normalizers.float().contiguous(), torch.ones(rows, device=device)
    else:
        part_max, part_sum = torch.empty(2, rows, num_parts, device=device)
        if over_vocab:
            row_parts_kernel[(rows * num_parts,)](
                logits, *logits.stride(), width, num_parts, part_max, part_sum, COLUMNS=_COLUMNS, num_warps=8
            )
    num_warps = min(8, max(1, tile // 256))
    wants_parts = normalizers is None and not over_vocab
    kept_scores, kept_codes, num_kept = _lists(rows * num_tiles, kept, device)
    beam_select_kernel[(rows * num_tiles,)](
        logits,
        logits.stride(0),
        logits.stride(1),
        width,
        states,
        beam_scores,
        num_beams,
        num_tiles,
        beam_width,
        descriptors,
        len(descriptors),
        trie_index,
        filters,
        0 if filters is None else len(filters),
        filter_index,
        kept_scores,
        kept_codes,
        num_kept,
        part_max if wants_parts else None,
        part_sum if wants_parts else None,
        TILE=tile,
        FEW=min(tile, 32 * num_warps),
        KEPT=kept,
        NARROW=narrow,
        num_warps=num_warps,
    )
    entries, is_first = num_beams * num_tiles, True
    while is_first or entries > 1:
        size = max(2, min(power_of_two(entries), _MAX_KEYS // kept))  # Triton 3.6 refuses scans of one number
        num_groups = ceil_div(entries, size)
        num_warps = min(16, max(1, size * kept // 512))
        out = _lists(prompts * num_groups, kept, device)
        beam_reduce_kernel[(prompts * num_groups,)](
            kept_scores,
            kept_codes,
            num_kept,
            entries,
            num_groups,
            beam_scores,
            num_beams,
            num_tiles,
            part_max,
            part_sum,
            num_parts,
            beam_width,
            descriptors,
            len(descriptors),
            trie_index,
            states,
            *out,
            best_scores,
            parents,
            tokens,
            next_states,
            ENTRIES=size,
            KEPT=kept,
            PARTS=power_of_two(num_parts),
            CHUNK=min(kept, 32),
            FEW=min(size * kept, _FEW_PER_WARP * num_warps),
            IS_FIRST=is_first,
            IS_LAST=num_groups == 1,
            num_warps=num_warps,
        )
        (kept_scores, kept_codes, num_kept), entries, is_first = out, num_groups, False
    return best_scores, parents, tokens, next_states


def _lists(count: int, kept: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for scores, codes and lengths of ``count`` lists."""
    return (
        torch.empty(count, kept, dtype=torch.float32, device=device),
        torch.empty(count, kept, dtype=torch.int64, device=device),
        torch.empty(count, dtype=torch.int32, device=device),
    )


def _beam_step(
    logits: torch.Tensor,
    states: torch.Tensor,
    scores: torch.Tensor,
    num_beams: int,
    beam_width: int,
    over_vocab: bool,
    normalizers: torch.Tensor | None,
    narrow: bool,
    max_branching: int,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best continuations of each prompt's beams by one valid token.

    A continuation's score is its beam's plus the token's log-probability, computed in float32 from logits of any type.
    Where every valid token of a beam is -inf, it has no continuation; where a logit of a valid token is not a number,
    the beam's continuations are not either and come first.

    Parameters
    ----------
    logits
        bfloat16, float16 or float32 [P * num_beams, V], any strides; beams of a prompt side by side.
    states
        int64 [P * num_beams]. Complete sequences and negative states have no continuation.
    scores
        float32 [P * num_beams], log-probabilities so far; -inf: there is no such beam.
    num_beams, beam_width
        Beams a prompt before, at least 1, and after the step, 1 to 1024.
    over_vocab
        Softmax over the whole row of logits; otherwise over the valid tokens, those that the filter leaves.
    normalizers
        float32 [P * num_beams], log of the sum of exponentials over the vocabulary, if it is known; else None.
    narrow
        The columns are the trie's own vocabulary, ascending, and nothing else.
    max_branching
        At least the most children of any node of the tries that rows name; 0: V is all that is known. Sizes the work.
    descriptors, trie_index, filters, filter_index
        As in :func:`trie_walk`.

    Returns
    -------
    scores float32, parents (beam within the prompt), tokens and next states int64, each [P, beam_width], best first; of
    equal ones that of the first beam and lowest token first. Where there are fewer continuations, -inf and -1.
    """
    found = []
    for rows, lookups, allowed, _, vocabulary in groups(len(logits), descriptors, trie_index, filters, filter_index):
        own = rows, logits, states[rows], scores[rows]
        known = None if normalizers is None else normalizers[rows]
        found.append(reference.continuations(*own, over_vocab, known, narrow, lookups, allowed, vocabulary))
    best: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] = reference.best_of_prompts(
        found, len(logits) // num_beams, num_beams, beam_width, logits.device
    )
    return best


beam_step = torch.library.custom_op(
    "gentrie::beam_step", _beam_step, mutates_args=(), device_types="cpu", schema=_SCHEMA
)


@beam_step.register_fake
def _(logits, states, scores, num_beams, beam_width, *arguments):
    shape = (logits.shape[0] // num_beams, beam_width)
    whole = [logits.new_empty(shape, dtype=torch.int64) for _ in range(3)]
    return logits.new_empty(shape, dtype=torch.float32), *whole


beam_step.register_kernel("cuda")(or_torch(launch_beam_step, _beam_step))
