"""What every loss is made of: the log-probability of each label over its scope, and the B-th largest one there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from gentrie.training._rows import Scope

Tau = float | torch.Tensor


@dataclass(frozen=True)
class Scores:
    """Vectors over the rows of a :class:`~gentrie.training._rows.Scope`: narrow, then wide, then free.

    Attributes
    ----------
    log_prob
        [n], the log-probability of each label; differentiable.
    log_threshold
        [narrow + wide], the B-th largest log-probability in the scope, repeats counted, or the smallest where the
        scope holds fewer than B; constant to the gradient. None where it was not asked for.
    """

    log_prob: torch.Tensor
    log_threshold: torch.Tensor | None

    def followed_by(self, other: Scores) -> Scores:
        """The scores of more rows behind these."""
        thresholds = (self.log_threshold, other.log_threshold)
        found = [threshold for threshold in thresholds if threshold is not None]
        return Scores(torch.cat([self.log_prob, other.log_prob]), torch.cat(found) if found else None)


class Source(Protocol):
    """Where logits come from: a tensor of them, or hidden states and a head."""

    @property
    def num_rows(self) -> int: ...

    @property
    def width(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype:
        """In which sums are formed and losses come: float64 for float64 inputs, float32 for all others."""
        ...

    def score(self, scope: Scope, tau: Tau, beam_width: int | None) -> Scores:
        """Score all rows of ``scope``; free text at temperature 1, without a threshold.

        Differentiable with respect to the logits, or hidden states and head, not to ``tau``.
        """
        ...

    def gather(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The logits [rows, tokens], outside the graph."""
        ...


def sum_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """float64 if any tensor is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def kth_largest(values: torch.Tensor, count: torch.Tensor | int, k: int) -> torch.Tensor:
    """The ``min(k, count)``-th largest of each row of ``values`` [n, m], repeats counted.

    ``count`` ([n], or one int for all) is how many entries of a row are real; the others are -inf.
    """
    top = values.topk(min(k, values.shape[1]), dim=1).values
    if isinstance(count, int):
        return top[:, min(k, count) - 1]
    return top.gather(1, count.clamp(max=k)[:, None] - 1)[:, 0]
