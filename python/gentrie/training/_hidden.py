"""Scores straight from hidden states and the LM head.

The rows are taken in passes: all rows at one wide node, or at a few small nodes together, or all rows scored over the
vocabulary. A pass goes through its tokens in blocks of head rows that fit the caches, one product each, and keeps a
running maximum and sum; with them grows the mean of the head rows under the softmax, which is all that the gradient
with respect to the hidden states needs. So each head row is read once, and no logit is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch

from gentrie.training import _device
from gentrie.training._head import Head
from gentrie.training._rows import Narrow, Scope
from gentrie.training._scores import Scores, Tau, kth_largest

_MOST_ROWS, _MOST_LOGITS = 1024, 1 << 20
"""Most rows in a pass, and most logits in one of its blocks."""


@dataclass(frozen=True)
class HiddenSource:
    """Hidden states [rows, D] and the head that makes logits of them."""

    hidden: torch.Tensor
    head: Head

    @property
    def num_rows(self) -> int:
        return self.hidden.shape[0]

    @property
    def width(self) -> int:
        return self.head.weight.shape[0]

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype_with(self.hidden)

    def score(self, scope: Scope, tau: Tau, beam_width: int | None) -> Scores:
        if len(scope.narrow) and _device.takes(self.hidden):
            scores = _device.score_narrow(self.hidden, self.head, scope.narrow, tau, beam_width)
            if len(scope) == len(scope.narrow):
                return scores
            return scores.followed_by(self._score(_device.without_narrow(scope), tau, beam_width))
        return self._score(scope, tau, beam_width)

    def _score(self, scope: Scope, tau: Tau, beam_width: int | None) -> Scores:
        head = self.head
        apply: Any = _HiddenScores.apply  # typed in new releases of torch only
        log_prob, threshold = apply(
            self.hidden, head.weight, head.bias, head.softcap, head.scale, scope, tau, beam_width
        )
        return Scores(log_prob, None if beam_width is None else threshold)

    def gather(self, rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), full_precision(self.device):
            return self.head.logits(self.hidden[rows].to(self.dtype), *self.head.block(tokens, self.dtype))


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Products in the dtype of their inputs, whatever autocast says outside."""
    return torch.autocast(device.type, enabled=False)


@dataclass(frozen=True)
class _Pass:
    """Rows [n] that go through the same blocks of tokens.

    Attributes
    ----------
    row
        int64 [n], places in the hidden states.
    label
        int64 [n].
    place
        int64 [n], where the label stands among the pass's tokens.
    tokens
        int64 [m], or None for the whole vocabulary.
    start, count
        int64 [n], which of the tokens are the row's; None where all are.
    tau
        Temperature.
    beam_width
        None where no threshold is wanted.
    """

    row: torch.Tensor
    label: torch.Tensor
    place: torch.Tensor
    tokens: torch.Tensor | None
    start: torch.Tensor | None
    count: torch.Tensor | None
    tau: Tau
    beam_width: int | None

    def all_tokens(self, head: Head) -> torch.Tensor | slice | None:
        """The pass's tokens if they make no more than one block."""
        if self.tokens is None:
            return slice(0, head.weight.shape[0]) if head.weight.shape[0] <= head.block_size else None
        return self.tokens if self.tokens.numel() <= head.block_size else None

    def blocks(self, head: Head) -> Iterator[tuple[slice, torch.Tensor | slice]]:
        """Positions among the pass's tokens, and the token ids there."""
        num_tokens = head.weight.shape[0] if self.tokens is None else self.tokens.numel()
        for part in head.blocks(0, num_tokens):
            yield part, part if self.tokens is None else self.tokens[part]

    def scaled(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [n, block] over the temperature, -inf for tokens of other rows."""
        scaled = logits / self.tau
        if self.start is not None and self.count is not None:
            column = torch.arange(logits.shape[1], device=logits.device)
            mine = (column >= self.start[:, None]) & (column < (self.start + self.count)[:, None])
            scaled = scaled.masked_fill_(~mine, -torch.inf)
        return scaled

    def label_in(self, part: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the label stands in a block, as a column, and whether it does."""
        at = self.place - part.start
        return at.clamp(0, part.stop - part.start - 1), (at >= 0) & (at < part.stop - part.start)


def _passes(scope: Scope, head: Head, tau: Tau, beam_width: int | None) -> Iterator[_Pass]:
    """All passes, their rows in the order of ``scope``."""
    yield from _narrow_passes(scope.narrow, head, tau, beam_width)
    step = _most_rows(head)
    for rows, temperature, k in ((scope.wide, tau, beam_width), (scope.free, 1.0, None)):
        for start in range(0, len(rows), step):
            row, label = rows.row[start : start + step], rows.label[start : start + step]
            yield _Pass(row, label, label, None, None, None, temperature, k)


def _narrow_passes(rows: Narrow, head: Head, tau: Tau, beam_width: int | None) -> Iterator[_Pass]:
    """One pass for each wide node, one for several small ones as long as their tokens make one block."""
    most_tokens, most_rows = head.block_size, _most_rows(head)
    node, row = 0, 0
    while node < len(rows.node_rows):
        last, num_tokens, num_rows = node, 0, 0
        while last < len(rows.node_rows) and (
            last == node
            or (num_tokens + rows.node_count[last] <= most_tokens and num_rows + rows.node_rows[last] <= most_rows)
        ):
            num_tokens += int(rows.node_count[last])
            num_rows += int(rows.node_rows[last])
            last += 1
        first = int(rows.node_start[node])
        tokens = rows.tokens[first : first + num_tokens]
        alone = last == node + 1
        for start in range(row, row + num_rows, most_rows):
            part = slice(start, min(start + most_rows, row + num_rows))
            offset = rows.start[part] - first
            yield _Pass(
                rows.row[part],
                rows.label[part],
                rows.place[part] + offset,
                tokens,
                None if alone else offset,
                None if alone else rows.count[part],
                tau,
                beam_width,
            )
        node, row = last, row + num_rows


def _most_rows(head: Head) -> int:
    return max(2, min(_MOST_ROWS, _MOST_LOGITS // head.block_size))


class _HiddenScores(torch.autograd.Function):
    """Log-probabilities and thresholds, and in the same sweep their derivatives by the hidden states."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        softcap: float | None,
        scale: float,
        scope: Scope,
        tau: Tau,
        beam_width: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        head = Head(weight, bias, softcap, scale)
        dtype = head.dtype_with(hidden)
        log_probs, thresholds, lse, slopes = [], [], [], []
        with full_precision(hidden.device):
            for part in _passes(scope, head, tau, beam_width):
                states = hidden.index_select(0, part.row).to(dtype)
                tokens = part.all_tokens(head)
                if tokens is None:
                    sweep = _sweep(part, states, head, ctx.needs_input_grad[0])
                else:
                    sweep = _sweep_one(part, tokens, states, head, ctx.needs_input_grad[0])
                log_probs.append(sweep.log_prob)
                lse.append(sweep.lse)
                if sweep.threshold is not None:
                    thresholds.append(sweep.threshold)
                if sweep.gradient is not None:
                    slopes.append(sweep.gradient)
        empty = hidden.new_zeros(0, dtype=dtype)
        log_prob, threshold = torch.cat([empty, *log_probs]), torch.cat([empty, *thresholds])
        ctx.head, ctx.scope, ctx.tau, ctx.beam_width = (softcap, scale), scope, tau, beam_width
        by_hidden = torch.cat(slopes) if slopes else hidden.new_zeros(0, hidden.shape[1], dtype=dtype)
        ctx.save_for_backward(hidden, weight, bias, torch.cat([empty, *lse]), by_hidden)
        ctx.mark_non_differentiable(threshold)
        return log_prob, threshold

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, lse, by_hidden = ctx.saved_tensors
        scope = ctx.scope
        of_hidden = None
        if ctx.needs_input_grad[0]:
            of_hidden = torch.zeros_like(hidden, memory_format=torch.contiguous_format)
            of_hidden.index_copy_(0, scope.row, (grad[:, None] * by_hidden).to(hidden.dtype))
        of_weight, of_bias = None, None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            head = Head(weight, bias, *ctx.head)
            with full_precision(hidden.device):
                parts = _passes(scope, head, ctx.tau, ctx.beam_width)
                of_weight, of_bias = _head_gradient(parts, hidden, head, lse, grad, *ctx.needs_input_grad[1:3])
        return of_hidden, of_weight, of_bias, None, None, None, None, None


@dataclass
class _Sweep:
    """What one pass gives: vectors over its rows, and ``gradient`` [rows, D] of the log-probability."""

    log_prob: torch.Tensor
    lse: torch.Tensor
    threshold: torch.Tensor | None
    gradient: torch.Tensor | None


def _sweep_one(
    rows: _Pass, tokens: torch.Tensor | slice, hidden: torch.Tensor, head: Head, with_gradient: bool
) -> _Sweep:
    """A pass of one block."""
    weight, bias = head.block(tokens, hidden.dtype)
    logits = head.logits(hidden, weight, bias)
    scaled = rows.scaled(logits)
    lse = scaled.logsumexp(1)
    log_probs = scaled.sub_(lse[:, None])
    place = rows.place[:, None]
    log_prob = log_probs.gather(1, place)[:, 0]
    threshold = None
    if rows.beam_width is not None:
        count = rows.count if rows.count is not None else log_probs.shape[1]
        threshold = kth_largest(log_probs, count, rows.beam_width)
    gradient = None
    if with_gradient:
        values = log_probs.exp_().neg_()
        values.scatter_add_(1, place, torch.ones_like(place, dtype=values.dtype))
        gradient = values.mul_(head.slope(logits)).div_(rows.tau) @ weight
    return _Sweep(log_prob, lse, threshold, gradient)


def _sweep(rows: _Pass, hidden: torch.Tensor, head: Head, with_gradient: bool) -> _Sweep:
    """A pass of several blocks, with a running maximum, sum, top B and mean of the head rows."""
    dtype = hidden.dtype
    num_rows = hidden.shape[0]
    maximum = hidden.new_full((num_rows,), -torch.inf)
    total, chosen = hidden.new_zeros(num_rows), hidden.new_zeros(num_rows)
    chosen_slope: torch.Tensor | float = head.scale
    top = hidden.new_zeros(num_rows, 0)
    mean = torch.zeros_like(hidden) if with_gradient else None
    for part, tokens in rows.blocks(head):
        weight, bias = head.block(tokens, dtype)
        logits = head.logits(hidden, weight, bias)
        scaled = rows.scaled(logits)
        column, inside = rows.label_in(part)
        chosen = torch.where(inside, scaled.gather(1, column[:, None])[:, 0], chosen)
        if rows.beam_width is not None:
            top = torch.cat([top, scaled], dim=1)
            top = top.topk(min(rows.beam_width, top.shape[1]), dim=1).values
        higher = torch.maximum(maximum, scaled.amax(1))
        shrunk = (maximum - higher).exp_()
        weights = (scaled - higher[:, None]).exp_()
        total = total * shrunk + weights.sum(1)
        if mean is not None:
            slope = head.slope(logits)
            if isinstance(slope, torch.Tensor):
                chosen_slope = torch.where(inside, slope.gather(1, column[:, None])[:, 0], chosen_slope)
            mean.mul_(shrunk[:, None]).addmm_(weights * slope, weight)
        maximum = higher
        del weight  # before the next block is gathered
    lse = maximum + total.log()
    gradient = None
    if mean is not None:
        own = head.weight.index_select(0, rows.label).to(dtype)
        own *= chosen_slope[:, None] if isinstance(chosen_slope, torch.Tensor) else chosen_slope
        gradient = own.sub_(mean.div_(total[:, None])).div_(rows.tau)
    threshold = None
    if rows.beam_width is not None:
        count = rows.count if rows.count is not None else top.shape[1]
        threshold = kth_largest(top, count, rows.beam_width) - lse
    return _Sweep(chosen - lse, lse, threshold, gradient)


def _head_gradient(
    passes: Iterator[_Pass],
    hidden: torch.Tensor,
    head: Head,
    lse: torch.Tensor,
    grad: torch.Tensor,
    of_weight: bool,
    of_bias: bool,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Gradients of weight [V, D] and bias [V], row by row added where a token is in some scope."""
    dtype = lse.dtype
    into = torch.zeros_like(head.weight, dtype=dtype) if of_weight else None
    into_bias = torch.zeros_like(head.bias, dtype=dtype) if of_bias and head.bias is not None else None
    start = 0
    for rows in passes:
        stop = start + rows.row.numel()
        states = hidden[rows.row].to(dtype)
        outer = grad[start:stop, None] / rows.tau
        for part, tokens in rows.blocks(head):
            logits = head.logits(states, *head.block(tokens, dtype))
            values = (rows.scaled(logits) - lse[start:stop, None]).exp_().neg_()
            column, inside = rows.label_in(part)
            values.scatter_add_(1, column[:, None], inside[:, None].to(dtype))
            values *= outer * head.slope(logits)
            by_bias = values.sum(0)
            if isinstance(tokens, slice):
                if into is not None:
                    into[tokens].addmm_(values.t(), states)
                if into_bias is not None:
                    into_bias[tokens] += by_bias
            else:
                if into is not None:
                    into.index_add_(0, tokens, values.t() @ states)
                if into_bias is not None:
                    into_bias.index_add_(0, tokens, by_bias)
        start = stop
    return (
        None if into is None else into.to(head.weight.dtype),
        None if into_bias is None or head.bias is None else into_bias.to(head.bias.dtype),
    )
