# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""BEAR's loss and its gradient from logits, by one read and one write of a row.

BEAR (SIGIR 2026, arXiv 2601.22925, eq. 3.4 and 3.5); :mod:`gentrie.kernels.bear_loss_rows` has the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gentrie.kernels import _plain
from gentrie.kernels._launch import usable
from gentrie.kernels._scan_rows import MOST_RANKS, ranks
from gentrie.kernels.bear_loss_rows import BearLosses, launch_bear_loss
from gentrie.kernels.scale_rows import scale_rows, scale_rows_op

_ARGUMENTS = (
    "Tensor labels, Tensor? rows, Tensor? indptr, Tensor? tokens, Tensor? node, Tensor? tau, Tensor? weights, "
    "int beam_width, float reg_weight, float reg_temperature, str form, str sign"
)


def _plain_bear_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
    weights: torch.Tensor | None,
    beam_width: int,
    reg_weight: float,
    reg_temperature: float,
    form: str,
    sign: str,
    into: torch.Tensor,
    results: BearLosses,
) -> None:
    """:func:`launch_bear_loss` in plain torch."""
    for result in results:
        result.zero_()
    untouched = torch.ones(logits.shape[0], dtype=torch.bool, device=logits.device)
    dtype = results.losses.dtype
    for block in _plain.blocks(logits, rows, indptr, tokens, node):
        temperature = _plain.temperatures(block.at, node, tau, dtype)
        scaled = block.pick(logits, dtype) / temperature
        log_probs = scaled - scaled.logsumexp(1, keepdim=True)
        is_label = block.is_label(labels)
        chosen = log_probs.masked_fill(~is_label, 0.0).sum(1)
        threshold = _plain.kth_largest(log_probs, block.count, beam_width)
        margin = (threshold - chosen) / reg_temperature
        of_row = torch.full_like(margin, reg_weight)
        if node is not None:
            of_row = of_row.masked_fill(node[block.at] == -2, 0.0)
        pressure = of_row * torch.sigmoid(-margin)
        if sign == "negative":
            losses, scale = -of_row * torch.nn.functional.logsigmoid(margin), pressure / reg_temperature
        elif form == "reweighted":
            losses, scale = -(1 + pressure) * chosen, -(1 + pressure)
        else:
            losses = of_row * torch.nn.functional.logsigmoid(margin) - chosen
            scale = -(1 + pressure / reg_temperature)
        if weights is not None:
            weight = weights[block.at].to(dtype)
            losses, scale = losses * weight, scale * weight
        # A row with one valid token is no choice, whatever its logit.
        counts = torch.ones_like(block.count, dtype=torch.bool) if block.column is None else block.count > 1
        for result, values in zip(results, (losses, chosen, threshold), strict=True):
            result[block.at] = values.masked_fill(~counts, 0.0)
        gradient = (is_label.to(dtype) - log_probs.exp()) * scale[:, None] / temperature
        assert block.row is not None
        if block.column is not None:
            into[block.row] = 0
        block.put(gradient.masked_fill(~counts[:, None], 0.0), into)
        untouched[block.row] = False
    into[untouched] = 0


def _empty_results(logits: torch.Tensor, labels: torch.Tensor) -> BearLosses:
    dtype = _plain.sum_dtype(logits)
    return BearLosses(*(logits.new_empty(labels.shape[0], dtype=dtype) for _ in range(3)))


def _run(logits: torch.Tensor, labels: torch.Tensor, *arguments: Any, into: torch.Tensor) -> BearLosses:
    """Losses, and the gradient in ``into``, wherever the logits are."""
    results = _empty_results(logits, labels)
    kernel = logits.is_cuda and usable() and ranks(arguments[6], logits.shape[1]) <= MOST_RANKS
    run: Callable[..., None] = launch_bear_loss if kernel else _plain_bear_loss
    run(logits, labels, *arguments, into, results)
    return results


@torch.library.custom_op(
    "gentrie::bear_loss",
    mutates_args=(),
    schema=f"(Tensor logits, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
def bear_loss_op(
    logits: torch.Tensor, labels: torch.Tensor, *arguments: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    into = torch.empty_like(logits, memory_format=torch.contiguous_format)
    return *_run(logits, labels, *arguments, into=into), into


@bear_loss_op.register_fake
def _(
    logits: torch.Tensor, labels: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    return *_empty_results(logits, labels), torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(output[3], inputs[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 13
    gradient, rows = ctx.saved_tensors
    return scale_rows_op(gradient, rows, grad.contiguous()), *(None,) * 12


bear_loss_op.register_autograd(_backward, setup_context=_setup)


class _Eager(torch.autograd.Function):
    """Outside torch.compile: the gradient is kept in one buffer, which may be the logits', and scaled there.

    A second backward computes it again.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, inplace: bool, *arguments: Any
    ) -> tuple[torch.Tensor, ...]:
        values = logits.detach()
        into = values if inplace else torch.empty_like(values, memory_format=torch.contiguous_format)
        results = _run(values, labels, *arguments, into=into)
        if inplace:
            torch.autograd.graph.increment_version(logits)
        ctx.gradient, ctx.inplace, ctx.numbers = into, inplace, arguments[6:]
        ctx.save_for_backward(None if inplace else logits, labels, *arguments[:6])
        ctx.mark_non_differentiable(*results[1:])
        return tuple(results)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        logits, labels, rows, *others = ctx.saved_tensors
        gradient, ctx.gradient = ctx.gradient, None
        if gradient is None and ctx.inplace:
            raise RuntimeError("bear_loss(..., inplace_backward=True) has one backward: it gave its gradient away")
        if gradient is None:
            gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
            _run(logits, labels, rows, *others, *ctx.numbers, into=gradient)
        scale_rows(gradient, rows, grad.contiguous())
        return gradient, *(None,) * 13


def bear_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    beam_width: int = 10,
    reg_weight: float = 1.0,
    reg_temperature: float = 1.0,
    form: str = "regularized",
    sign: str = "positive",
    weights: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    indptr: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    node: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
    inplace_backward: bool = False,
) -> BearLosses:
    """BEAR's token losses, their gradient computed in the same pass.

    The formulas are those of :func:`gentrie.training.bear_loss`. The gradient of the sum of ``losses`` is the one
    logits-sized tensor beside the logits, in their dtype and contiguous; what comes in from behind multiplies it row by
    row in place, which costs nothing where it is 1 (under torch.compile into a second tensor). Repeated calls give
    equal bits. On CUDA nothing waits for the device.

    Parameters
    ----------
    logits
        float16, bfloat16, float32 or float64 [N, V] of any strides. (float16 gradients may underflow before a loss
        scale reaches them: :func:`~gentrie.kernels.label_log_probs.label_log_probs` applies it first.)
    labels, rows, indptr, tokens, node, tau
        As in :func:`~gentrie.kernels.label_log_probs.label_log_probs`. A row of one valid token is 0 in value and
        gradient; rows of node -2 are plain cross entropy, and 0 under the negative sign.
    beam_width
        B, at least 1.
    reg_weight, reg_temperature, form, sign
        As in :func:`gentrie.training.bear_loss`.
    weights
        [n], factors of the losses; default ones.
    inplace_backward
        The logits hold their gradient after the call, and nothing of their size is allocated; autograd refuses the
        backward of any other operation that saved them. Without effect under torch.compile.

    Raises
    ------
    ValueError
        For shapes that do not fit, and an unknown form or sign.
    RuntimeError
        By a second backward of one graph under ``inplace_backward``.
    """
    _plain.check_rows(logits, rows, indptr, tokens, node, labels)
    if logits.dim() != 2:
        raise ValueError(f"logits has shape {tuple(logits.shape)}, expected [rows, vocabulary]")
    if beam_width < 1:
        raise ValueError(f"beam_width={beam_width} is below 1")
    if form not in ("regularized", "reweighted") or sign not in ("positive", "negative"):
        raise ValueError(f"form={form!r}, sign={sign!r}: expected regularized or reweighted, positive or negative")
    if weights is not None and weights.shape != labels.shape:
        raise ValueError(f"weights has shape {tuple(weights.shape)}, expected {list(labels.shape)}")
    arguments = (
        rows,
        indptr,
        tokens,
        node,
        tau,
        weights,
        beam_width,
        reg_weight,
        reg_temperature,
        form,
        sign,
    )
    if torch.compiler.is_compiling():
        losses, log_probs, log_thresholds, _ = bear_loss_op(logits, labels, *arguments)
    else:
        losses, log_probs, log_thresholds = _Eager.apply(logits, labels, inplace_backward, *arguments)
    return BearLosses(losses, log_probs.detach(), log_thresholds.detach())
