"""Scores from logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gentrie import _core
from gentrie.training import _device
from gentrie.training._rows import Narrow, Scope, Wide
from gentrie.training._scores import Scores, Tau, kth_largest, sum_dtype

_CHUNK = 1 << 20
"""Most logits that are held at a time beside those given."""

_SMALL = 1 << 13
"""So few logits cost less than the calls that handle them."""


@dataclass(frozen=True)
class LogitsSource:
    """Logits [rows, width]; ``inplace``: their gradient may take their place."""

    logits: torch.Tensor
    inplace: bool = False

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

    @property
    def is_taken(self) -> bool:
        """Whether kernels take the logits."""
        return _device.takes(self.logits)

    @property
    def in_one_pass(self) -> bool:
        """Whether :meth:`lose` can be called: for a gradient, and in float16 none may underflow before it is scaled."""
        wanted = self.logits.requires_grad and torch.is_grad_enabled() and self.logits.dtype != torch.float16
        return wanted and self.is_taken

    def score(self, scope: Scope, tau: Tau, beam_width: int | None) -> Scores:
        if self.is_taken:
            return _device.score_logits(self.logits, scope, tau, beam_width)
        apply: Any = _LogitsScores.apply  # typed in new releases of torch only
        log_prob, threshold = apply(self.logits, scope, tau, beam_width, self.inplace)
        return Scores(log_prob, None if beam_width is None else threshold)

    def lose(self, scope: Scope, tau: Tau, how: _device.OnePass, weights: torch.Tensor) -> tuple[torch.Tensor, Scores]:
        """Losses [n] times ``weights``, their gradient computed at once, and scores outside the graph."""
        return _device.lose_logits(self.logits, scope, tau, how, weights, self.inplace)

    def gather(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits.detach()[rows[:, None], tokens].to(self.dtype)


class _LogitsScores(torch.autograd.Function):
    """Log-probabilities and thresholds; the gradient's rows are written once, and only where tokens are valid."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, scope: Scope, tau: Tau, beam_width: int | None, inplace: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = sum_dtype(logits)
        empty = logits.new_zeros(0, dtype=dtype)
        log_probs, thresholds, lse, blocks = [empty], [empty], [empty], []
        for part in _narrow_blocks(scope.narrow, logits.shape[1]):
            scaled = _divided(_pick(logits, part).to(dtype), tau)
            valid = scaled if part.beyond is None else scaled.masked_fill(part.beyond, -torch.inf)
            total = valid.logsumexp(1)
            log_probs.append(scaled.gather(1, part.place[:, None])[:, 0] - total)
            if beam_width is not None:
                thresholds.append(kth_largest(valid, part.count, beam_width) - total)
            if ctx.needs_input_grad[0]:
                blocks.append((part, scaled.sub_(total[:, None])))
        for rows, temperature, k in ((scope.wide, tau, beam_width), (scope.free, 1.0, None)):
            for chunk in _chunks(rows, logits.shape[1]):
                scaled = _divided(logits.index_select(0, chunk.row).to(dtype), temperature)
                total = scaled.logsumexp(1)
                lse.append(total)
                log_probs.append(scaled.gather(1, chunk.label[:, None])[:, 0] - total)
                if k is not None:
                    thresholds.append(kth_largest(scaled, scaled.shape[1], k) - total)
        threshold = torch.cat(thresholds)
        ctx.scope, ctx.tau, ctx.blocks = scope, tau, blocks
        ctx.inplace = inplace and logits.is_contiguous()
        ctx.save_for_backward(logits, torch.cat(lse))
        ctx.mark_non_differentiable(threshold)
        return torch.cat(log_probs), threshold

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None]:
        logits, lse = ctx.saved_tensors
        scope = ctx.scope
        result = _emptied(logits, scope) if ctx.inplace else _zeros_like(logits)
        by_narrow, by_wide = _divided(grad[: len(scope.narrow)], ctx.tau), grad[len(scope.narrow) :]
        start = 0
        for part, log_probs in ctx.blocks:
            stop = start + len(part.row)
            values = (part.is_label().to(lse.dtype) - log_probs.exp()) * by_narrow[start:stop, None]
            result.view(-1)[part.flat.view(-1)] = values.to(result.dtype).view(-1)
            start = stop
        start = 0
        for rows, temperature in ((scope.wide, ctx.tau), (scope.free, 1.0)):
            for chunk in _chunks(rows, logits.shape[1]):
                stop = start + len(chunk)
                values = _divided(logits.index_select(0, chunk.row).to(lse.dtype), temperature)
                values = values.sub_(lse[start:stop, None]).exp_().neg_()
                values.scatter_add_(1, chunk.label[:, None], torch.ones_like(values[:, :1]))
                values *= _divided(by_wide[start:stop], temperature)[:, None]
                result.index_copy_(0, chunk.row, values.to(result.dtype))
                start = stop
        return result, None, None, None, None


@dataclass(frozen=True)
class _NarrowBlock:
    """Rows of similar width, padded to the widest by repeating their last token.

    Attributes
    ----------
    row, count, place
        int64 [n].
    flat
        int64 [n, m], where each logit is in the flattened logits.
    flat_label
        int64 [n], where the label's is.
    beyond
        bool [n, m], whether a column only repeats; None where none does.
    """

    row: torch.Tensor
    count: torch.Tensor
    place: torch.Tensor
    flat: torch.Tensor
    flat_label: torch.Tensor
    beyond: torch.Tensor | None

    def is_label(self) -> torch.Tensor:
        """True where a token is the label: a repeated token is its last one again and gets the same gradient."""
        return self.flat == self.flat_label[:, None]


def _narrow_blocks(rows: Narrow, width: int) -> Iterator[_NarrowBlock]:
    start = 0
    while start < len(rows):
        widest = int(rows.counts[start])
        # Rows at least half as wide as the widest go together, so that padding at most doubles the work; more of them
        # where the work is next to nothing. Counts descend.
        stop = int((-rows.counts).searchsorted(-(widest // 2), side="right"))
        stop = min(max(stop, start + _SMALL // widest), start + max(1, _CHUNK // widest), len(rows))
        part = slice(start, stop)
        count, first, row = rows.count[part, None], rows.start[part, None], rows.row[part]
        place = torch.arange(widest, device=row.device)
        offset = (row * width)[:, None]
        if rows.counts[stop - 1] == widest:
            beyond, tokens = None, rows.tokens[first + place]
        else:
            beyond, tokens = place >= count, rows.tokens[first + place.minimum(count - 1)]
        flat_label = rows.label[part] + row * width
        yield _NarrowBlock(row, count[:, 0], rows.place[part], tokens + offset, flat_label, beyond)
        start = stop


def _pick(logits: torch.Tensor, block: _NarrowBlock) -> torch.Tensor:
    """The logits [n, m] of a block; by one flat index where that needs no copy, which is twice as fast."""
    if logits.is_contiguous():
        return logits.view(-1).index_select(0, block.flat.view(-1)).view(block.flat.shape)
    return logits[block.row[:, None], block.flat - (block.row * logits.shape[1])[:, None]]


def _zeros_like(logits: torch.Tensor) -> torch.Tensor:
    """Contiguous zeros. Filling is most of the work of a backward pass; the core's takes two thirds of torch's time."""
    if logits.device.type != "cpu":
        return torch.zeros_like(logits, memory_format=torch.contiguous_format)
    zeros = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _core.write_zeros(zeros.data_ptr(), zeros.nbytes)
    return zeros


def _emptied(logits: torch.Tensor, scope: Scope) -> torch.Tensor:
    """The logits themselves, zero in all rows but those scored over the vocabulary, which are read once more."""
    others = torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
    others[scope.wide.row] = False
    others[scope.free.row] = False
    result = logits.detach()
    result[others] = 0
    return result


def _divided(values: torch.Tensor, tau: Tau) -> torch.Tensor:
    return values if isinstance(tau, float) and tau == 1.0 else values / tau


def _chunks(rows: Wide, width: int) -> Iterator[Wide]:
    step = max(1, _CHUNK // width)
    for start in range(0, len(rows), step):
        yield Wide(rows.row[start : start + step], rows.label[start : start + step])
