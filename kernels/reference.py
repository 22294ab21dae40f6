"""What each operation means, in plain torch: the truth that kernels are tested against, and the fallback."""

from __future__ import annotations

import torch

from gentrie.kernels.tables import FilterTables, Lookups

ROOT, OFF_TRIE, FREE_TEXT, FINISHED = 0, -1, -2, -3


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
    length = _lengths(history, lengths)
    is_eos = torch.isin(history, eos_token_ids)
    if starts is None:
        begin = _behind_control(history, length, begin_token_id, is_eos)
        state = free_rows(history, lengths, begin_token_id, eos_token_ids)
        state = torch.where(state == OFF_TRIE, ROOT, state)
    else:
        begin = starts.expand(rows)
        state = torch.where((begin >= 0) & (begin <= length), ROOT, OFF_TRIE)
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
    return (states >= 0) & (indptr.diff() == 0)
