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
    ONE_TOKEN,
    checked,
    child_token_index,
    children_of,
    descriptor_row,
    edge_begin,
    edge_token,
    follow,
    is_child_open,
    remaining_of,
    run_position,
    run_token_index,
    target_of,
    token_at,
)
from gentrie.kernels._triton import ceil_div, power_of_two, tl, triton

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


@triton.jit
def _normalizers(row, is_row, part_max, part_sum, num_parts, PARTS: tl.constexpr):
    """``(m, s)`` of each row, from its parts, as in ``normalizer_part``; s is 0 of a row without any."""
    part = tl.arange(0, PARTS)
    is_part = is_row[:, None] & (part < num_parts)[None, :]
    at = row[:, None] * num_parts + part[None, :]
    total = tl.load(part_sum + at, mask=is_part, other=0.0)
    greatest = tl.load(part_max + at, mask=is_part, other=float("-inf"))
    greatest = tl.where(total == 0.0, float("-inf"), greatest)
    top = tl.max(greatest, 1)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.sum(tl.where(total == 0.0, 0.0, total * tl.exp(greatest - top[:, None])), 1)


@triton.jit
def _lists_of(lane, lengths, count, ENTRIES: tl.constexpr, CHUNK: tl.constexpr):
    """For lanes that number what some lists hold, one after the other: ``(list, place in it)``."""
    entry, begin = lane * 0, lane * 0
    before = tl.zeros([], tl.int32)
    for start in range(0, ENTRIES, CHUNK):
        listed = start + tl.arange(0, CHUNK)
        length = tl.load(lengths + listed, mask=listed < count, other=0)
        end = before + tl.cumsum(length, 0)
        is_behind = (end[None, :] <= lane[:, None]) & (listed < count)[None, :]
        entry += tl.sum(is_behind.to(tl.int32), 1)
        begin = tl.maximum(begin, tl.max(tl.where(is_behind, end[None, :], 0), 1))
        before += tl.sum(length, 0)
    return entry, lane - begin


@triton.jit
def _keep_greatest(scores, live, codes, beam_width, into_scores, into_codes):
    """Writes the best of a block, whose codes these pointers are, in their order; returns how many there are."""
    taken = take_greatest(order_key(scores), live, beam_width)
    place = tl.cumsum(taken.to(tl.int32), 0) - 1
    tl.store(into_scores + place, scores, mask=taken)
    tl.store(into_codes + place, tl.load(codes, mask=taken, other=0), mask=taken)
    return tl.sum(taken.to(tl.int32), 0)


# The two functions below take ``count`` lists, of all prompts' from number ``first`` on. In the first round a list is a
# tile, so that dividing by num_tiles gives its row. Scores are computed in such an order that a forced token's is
# exactly that of its beam.


@triton.jit
def _best_of_few(
    first,
    count,
    total,
    kept_scores,
    kept_codes,
    num_kept,
    num_tiles,
    beam_scores,
    part_max,
    part_sum,
    num_parts,
    beam_width,
    into_scores,
    into_codes,
    ENTRIES: tl.constexpr,
    KEPT: tl.constexpr,
    PARTS: tl.constexpr,
    FEW: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    """Keeps the best of ``count`` lists that hold ``total`` entries, at most FEW, moved together first."""
    lane = tl.arange(0, FEW)
    entry, slot = _lists_of(lane, num_kept + first, count, ENTRIES, 16)
    live = lane < total
    at = (first + entry) * KEPT + slot
    scores = tl.load(kept_scores + at, mask=live, other=float("-inf"))
    if IS_FIRST:
        row = (first + entry) // num_tiles
        top, whole = _normalizers(row, live, part_max, part_sum, num_parts, PARTS)
        before = tl.load(beam_scores + row, mask=live, other=0.0)
        scores = scores - top - tl.log(tl.where(whole == 0.0, 1.0, whole))
        scores = tl.where(whole == 0.0, float("-inf"), scores + before)
        live = live & (scores != float("-inf"))
    return _keep_greatest(scores, live, kept_codes + at, beam_width, into_scores, into_codes)


@triton.jit
def _best_of_all(
    first,
    count,
    kept_scores,
    kept_codes,
    num_kept,
    num_tiles,
    beam_scores,
    part_max,
    part_sum,
    num_parts,
    beam_width,
    into_scores,
    into_codes,
    ENTRIES: tl.constexpr,
    KEPT: tl.constexpr,
    PARTS: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    """Keeps the best of ``count`` lists where they lie."""
    lane = tl.arange(0, ENTRIES * KEPT)
    is_entry = lane // KEPT < count
    live = is_entry & (lane % KEPT < tl.load(num_kept + first + lane // KEPT, mask=is_entry, other=0))
    at = first * KEPT + lane
    scores = tl.load(kept_scores + at, mask=live, other=float("-inf"))
    if IS_FIRST:
        listed = tl.arange(0, ENTRIES)
        row = (first + listed) // num_tiles
        top, whole = _normalizers(row, listed < count, part_max, part_sum, num_parts, PARTS)
        before = tl.load(beam_scores + row, mask=listed < count, other=0.0)
        grid = tl.reshape(scores, [ENTRIES, KEPT]) - top[:, None] - tl.log(tl.where(whole == 0.0, 1.0, whole))[:, None]
        grid = tl.where((whole == 0.0)[:, None], float("-inf"), grid + before[:, None])
        scores = tl.reshape(grid, [ENTRIES * KEPT])
        live = live & (scores != float("-inf"))
    return _keep_greatest(scores, live, kept_codes + at, beam_width, into_scores, into_codes)


@triton.jit
def beam_reduce_kernel(
    kept_scores,
    kept_codes,
    num_kept,
    num_entries,
    num_groups,
    beam_scores,
    num_beams,
    num_tiles,
    part_max,
    part_sum,
    num_parts,
    beam_width,
    descriptors,
    num_tries,
    trie_index,
    states,
    out_scores,
    out_codes,
    num_out,
    best_scores,
    parents,
    tokens,
    next_states,
    ENTRIES: tl.constexpr,
    KEPT: tl.constexpr,
    PARTS: tl.constexpr,
    CHUNK: tl.constexpr,
    FEW: tl.constexpr,
    IS_FIRST: tl.constexpr,
    IS_LAST: tl.constexpr,
):
    """The best of ENTRIES lists of one prompt a program.

    kept_scores, kept_codes, num_kept: [prompts, num_entries, KEPT] and [prompts, num_entries], as beam_select gives
        them (IS_FIRST: entry e is a tile of beam e // num_tiles and its scores are logits) or as an earlier round did
    part_max, part_sum: float32 [rows, num_parts], the parts of each row's normaliser; PARTS: their number rounded up
    out_scores, out_codes, num_out: the same layout with num_groups entries, out
    best_scores float32, parents, tokens, next_states int64 [prompts, beam_width]: out where IS_LAST (one group a
        prompt), best first, then -inf and -1
    """
    program = tl.program_id(0).to(tl.int64)
    prompt = program // num_groups
    first = prompt * num_entries + (program % num_groups) * ENTRIES  # of all prompts' lists
    count = tl.minimum(num_entries - (program % num_groups) * ENTRIES, ENTRIES).to(tl.int32)
    listed = tl.arange(0, ENTRIES)
    total = tl.sum(tl.load(num_kept + first + listed, mask=listed < count, other=0), 0)
    into_scores, into_codes = out_scores + program * KEPT, out_codes + program * KEPT
    num_taken = tl.zeros([], tl.int32)
    if total <= FEW:  # as nearly always: most lists are short
        num_taken = _best_of_few(
            first,
            count,
            total,
            kept_scores,
            kept_codes,
            num_kept,
            num_tiles,
            beam_scores,
            part_max,
            part_sum,
            num_parts,
            beam_width,
            into_scores,
            into_codes,
            ENTRIES,
            KEPT,
            PARTS,
            FEW,
            IS_FIRST,
        )
    else:
        num_taken = _best_of_all(
            first,
            count,
            kept_scores,
            kept_codes,
            num_kept,
            num_tiles,
            beam_scores,
            part_max,
            part_sum,
            num_parts,
            beam_width,
            into_scores,
            into_codes,
            ENTRIES,
            KEPT,
            PARTS,
            IS_FIRST,
        )
    tl.store(num_out + program, num_taken)
    if IS_LAST:
        tl.debug_barrier()  # all lanes read the list that was just written
        slot = tl.arange(0, KEPT)
        is_taken = slot < num_taken
        score = tl.load(out_scores + program * KEPT + slot, mask=is_taken, other=float("-inf"))
        key = order_key(score)
        rank = tl.zeros([KEPT], tl.int32)
        for start in range(0, KEPT, CHUNK):
            other = start + tl.arange(0, CHUNK)
            beside = tl.load(out_scores + program * KEPT + other, mask=other < num_taken, other=float("-inf"))
            other_key = order_key(beside)[None, :]
            is_better = (other_key > key[:, None]) | ((other_key == key[:, None]) & (other[None, :] < slot[:, None]))
            rank += tl.sum((is_better & (other < num_taken)[None, :]).to(tl.int32), 1)
        code = tl.load(out_codes + program * KEPT + slot, mask=is_taken, other=0)
        beam = code >> 32
        row = prompt * num_beams + beam
        trie = descriptor_row(descriptors, trie_index, row, num_tries)
        state = checked(trie, tl.load(states + row, mask=is_taken, other=-1))
        in_run = is_taken & (remaining_of(state) > 0)
        at_node = is_taken & (remaining_of(state) == 0)
        edge = edge_begin(trie, target_of(state), at_node) + (code & 0xFFFFFFFF)
        forced = token_at(trie, run_token_index(trie, run_position(trie, state, in_run), in_run), in_run)
        token = tl.where(in_run, forced, edge_token(trie, edge, at_node))
        after = tl.where(in_run, state - ONE_TOKEN, follow(trie, target_of(state), edge, at_node))
        to = prompt * beam_width + tl.where(is_taken, rank, slot)
        is_slot = slot < beam_width
        tl.store(best_scores + to, score, mask=is_slot)
        tl.store(parents + to, tl.where(is_taken, beam, -1), mask=is_slot)
        tl.store(tokens + to, tl.where(is_taken, token, -1), mask=is_slot)
        tl.store(next_states + to, tl.where(is_taken, after, -1), mask=is_slot)


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
        size = min(power_of_two(entries), max(2, _MAX_KEYS // kept))
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
