"""What each operation means, in plain torch: the truth that kernels are tested against, and the fallback."""

from __future__ import annotations

import torch

from gentrie.kernels._lookups import NoTrie
from gentrie.kernels.tables import FilterTables, Lookups

ROOT, OFF_TRIE, FREE_TEXT, FINISHED = 0, -1, -2, -3

# Scores that a search may add up for each token of an item and stay far from the 1e9 that `transformers` means by "no
# beam", and from infinity: what tokens get that somebody else has forbidden though the catalog allows nothing else, and
# the highest that any may have. The negative of that and less forbids.
LAST_RESORT = -8192.0
HIGHEST = {torch.float16: 65504.0, torch.bfloat16: 2.0**20, torch.float32: 2.0**20, torch.float64: 2.0**20}


_CHUNK = 1 << 20
"""Most logits of whole rows that are held in float64 at a time."""


def apply_token_bitmask(logits: torch.Tensor, bitmask: torch.Tensor, vocab_size: int, rows: torch.Tensor) -> None:
    """Set forbidden logits to -inf, in place.

    ``logits`` is floating point [batch, width], ``bitmask`` int32 [batch, words], ``rows`` int64 [n] the rows to
    treat. Token t of row r is allowed where bit t % 32 of ``bitmask[r, t // 32]`` is set and t < ``vocab_size``;
    tokens beyond the bitmask are forbidden.
    """
    covered = min(logits.shape[1], vocab_size, bitmask.shape[1] * 32)
    bits = torch.arange(32, dtype=torch.int32, device=bitmask.device)
    allowed = ((bitmask[rows].unsqueeze(-1) >> bits) & 1).flatten(1)[:, :covered].bool()
    masked = torch.full((rows.numel(), logits.shape[1]), -torch.inf, dtype=logits.dtype, device=logits.device)
    masked[:, :covered] = torch.where(allowed, logits[rows, :covered], masked[:, :covered])
    logits[rows] = masked


def trie_walk(
    history: torch.Tensor,
    lengths: torch.Tensor | None,
    starts: torch.Tensor | None,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    lookups: Lookups,
    allowed: FilterTables | None,
    end_token_id: int,
) -> torch.Tensor:
    """States int64 [B] of histories int64 [B, T] in one trie, token by token; see the operation of this name."""
    rows, max_length = history.shape
    root = OFF_TRIE if isinstance(lookups, NoTrie) else ROOT
    length = _lengths(history, lengths)
    is_eos = torch.isin(history, eos_token_ids)
    if starts is None:
        begin = _behind_control(history, length, begin_token_id, is_eos)
        state = free_rows(history, lengths, begin_token_id, eos_token_ids)
        state = torch.where(state == OFF_TRIE, root, state)
    else:
        begin = starts.expand(rows)
        state = torch.where((begin >= 0) & (begin <= length), root, OFF_TRIE)
    ended = torch.zeros(rows, dtype=torch.bool, device=history.device)
    closes_itself = not len(eos_token_ids) or bool((eos_token_ids == end_token_id).any())
    for position in range(max_length):
        is_leaf = _is_leaf(lookups, state)
        live = (begin <= position) & (position < length) & ~ended & ~(is_leaf & (closes_itself or starts is None))
        if starts is not None:
            is_over = (state == OFF_TRIE) | is_leaf | (lookups.num_left(state, allowed) == 0)
            ends = live & is_eos[:, position] & is_over
            state = torch.where(ends & ~is_leaf, FINISHED, state)
            ended, live = ended | ends, live & ~ends
        state = torch.where(live, lookups.advance(state, history[:, position]), state)
    if starts is None:
        state = torch.where(_is_leaf(lookups, state), FREE_TEXT, state)
    return state


def free_rows(
    history: torch.Tensor, lengths: torch.Tensor | None, begin_token_id: int, eos_token_ids: torch.Tensor
) -> torch.Tensor:
    """-2 for each row of int64 [B, T] whose last control token is not the begin token, -1 for the others."""
    is_eos = torch.isin(history, eos_token_ids)
    begin = _behind_control(history, _lengths(history, lengths), begin_token_id, is_eos)
    if not history.shape[1]:
        return torch.full_like(begin, FREE_TEXT)
    last = history.gather(1, (begin - 1).clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where((begin > 0) & (last == begin_token_id), OFF_TRIE, FREE_TEXT)


def behind_last(history: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """One behind the last occurrence of ``after`` int64 [A] in each row of int64 [B, T]; -1: there is none."""
    rows, length = history.shape
    width = len(after)
    if length < width:
        return torch.full((rows,), -1, device=history.device)
    is_here = (history.unfold(1, width, 1) == after).all(-1)
    return torch.where(is_here, torch.arange(width, length + 1, device=history.device), -1).amax(1)


def behind_padding(history: torch.Tensor, starts: torch.Tensor, is_foreign: torch.Tensor) -> torch.Tensor:
    """Where responses int64 [B] begin: at the last of the starts, where up to there stands one token over and over,
    with which no item begins (bool [B]); otherwise at the row's own."""
    place, last = torch.arange(history.shape[1], device=history.device), starts.max()
    first = history.gather(1, starts.clamp(0, history.shape[1] - 1).unsqueeze(1))
    is_same = ((history == first) | (place < starts.unsqueeze(1)) | (place >= last)).all(1)
    return torch.where(is_same & is_foreign & (starts >= 0), last, starts)


def _behind_control(
    history: torch.Tensor, length: torch.Tensor, begin_token_id: int, is_eos: torch.Tensor
) -> torch.Tensor:
    """One behind the last begin or end-of-sequence token of each row, or 0."""
    behind = torch.arange(1, history.shape[1] + 1, device=history.device).expand_as(history)
    is_control = ((history == begin_token_id) | is_eos) & (behind <= length.unsqueeze(1))
    return torch.where(is_control, behind, 0).amax(1) if history.shape[1] else torch.zeros_like(length)


def _lengths(history: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    rows, max_length = history.shape
    if lengths is None:
        return torch.full((rows,), max_length, dtype=torch.int64, device=history.device)
    return lengths.clamp(0, max_length)


def _is_leaf(lookups: Lookups, states: torch.Tensor) -> torch.Tensor:
    """Complete sequences: one is left and nothing may follow."""
    _, indptr = lookups.next_tokens(states, None)
    is_leaf: torch.Tensor = (states >= 0) & (lookups.num_left(states, None) > 0) & (indptr.diff() == 0)
    return is_leaf


def trie_mask(
    logits: torch.Tensor,
    rows: torch.Tensor,
    states: torch.Tensor,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    lookups: Lookups,
    allowed: FilterTables | None,
) -> torch.Tensor:
    """Mask rows int64 [N] of logits [B, V] whose states int64 [N] lie in one trie; see the operation of this name.

    Returns whether the logit of a token that an item may go on with is not a number, bool [].
    """
    if begin_token_id >= 0 and _is_used_up(states, lookups, allowed):
        logits[rows[states == FREE_TEXT], begin_token_id] = -torch.inf
    rows, states = rows[states != FREE_TEXT], states[states != FREE_TEXT]
    place, tokens = _may_follow(states, eos_token_ids, dead_may_end, lookups, allowed)
    kept = logits[rows[place], tokens]
    is_item = lookups.num_left(states, allowed) > 0
    is_item &= ~_is_leaf(lookups, states)
    has_nan: torch.Tensor = (kept.isnan() & is_item[place]).any()
    logits[rows] = -torch.inf
    logits[rows[place], tokens] = usable(kept, place, len(states))
    return has_nan


def usable(scores: torch.Tensor, place: torch.Tensor, count: int) -> torch.Tensor:
    """Scores [N] of the tokens that may follow, made fit to be added up: none above ``HIGHEST``, those that are not
    numbers -inf. Where a place, of ``count``, has none above the negative of that, its best get ``LAST_RESORT`` and its
    others -inf."""
    highest = HIGHEST[scores.dtype]
    values = torch.where(scores.isnan(), -torch.inf, scores)
    best = values.new_full((count,), -torch.inf).scatter_reduce(0, place, values, "amax")[place]
    resort = torch.where(values == best, LAST_RESORT, -torch.inf).to(scores.dtype)
    return torch.where(best > -highest, values.clamp(max=highest), resort)


def trie_bitmask(
    bitmask: torch.Tensor,
    rows: torch.Tensor,
    states: torch.Tensor,
    begin_token_id: int,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    lookups: Lookups,
    allowed: FilterTables | None,
) -> None:
    """Fill rows int64 [N] of a bitmask int32 [B, W] whose states int64 [N] lie in one trie; see the operation of this
    name."""
    free = rows[states == FREE_TEXT]
    bitmask[free] = -1
    if begin_token_id >= 0 and _is_used_up(states, lookups, allowed):
        bitmask[free, begin_token_id // 32] = ~_bit(torch.tensor(begin_token_id, device=states.device))
    rows, states = rows[states != FREE_TEXT], states[states != FREE_TEXT]
    place, tokens = _may_follow(states, eos_token_ids, dead_may_end, lookups, allowed)
    bitmask[rows] = 0
    bitmask.index_put_((rows[place], tokens // 32), _bit(tokens), accumulate=True)  # sums of distinct bits


def _bit(tokens: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(tokens, dtype=torch.int32) << (tokens % 32).int()


def _is_used_up(states: torch.Tensor, lookups: Lookups, allowed: FilterTables | None) -> bool:
    """Whether the filter leaves no item."""
    return not lookups.num_left(states.new_zeros(1), allowed)


def _may_follow(
    states: torch.Tensor,
    eos_token_ids: torch.Tensor,
    dead_may_end: bool,
    lookups: Lookups,
    allowed: FilterTables | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``(place, token)`` of every token that may follow each of the states, none of them in free text."""
    tokens, indptr = lookups.next_tokens(states, allowed)
    counts = indptr.diff()
    is_complete = (states == FINISHED) | _is_leaf(lookups, states)
    may_end = (counts == 0) & (is_complete | dead_may_end)
    place = torch.arange(len(states), device=states.device)
    place = torch.cat([place.repeat_interleave(counts), place[may_end].repeat_interleave(len(eos_token_ids))])
    return place, torch.cat([tokens, eos_token_ids.repeat(int(may_end.sum()))])


def continuations(
    rows: torch.Tensor,
    logits: torch.Tensor,
    states: torch.Tensor,
    scores: torch.Tensor,
    over_vocab: bool,
    normalizers: torch.Tensor | None,
    narrow: bool,
    lookups: Lookups,
    allowed: FilterTables | None,
    vocabulary: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Every continuation by one valid token of beams in one trie: row, score (float64), token and next state of each.

    ``rows`` int64 [N] are the rows of the batch, of ``logits`` [B, V] too, that ``states``, ``scores`` and
    ``normalizers`` [N] belong to. Of the logits valid tokens are gathered, and whole rows held a few at a time.
    """
    states = torch.where(scores == -torch.inf, OFF_TRIE, states)
    tokens, indptr = lookups.next_tokens(states, allowed)
    counts = indptr.diff()
    place = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    columns = torch.searchsorted(vocabulary.long(), tokens) if narrow else tokens
    values = logits[rows[place], columns].double()
    if normalizers is not None:
        whole = normalizers.double()
    elif over_vocab:
        whole = values.new_full((len(rows),), -torch.inf)
        live = torch.nonzero(counts).squeeze(1)
        for part in torch.split(live, max(1, _CHUNK // logits.shape[1])):
            whole[part] = logits[rows[part]].double().logsumexp(1)
    else:
        whole = _logsumexp_by(place, values, len(rows))
    added = values - whole[place]
    total = scores[place].double() + torch.where(whole[place] == -torch.inf, -torch.inf, added)
    kept = total != -torch.inf
    place, tokens = place[kept], tokens[kept]
    return rows[place], total[kept], tokens, lookups.advance(states[place], tokens)


def _logsumexp_by(place: torch.Tensor, values: torch.Tensor, count: int) -> torch.Tensor:
    """Logs [count] of the sums of exponentials of the values that each place has; -inf without any."""
    peak = values.new_full((count,), -torch.inf).scatter_reduce(0, place, values, "amax")
    shift = torch.where(peak.isfinite(), peak, 0)
    return torch.zeros_like(peak).index_add(0, place, (values - shift[place]).exp()).log() + shift


def best_of_prompts(
    found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]],
    num_prompts: int,
    num_beams: int,
    beam_width: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best of what :func:`continuations` found, for each prompt; see the operation ``beam_step``."""
    shape = (num_prompts, beam_width)
    best = torch.full(shape, -torch.inf, device=device)
    parents, chosen, after = (torch.full(shape, -1, dtype=torch.int64, device=device) for _ in range(3))
    if not found:
        return best, parents, chosen, after
    rows, totals, tokens, states = (torch.cat(parts) for parts in zip(*found, strict=True))
    by_row = rows.argsort(stable=True)
    counts = torch.bincount(rows // num_beams, minlength=num_prompts).tolist()
    for prompt, own in enumerate(torch.split(by_row, counts)):
        order = own[totals[own].sort(descending=True, stable=True).indices[:beam_width]]
        count = len(order)
        best[prompt, :count] = totals[order].float()
        parents[prompt, :count] = rows[order] % num_beams
        chosen[prompt, :count] = tokens[order]
        after[prompt, :count] = states[order]
    return best, parents, chosen, after
