# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The B-th largest logit of each row and the logsumexp, by one read of the row.

BEAR's threshold (SIGIR 2026, arXiv 2601.22925, eq. 3.4) is the B-th largest log-probability of a row; with the two
numbers here it is ``threshold / tau - logsumexp``. One program takes one row.
"""

from __future__ import annotations

import torch

from gentrie.kernels import _plain
from gentrie.kernels._launch import on_device, usable
from gentrie.kernels._scan_rows import MOST_RANKS, ranks, row_span, row_tau, scan_row
from gentrie.kernels._triton import power_of_two, tl, triton

_SCHEMA = (
    "(Tensor logits, int beam_width, Tensor? rows, Tensor? indptr, Tensor? tokens, Tensor? node, Tensor? tau) "
    "-> (Tensor, Tensor)"
)


@triton.jit
def topb_threshold_kernel(
    logits,
    row_stride,
    column_stride,
    rows,
    indptr,
    tokens,
    node,
    tau,
    thresholds,
    totals,
    width,
    beam_width,
    HAS_ROWS: tl.constexpr,
    HAS_SPANS: tl.constexpr,
    GATHERS: tl.constexpr,
    HAS_NODE: tl.constexpr,
    HAS_TAU: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    NARROW: tl.constexpr,
    GROUP: tl.constexpr,
    SUM: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64)
    start, count, kind = row_span(i, indptr, node, width, HAS_SPANS, HAS_NODE)
    if HAS_SPANS and not GATHERS:
        at = logits + start * column_stride
    elif HAS_ROWS:
        at = logits + tl.load(rows + i).to(tl.int64) * row_stride
    else:
        at = logits + i * row_stride
    temperature = row_tau(tau, kind, HAS_TAU, SUM)
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
    tl.store(totals + i, logsumexp)
    if RANKS > 0:
        tl.store(thresholds + i, threshold)


def launch_topb_threshold(
    logits: torch.Tensor,
    beam_width: int,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
    thresholds: torch.Tensor,
    totals: torch.Tensor,
) -> None:
    """Fill ``thresholds`` and ``totals`` [n]; the other arguments as in :func:`topb_threshold`."""
    num_rows, width = totals.numel(), logits.shape[-1]
    if num_rows == 0:
        return
    packed = indptr is not None and tokens is None
    block = min(4096, max(128, power_of_two(width))) if not packed else 1024
    with on_device(logits):
        topb_threshold_kernel[(num_rows,)](
            logits,
            0 if packed else logits.stride(0),
            logits.stride(-1),
            rows,
            indptr,
            tokens,
            node,
            tau,
            thresholds,
            totals,
            width,
            beam_width,
            HAS_ROWS=rows is not None,
            HAS_SPANS=indptr is not None,
            GATHERS=tokens is not None,
            HAS_NODE=node is not None,
            HAS_TAU=tau is not None,
            RANKS=ranks(beam_width, width),
            BLOCK=block,
            NARROW=512,
            GROUP=16 // logits.element_size(),
            SUM=tl.float64 if totals.dtype == torch.float64 else tl.float32,
            num_warps=8 if block == 4096 else 4,
        )


@torch.library.custom_op("gentrie::topb_threshold", mutates_args=(), device_types="cpu", schema=_SCHEMA)
def topb_threshold_op(
    logits: torch.Tensor,
    beam_width: int,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    found: tuple[torch.Tensor, torch.Tensor] = _plain.topb_threshold(
        logits, beam_width, rows, indptr, tokens, node, tau
    )
    return found


@topb_threshold_op.register_kernel("cuda")
def _topb_threshold_cuda(
    logits: torch.Tensor,
    beam_width: int,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if not usable() or ranks(beam_width, logits.shape[-1]) > MOST_RANKS:
        plain: tuple[torch.Tensor, torch.Tensor] = _plain.topb_threshold(
            logits, beam_width, rows, indptr, tokens, node, tau
        )
        return plain
    thresholds, totals = _outputs(logits, beam_width, rows, indptr, tokens, node, tau)
    launch_topb_threshold(logits, beam_width, rows, indptr, tokens, node, tau, thresholds, totals)
    return thresholds, totals


@topb_threshold_op.register_fake
def _outputs(
    logits: torch.Tensor,
    beam_width: int,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows = _plain.num_rows(logits, rows, indptr, tokens)
    totals = logits.new_empty(num_rows, dtype=_plain.sum_dtype(logits))
    return totals.new_empty(num_rows if beam_width else 0), totals


def topb_threshold(
    logits: torch.Tensor,
    beam_width: int,
    *,
    rows: torch.Tensor | None = None,
    indptr: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    node: torch.Tensor | None = None,
    tau: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The B-th largest logit of each row, repeats counted, and the row's logsumexp; not differentiable.

    Repeated calls give equal bits. On CUDA nothing waits for the device.

    Parameters
    ----------
    logits
        float16, bfloat16, float32 or float64 [N, V] of any strides; or [E], the rows of a ragged array one after the
        other, with ``indptr`` and without ``tokens``.
    beam_width
        B, at least 1; a row of fewer than B tokens gives its smallest. 0: no thresholds are wanted.
    rows
        int64 [n], which rows of ``logits`` are meant; default all, n = N.
    indptr, tokens
        int64 [M + 1] and integers [T]: the tokens of the i-th row are ``tokens[indptr[k]:indptr[k + 1]]``, ascending,
        for k = ``node[i]``. Default: the whole width.
    node
        int64 [n], default i itself; -1 stands for all tokens, -2 for all at temperature 1 (free text).
    tau
        Temperature, a tensor of no dimensions above 0; default 1.

    Returns
    -------
    threshold
        [n] (or [0] for ``beam_width=0``), the logit itself, exact; float64 for float64, else float32. -inf for a row
        of no tokens.
    logsumexp
        [n], of ``logits / tau``. The B-th largest log-probability is ``threshold / tau - logsumexp``.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    """
    if beam_width < 0:
        raise ValueError(f"beam_width={beam_width} is negative")
    _plain.check_rows(logits, rows, indptr, tokens, node)
    threshold, logsumexp = topb_threshold_op(logits, beam_width, rows, indptr, tokens, node, tau)
    return threshold, logsumexp
