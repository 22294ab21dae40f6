# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""The second half of ``beam_step``: the best of what the tiles of a prompt's beams kept, and where those lead."""

from __future__ import annotations

from gentrie.kernels._select import may_be_taken, order_key, take_greatest
from gentrie.kernels._trie import (
    ONE_TOKEN,
    checked,
    descriptor_row,
    edge_begin,
    edge_token,
    follow,
    remaining_of,
    run_position,
    run_token_index,
    target_of,
    token_at,
)
from gentrie.kernels._triton import tl, triton


@triton.jit
def _normalizers(row, is_row, part_max, part_sum, num_parts, PARTS: tl.constexpr):
    """``(m, s)`` of each row, from its parts, as in ``beam_step.normalizer_part``; s is 0 of a row without any."""
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
def _lists_of(lane, lengths, count, ENTRIES: tl.constexpr):
    """For lanes that number what ``count`` lists hold, one after the other: ``(list, place in it)``. Afterwards each
    list's end stands where its length was."""
    listed = tl.arange(0, ENTRIES)
    ends = tl.cumsum(tl.load(lengths + listed, mask=listed < count, other=0), 0)
    tl.debug_barrier()  # all lanes have the lengths
    tl.store(lengths + listed, ends, mask=listed < count)
    tl.debug_barrier()  # and now look among the ends
    entry, begin = lane * 0, lane * 0
    step = ENTRIES // 2
    while step > 0:
        middle = entry + step
        end = tl.load(lengths + middle - 1, mask=middle <= count, other=0x7FFFFFFF)
        is_behind = end <= lane
        entry = tl.where(is_behind, middle, entry)
        begin = tl.where(is_behind, end, begin)
        step = step // 2
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
    entry, slot = _lists_of(lane, num_kept + first, count, ENTRIES)
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
    FEW: tl.constexpr,
    IS_FIRST: tl.constexpr,
):
    """Keeps the best of ``count`` lists of any lengths. Overwrites them."""
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
    candidates = may_be_taken(order_key(scores), live, beam_width, ENTRIES * KEPT, FEW)
    num_candidates = tl.sum(candidates.to(tl.int32), 0)
    num_taken = num_candidates * 0
    if num_candidates <= FEW:
        place = first * KEPT + tl.cumsum(candidates.to(tl.int32), 0) - 1
        codes = tl.load(kept_codes + at, mask=candidates, other=0)
        tl.debug_barrier()  # all lanes have what they may overwrite
        tl.store(kept_scores + place, scores, mask=candidates)
        tl.store(kept_codes + place, codes, mask=candidates)
        tl.debug_barrier()
        few = tl.arange(0, FEW)
        is_candidate = few < num_candidates
        together = tl.load(kept_scores + first * KEPT + few, mask=is_candidate, other=float("-inf"))
        codes_of_few = kept_codes + first * KEPT + few
        num_taken = _keep_greatest(together, is_candidate, codes_of_few, beam_width, into_scores, into_codes)
    else:
        num_taken = _keep_greatest(scores, live, kept_codes + at, beam_width, into_scores, into_codes)
    return num_taken


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
        them (IS_FIRST: entry e is a tile of beam e // num_tiles and its scores are logits) or as an earlier round did;
        overwritten
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
            FEW,
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
