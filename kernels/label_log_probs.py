# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The log-probability of each row's label over its valid tokens or the vocabulary, with the threshold beside it.

Forward it is one read of the row (:mod:`gentrie.kernels.topb_threshold`); backward another read and one write, with
the gradient that came in applied before anything is rounded.
"""

from __future__ import annotations

from typing import Any

import torch

from gentrie.kernels import _plain
from gentrie.kernels._launch import on_device, usable
from gentrie.kernels._triton import tl, triton
from gentrie.kernels.topb_threshold import row_span, row_tau, topb_threshold_op

BLOCK, NARROW = 4096, 512
"""Columns, and valid tokens, that a program takes at a time."""

_ROWS = "Tensor? rows, Tensor? indptr, Tensor? tokens, Tensor? node, Tensor? tau"


@triton.jit
def fill_zeros(into, stride, low, high, BLOCK: tl.constexpr):
    """Zero the columns low to high."""
    lane = tl.arange(0, BLOCK)
    zeros = tl.zeros((BLOCK,), into.dtype.element_ty)
    for begin in range(low // BLOCK * BLOCK, high, BLOCK):
        pointers = into + begin * stride + lane.to(tl.int64) * stride
        if (begin >= low) & (begin + BLOCK <= high):
            tl.store(pointers, zeros)
        else:
            tl.store(pointers, zeros, mask=(begin + lane >= low) & (begin + lane < high))


@triton.jit
def slope(x, is_label, logsumexp, scale, inverse):
    """``scale`` times the derivative of the label's log-probability by the scaled logits, ``x * inverse``."""
    return scale * (tl.where(is_label, 1.0, 0.0) - tl.exp2((x * inverse - logsumexp) * 1.4426950408889634))


@triton.jit
def write_columns(
    at,
    column_stride,
    into,
    into_stride,
    count,
    label,
    logsumexp,
    scale,
    inverse,
    BLOCK: tl.constexpr,
    SUM: tl.constexpr,
):
    """The gradient of columns 0 to count."""
    lane = tl.arange(0, BLOCK)
    source, target = at + lane.to(tl.int64) * column_stride, into + lane.to(tl.int64) * into_stride
    for begin in range(0, count, BLOCK):
        inside = lane < (count - begin).to(tl.int32)
        x = tl.load(source + begin * column_stride, mask=inside, other=0.0).to(SUM)
        values = slope(x, lane == (label - begin).to(tl.int32), logsumexp, scale, inverse)
        tl.store(target + begin * into_stride, values.to(into.dtype.element_ty), mask=inside)


@triton.jit
def write_tokens(
    at,
    column_stride,
    into,
    into_stride,
    tokens,
    width,
    count,
    label,
    logsumexp,
    scale,
    inverse,
    BLOCK: tl.constexpr,
    NARROW: tl.constexpr,
    SUM: tl.constexpr,
):
    """The gradient of the columns ``tokens[0:count]``, and zeros in all others; ``into`` may be the logits themselves.

    As tokens ascend, the j-th stands in column j or behind: values go to column j first, before any later token is
    overwritten, and then, from the last block of tokens to the first, to their own columns.
    """
    lane = tl.arange(0, NARROW)
    for begin in range(0, count, NARROW):
        inside = begin + lane < count
        column = tl.load(tokens + begin + lane, mask=inside, other=0).to(tl.int64)
        x = tl.load(at + column * column_stride, mask=inside, other=0.0).to(SUM)
        values = slope(x, column == label, logsumexp, scale, inverse).to(into.dtype.element_ty)
        tl.debug_barrier()
        tl.store(into + (begin + lane).to(tl.int64) * into_stride, values, mask=inside)
    high = count * 0 + width
    for step in range(0, count, NARROW):
        begin = (count - 1) // NARROW * NARROW - step
        inside = begin + lane < count
        column = tl.load(tokens + begin + lane, mask=inside, other=0).to(tl.int64)
        tl.debug_barrier()
        values = tl.load(into + (begin + lane).to(tl.int64) * into_stride, mask=inside)
        low = tl.load(tokens + begin).to(tl.int64)
        tl.debug_barrier()
        fill_zeros(into, into_stride, low, high, BLOCK)
        tl.debug_barrier()
        tl.store(into + column * into_stride, values, mask=inside)
        high = low
    fill_zeros(into, into_stride, tl.zeros((), tl.int64), high, BLOCK)


@triton.jit
def write_row(
    at,
    column_stride,
    into,
    into_stride,
    tokens,
    width,
    start,
    count,
    kind,
    label,
    logsumexp,
    scale,
    tau,
    GATHERS: tl.constexpr,
    BLOCK: tl.constexpr,
    NARROW: tl.constexpr,
    SUM: tl.constexpr,
):
    """One row of the gradient: ``scale / tau`` times that of the label's log-probability."""
    inverse = 1.0 / tau
    scale = scale * inverse
    if GATHERS:
        if kind >= 0:
            write_tokens(
                at,
                column_stride,
                into,
                into_stride,
                tokens + start,
                width,
                count,
                label,
                logsumexp,
                scale,
                inverse,
                BLOCK,
                NARROW,
                SUM,
            )
        else:
            write_columns(at, column_stride, into, into_stride, count, label, logsumexp, scale, inverse, BLOCK, SUM)
    else:
        write_columns(at, column_stride, into, into_stride, count, label, logsumexp, scale, inverse, BLOCK, SUM)


@triton.jit
def log_prob_gradient_kernel(
    logits,
    row_stride,
    column_stride,
    into,
    into_row_stride,
    into_column_stride,
    labels,
    slots,
    indptr,
    tokens,
    node,
    tau,
    totals,
    scales,
    width,
    HAS_SLOTS: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    GATHERS: tl.constexpr,
    HAS_NODE: tl.constexpr,
    HAS_TAU: tl.constexpr,
    BLOCK: tl.constexpr,
    NARROW: tl.constexpr,
    SUM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    i = row
    if HAS_SLOTS:
        i = tl.load(slots + row)
    if i >= 0:
        start, count, kind = row_span(i, indptr, node, width, HAS_SPANS, HAS_NODE)
        if HAS_SPANS and not GATHERS:
            at, target = logits + start * column_stride, into + start * into_column_stride
        else:
            at, target = logits + row * row_stride, into + row * into_row_stride
        write_row(
            at,
            column_stride,
            target,
            into_column_stride,
            tokens,
            width,
            start,
            count,
            kind,
            tl.load(labels + i),
            tl.load(totals + i),
            tl.load(scales + i),
            row_tau(tau, kind, HAS_TAU, SUM),
            GATHERS,
            BLOCK,
            NARROW,
            SUM,
        )
    else:
        fill_zeros(into + row * into_row_stride, into_column_stride, row * 0, row * 0 + width, BLOCK)


def launch_log_prob_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
    totals: torch.Tensor,
    scales: torch.Tensor,
    into: torch.Tensor,
) -> None:
    """Fill ``into``, all rows of it; ``scales`` [n] is the gradient by the log-probabilities."""
    packed = indptr is not None and tokens is None
    num_programs = totals.numel() if packed else logits.shape[0]
    if num_programs == 0 or logits.numel() == 0:
        return
    with on_device(logits):
        log_prob_gradient_kernel[(num_programs,)](
            logits,
            0 if packed else logits.stride(0),
            logits.stride(-1),
            into,
            0 if packed else into.stride(0),
            into.stride(-1),
            labels,
            None if rows is None else _plain.slots(rows, logits.shape[0]),
            indptr,
            tokens,
            node,
            tau,
            totals,
            scales,
            logits.shape[-1],
            HAS_SLOTS=rows is not None,
            HAS_SPANS=indptr is not None,
            GATHERS=tokens is not None,
            HAS_NODE=node is not None,
            HAS_TAU=tau is not None,
            BLOCK=1024 if packed else BLOCK,
            NARROW=NARROW,
            SUM=tl.float64 if totals.dtype == torch.float64 else tl.float32,
            num_warps=4 if packed else 8,
        )


def _plain_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
    totals: torch.Tensor,
    scales: torch.Tensor,
) -> torch.Tensor:
    into = torch.zeros_like(logits, memory_format=torch.contiguous_format)
    for block in _plain.blocks(logits, rows, indptr, tokens, node):
        temperature = _plain.temperatures(block.at, node, tau, totals.dtype)
        log_probs = block.pick(logits, totals.dtype) / temperature - totals[block.at, None]
        is_label = block.is_label(labels).to(totals.dtype)
        block.put((is_label - log_probs.exp()) * (scales[block.at, None] / temperature), into)
    return into


_gradient_op = torch.library.custom_op(
    "gentrie::log_prob_gradient",
    _plain_gradient,
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor logits, Tensor labels, {_ROWS}, Tensor totals, Tensor scales) -> Tensor",
)


@_gradient_op.register_kernel("cuda")
def _cuda_gradient(
    logits: torch.Tensor,
    labels: torch.Tensor,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
    totals: torch.Tensor,
    scales: torch.Tensor,
) -> torch.Tensor:
    if not usable():
        return _plain_gradient(logits, labels, rows, indptr, tokens, node, tau, totals, scales)
    into = torch.empty_like(logits, memory_format=torch.contiguous_format)
    launch_log_prob_gradient(logits, labels, rows, indptr, tokens, node, tau, totals, scales, into)
    return into


@_gradient_op.register_fake
def _(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "gentrie::label_log_probs",
    mutates_args=(),
    schema=f"(Tensor logits, Tensor labels, {_ROWS}, int beam_width) -> (Tensor, Tensor, Tensor)",
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
    return _gradient_op(*inputs, totals, grad.to(totals.dtype)), *(None,) * 7


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
