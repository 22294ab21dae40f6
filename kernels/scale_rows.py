# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Rows multiplied in place by factors of their own; on a device those with a factor of 1 are not touched."""

from __future__ import annotations

from typing import Any

import torch

from gentrie.kernels._launch import on_device, usable
from gentrie.kernels._triton import tl, triton
from gentrie.kernels._write_rows import BLOCK


@triton.jit
def scale_rows_kernel(
    values, row_stride, column_stride, rows, factors, width, HAS_ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0).to(tl.int64)
    row = i
    if HAS_ROWS:
        row = tl.load(rows + i)
    factor = tl.load(factors + i)
    if factor != 1.0:
        lane = tl.arange(0, BLOCK)
        pointers = values + row * row_stride + lane.to(tl.int64) * column_stride
        for begin in range(0, i * 0 + width, BLOCK):
            inside = begin + lane < width
            at = pointers + begin * column_stride
            x = tl.load(at, mask=inside, other=0.0).to(factor.dtype)
            tl.store(at, (x * factor).to(values.dtype.element_ty), mask=inside)


def launch_scale_rows(values: torch.Tensor, rows: torch.Tensor | None, factors: torch.Tensor) -> None:
    """Multiply row ``rows[i]`` (default: i) of ``values`` by ``factors[i]``."""
    if factors.numel() == 0:
        return
    with on_device(values):
        scale_rows_kernel[(factors.numel(),)](
            values,
            values.stride(0),
            values.stride(1),
            rows,
            factors,
            values.shape[1],
            HAS_ROWS=rows is not None,
            BLOCK=BLOCK,
            num_warps=8,
        )


def scale_rows(values: torch.Tensor, rows: torch.Tensor | None, factors: torch.Tensor) -> None:
    """Multiply rows in place; on CUDA those with a factor of 1 are not touched."""
    if values.is_cuda and usable():
        launch_scale_rows(values, rows, factors)
    elif rows is None:
        values.copy_(values.to(factors.dtype) * factors[:, None])
    else:
        values[rows] = (values[rows].to(factors.dtype) * factors[:, None]).to(values.dtype)


@torch.library.custom_op(
    "gentrie::scale_rows", mutates_args=(), schema="(Tensor values, Tensor? rows, Tensor factors) -> Tensor"
)
def scale_rows_op(values: torch.Tensor, rows: torch.Tensor | None, factors: torch.Tensor) -> torch.Tensor:
    scaled = values.clone()
    scale_rows(scaled, rows, factors)
    return scaled


@scale_rows_op.register_fake
def _(values: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(values)
