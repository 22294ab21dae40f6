# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The log-probability of each row's label over its valid tokens or the vocabulary, with the threshold beside it.

Forward it is one read of the row (:mod:`gentrie.kernels.topb_threshold`); backward another read and one write, with
the gradient that came in applied before anything is rounded.
"""

from __future__ import annotations

from typing import Any

import torch

from gentrie.kernels import _plain
from gentrie.kernels.log_prob_gradient import ROWS, log_prob_gradient_op
from gentrie.kernels.topb_threshold import topb_threshold_op


@torch.library.custom_op(
    "gentrie::label_log_probs",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor labels, {ROWS}, int beam_width) -> (Tensor, Tensor, Tensor)",
)
def label_log_probs_op(
    logits: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
    beam_width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    thresholds, totals = topb_threshold_op(logits, beam_width, rows, indptr, tokens, node, tau)
    if indptr is not None and tokens is None:
        chosen = logits[indptr[:-1] + labels]
    else:
        chosen = logits[torch.arange(len(labels), device=logits.device) if rows is None else rows, labels]
    chosen = chosen.to(totals.dtype)
    if tau is not None:
        hot = tau.to(totals.dtype)
        temperature = hot if node is None else torch.where(node == -2, torch.ones_like(hot), hot)
        chosen = chosen / temperature
        thresholds = thresholds / temperature if beam_width else thresholds
    return chosen - totals, thresholds - totals if beam_width else thresholds, totals


@label_log_probs_op.register_fake
def _(
    logits: torch.Tensor,
    labels: torch.Tensor,
    rows: Any,
    indptr: Any,
    tokens: Any,
    node: Any,
    tau: Any,
    beam_width: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    totals = logits.new_empty(labels.shape[0], dtype=_plain.sum_dtype(logits))
    return torch.empty_like(totals), totals.new_empty(labels.shape[0] if beam_width else 0), totals


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:7], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: torch.Tensor | None, *_: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 8
    *inputs, totals = ctx.saved_tensors
    scales = grad.to(totals.dtype).contiguous()  # that of a sum has stride 0
    return log_prob_gradient_op(*inputs, totals, scales), *(None,) * 7


label_log_probs_op.register_autograd(_backward, setup_context=_setup)


def label_log_probs(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    beam_width: int = 0,
    rows: torch.Tensor | None = None,
    indptr: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    node: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each row's label over its tokens, and the B-th largest one there.

    Differentiable by ``logits`` through the first result, once; the gradient is contiguous, of the logits' dtype, and
    zero in rows and columns that are not meant. Repeated calls give equal bits. On CUDA nothing waits for the device.

    Parameters
    ----------
    logits, rows, indptr, tokens, node, tau
        As in :func:`~gentrie.kernels.topb_threshold.topb_threshold`; every row has a token, no row is meant twice.
    labels
        int64 [n], each a token of its row (in a ragged array: a place in its row). Not looked at.
    beam_width
        B; 0: no thresholds.

    Returns
    -------
    log_prob
        [n]; float64 for float64 logits, else float32.
    log_threshold
        [n], constant to the gradient; [0] for ``beam_width=0``.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    """
    _plain.check_rows(logits, rows, indptr, tokens, node, labels)
    log_prob, log_threshold, _ = label_log_probs_op(logits, labels, rows, indptr, tokens, node, tau, beam_width)
    return log_prob, log_threshold.detach()
