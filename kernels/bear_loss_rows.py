# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The kernel of BEAR's loss: one program takes one row.

It reads the row for the logsumexp and the B-th largest logit, and again, from the L2 cache, to write its gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from gentrie.kernels import _plain
from gentrie.kernels._launch import on_device
from gentrie.kernels._scan_rows import ranks, row_span, row_tau, scan_row
from gentrie.kernels._triton import tl, triton
from gentrie.kernels._write_rows import BLOCK, NARROW, fill_zeros, write_row


@triton.jit
def log_sigmoid(x):
    """Of a number of any size; ``log(1 + e)`` without the loss of small e."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    return tl.minimum(x, 0.0) - tl.where(u == 1.0, e, tl.log(u) * (e / (u - 1.0)))


@triton.jit
def sigmoid(x):
    """Of a number of any size."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def bear_loss_kernel(
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
    weights,
    regulariser,
    losses,
    log_probs,
    log_thresholds,
    width,
    beam_width,
    HAS_SLOTS: tl.constexpr,
    GATHERS: tl.constexpr,
    HAS_NODE: tl.constexpr,
    HAS_TAU: tl.constexpr,
    HAS_WEIGHTS: tl.constexpr,
    REWEIGHTED: tl.constexpr,
    NEGATIVE: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    NARROW: tl.constexpr,
    GROUP: tl.constexpr,
    SUM: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at, target = logits + row * row_stride, into + row * into_row_stride
    i = row
    if HAS_SLOTS:
        i = tl.load(slots + row)
    scored = i >= 0
    start, count, kind = row * 0, row * 0, row * 0
    if scored:
        start, count, kind = row_span(i, indptr, node, width, GATHERS, HAS_NODE)
        scored = (kind < 0) | (count > 1)
        if not scored:
            nothing = tl.zeros((), SUM)
            tl.store(losses + i, nothing)
            tl.store(log_probs + i, nothing)
            tl.store(log_thresholds + i, nothing)
    if scored:
        label = tl.load(labels + i)
        temperature = row_tau(tau, kind, HAS_TAU, SUM)
        chosen = tl.load(at + label * column_stride).to(SUM)
        logsumexp, threshold = scan_row(
            at,
            column_stride,
            tokens,
            start,
            count,
            kind,
            beam_width,
            temperature,
            GATHERS,
            RANKS,
            BLOCK,
            NARROW,
            GROUP,
            SUM,
        )
        reg_weight, reg_temperature = tl.load(regulariser), tl.load(regulariser + 1)
        log_prob = chosen / temperature - logsumexp
        margin = (threshold - chosen) / temperature / reg_temperature
        if kind == -2:
            reg_weight = reg_weight * 0.0
        pressure = reg_weight * sigmoid(-margin)
        if NEGATIVE:
            loss = -reg_weight * log_sigmoid(margin)
            scale = pressure / reg_temperature
        elif REWEIGHTED:
            loss = -(1.0 + pressure) * log_prob
            scale = -(1.0 + pressure)
        else:
            loss = reg_weight * log_sigmoid(margin) - log_prob
            scale = -(1.0 + pressure / reg_temperature)
        if HAS_WEIGHTS:
            weight = tl.load(weights + i).to(SUM)
            loss = loss * weight
            scale = scale * weight
        tl.store(losses + i, loss)
        tl.store(log_probs + i, log_prob)
        tl.store(log_thresholds + i, threshold / temperature - logsumexp)
        tl.debug_barrier()
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
            label,
            logsumexp,
            scale,
            temperature,
            GATHERS,
            BLOCK,
            NARROW,
            SUM,
        )
    else:
        fill_zeros(target, into_column_stride, row * 0, row * 0 + width, BLOCK)


class BearLosses(NamedTuple):
    """What :func:`bear_loss` gives: vectors [n], float64 for float64 logits, else float32.

    Attributes
    ----------
    losses
        Times their weights; differentiable.
    log_probs, log_thresholds
        Of the label, and the B-th largest of its scope; constant to the gradient.
    """

    losses: torch.Tensor
    log_probs: torch.Tensor
    log_thresholds: torch.Tensor


def launch_bear_loss(
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
    """Fill ``results``, and ``into`` (which may be the logits) with the gradient of the sum of the losses."""
    num_rows, width = logits.shape
    if num_rows == 0:
        return
    dtype = results.losses.dtype
    # By fills, not from the host: a copy would wait for the device, and a kernel's own numbers are float32.
    regulariser = torch.empty(2, dtype=dtype, device=logits.device)
    regulariser[0].fill_(reg_weight)
    regulariser[1].fill_(reg_temperature)
    with on_device(logits):
        bear_loss_kernel[(num_rows,)](
            logits,
            logits.stride(0),
            logits.stride(1),
            into,
            into.stride(0),
            into.stride(1),
            labels,
            None if rows is None else _plain.slots(rows, num_rows),
            indptr,
            tokens,
            node,
            tau,
            weights,
            regulariser,
            results.losses,
            results.log_probs,
            results.log_thresholds,
            width,
            beam_width,
            HAS_SLOTS=rows is not None,
            GATHERS=tokens is not None,
            HAS_NODE=node is not None,
            HAS_TAU=tau is not None,
            HAS_WEIGHTS=weights is not None,
            REWEIGHTED=form == "reweighted",
            NEGATIVE=sign == "negative",
            RANKS=ranks(beam_width, width),
            BLOCK=BLOCK,
            NARROW=NARROW,
            GROUP=16 // logits.element_size(),
            SUM=tl.float64 if dtype == torch.float64 else tl.float32,
            num_warps=8,
        )
