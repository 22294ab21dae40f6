# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The gradient of the labels' log-probabilities by the logits: one read and one write of a row."""

from __future__ import annotations

from typing import Any

import torch

from gentrie.kernels import _plain
from gentrie.kernels._launch import on_device, usable
from gentrie.kernels._scan_rows import row_span, row_tau
from gentrie.kernels._triton import tl, triton
from gentrie.kernels._write_rows import BLOCK, NARROW, fill_zeros, write_row

ROWS = "Tensor? rows, Tensor? indptr, Tensor? tokens, Tensor? node, Tensor? tau"
"""The arguments that say which logits are meant, in a schema."""


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


log_prob_gradient_op = torch.library.custom_op(
    "gentrie::log_prob_gradient",
    _plain_gradient,
    mutates_args=(),
    device_types="cpu",
    schema=f"(Tensor logits, Tensor labels, {ROWS}, Tensor totals, Tensor scales) -> Tensor",
)


@log_prob_gradient_op.register_kernel("cuda")
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


@log_prob_gradient_op.register_fake
def _(logits: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
