"""What each operation means, in plain torch: the truth that kernels are tested against, and the fallback."""

from __future__ import annotations

import torch


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
