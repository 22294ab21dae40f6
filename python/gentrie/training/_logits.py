"""Scores from logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gentrie.training._rows import Narrow, Scope, Wide
from gentrie.training._scores import Scores, Tau, kth_largest, sum_dtype

_CHUNK = 1 << 20
"""Most logits that are held at a time beside those given."""


@dataclass(frozen=True)
class LogitsSource:
    """Logits [rows, width]."""

    logits: torch.Tensor

    @property
    def num_rows(self) -> int:
        return self.logits.shape[0]

    @property
    def width(self) -> int:
        return self.logits.shape[1]

    @property
    def device(self) -> torch.device:
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        return sum_dtype(self.logits)

    def score(self, scope: Scope, tau: Tau, beam_width: int | None) -> Scores:
        log_prob, threshold = _LogitsScores.apply(self.logits, scope, tau, beam_width)  # type: ignore[no-untyped-call]
        return Scores(log_prob, None if beam_width is None else threshold)

    def gather(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits.detach()[rows[:, None], tokens].to(self.dtype)


class _LogitsScores(torch.autograd.Function):
    """Log-probabilities and thresholds; the gradient's rows are written once, and only where tokens are valid."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, scope: Scope, tau: Tau, beam_width: int | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = sum_dtype(logits)
        log_probs, thresholds, saved = [], [], []
        for narrow in _narrow_scores(logits, scope.narrow, tau, dtype):
            log_probs.append(narrow.log_prob())
            if beam_width is not None:
                thresholds.append(kth_largest(narrow.log_probs_padded(), narrow.count, beam_width))
            saved.append(narrow)
        lse = []
        for rows, temperature, k in ((scope.wide, tau, beam_width), (scope.free, 1.0, None)):
            for chunk in _chunks(rows, logits.shape[1]):
                scaled = logits[chunk.row].to(dtype) / temperature
                lse.append(scaled.logsumexp(1))
                log_probs.append(scaled.gather(1, chunk.label[:, None])[:, 0] - lse[-1])
                if k is not None:
                    thresholds.append(kth_largest(scaled, scaled.shape[1], k) - lse[-1])
        empty = logits.new_zeros(0, dtype=dtype)
        log_prob, threshold = torch.cat([empty, *log_probs]), torch.cat([empty, *thresholds])
        ctx.scope, ctx.tau, ctx.narrow = scope, tau, saved
        ctx.save_for_backward(logits, torch.cat([empty, *lse]))
        ctx.mark_non_differentiable(threshold)
        return log_prob, threshold

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        logits, lse = ctx.saved_tensors
        scope, tau = ctx.scope, ctx.tau
        result = torch.zeros_like(logits, memory_format=torch.contiguous_format)
        start = 0
        for narrow in ctx.narrow:
            stop = start + len(narrow.count)
            values = (narrow.is_label() - narrow.log_probs.exp()) * (grad[start:stop] / tau)[:, None]
            result[narrow.row[:, None], narrow.tokens] = values.to(result.dtype)
            start = stop
        offset = start
        for rows, temperature in ((scope.wide, tau), (scope.free, 1.0)):
            for chunk in _chunks(rows, logits.shape[1]):
                stop = start + len(chunk)
                scaled = logits[chunk.row].to(lse.dtype) / temperature
                values = (scaled - lse[start - offset : stop - offset, None]).exp_().neg_()
                values[torch.arange(len(chunk), device=values.device), chunk.label] += 1
                result[chunk.row] = (values * (grad[start:stop] / temperature)[:, None]).to(result.dtype)
                start = stop
        return result, None, None, None


@dataclass(frozen=True)
class _NarrowScores:
    """Rows of similar width, padded to the widest by repeating their last token.

    Attributes
    ----------
    row, label, count
        int64 [n].
    tokens
        int64 [n, m], the valid tokens.
    log_probs
        [n, m], their log-probabilities.
    """

    row: torch.Tensor
    label: torch.Tensor
    count: torch.Tensor
    tokens: torch.Tensor
    place: torch.Tensor
    log_probs: torch.Tensor

    def log_prob(self) -> torch.Tensor:
        return self.log_probs.gather(1, self.place[:, None])[:, 0]

    def log_probs_padded(self) -> torch.Tensor:
        """``log_probs`` with -inf for what repeats."""
        return self.log_probs.masked_fill(_beyond(self.count, self.tokens.shape[1]), -torch.inf)

    def is_label(self) -> torch.Tensor:
        """1 where a token is the label: a repeated token is its last one again and gets the same gradient."""
        return (self.tokens == self.label[:, None]).to(self.log_probs.dtype)


def _narrow_scores(logits: torch.Tensor, rows: Narrow, tau: Tau, dtype: torch.dtype) -> Iterator[_NarrowScores]:
    start = 0
    while start < len(rows):
        widest = int(rows.counts[start])
        # Rows at least half as wide as the widest go together, so that padding at most doubles the work.
        stop = int((-rows.counts).searchsorted(-(widest // 2), side="right"))
        stop = min(stop, start + max(1, _CHUNK // widest))
        part = slice(start, stop)
        place = torch.arange(widest, device=logits.device).expand(stop - start, -1)
        count = rows.count[part]
        tokens = rows.tokens[rows.start[part, None] + place.minimum(count[:, None] - 1)]
        scaled = logits[rows.row[part, None], tokens].to(dtype) / tau
        lse = scaled.masked_fill(_beyond(count, widest), -torch.inf).logsumexp(1, keepdim=True)
        yield _NarrowScores(rows.row[part], rows.label[part], count, tokens, rows.place[part], scaled - lse)
        start = stop


def _beyond(count: torch.Tensor, width: int) -> torch.Tensor:
    """[n, width]: whether a column is past the row's ``count``."""
    return torch.arange(width, device=count.device) >= count[:, None]


def _chunks(rows: Wide, width: int) -> Iterator[Wide]:
    step = max(1, _CHUNK // width)
    for start in range(0, len(rows), step):
        yield Wide(rows.row[start : start + step], rows.label[start : start + step])
