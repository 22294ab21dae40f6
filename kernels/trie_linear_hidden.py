# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The gradient of the logits of valid tokens by the hidden states."""

from __future__ import annotations

import torch

from gentrie.kernels._launch import WIDEN, on_device
from gentrie.kernels._linear_tiles import (
    LARGE,
    SMALL,
    find_tile,
    group_values_before,
    hidden_rows,
    logit_slopes,
    num_programs,
    split_dot,
    tiles_before,
)
from gentrie.kernels._triton import tl, triton


@triton.jit
def hidden_gradient_kernel(
    gradient,
    values,
    weight,
    weight_stride,
    weight_column_stride,
    rows,
    group_rows,
    group_tokens,
    group_values,
    tokens,
    tiles,
    num_groups,
    into,
    into_stride,
    size,
    softcap,
    scale,
    HAS_ROWS: tl.constexpr,
    CAPPED: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    last = tl.load(tiles + num_groups)
    across = tl.cdiv(size, BLOCK_SIZE)
    for tile in range(tl.program_id(0).to(tl.int64), last, tl.num_programs(0)):
        group, number = find_tile(tile, tiles, num_groups)
        first_row, first_token = tl.load(group_rows + group), tl.load(group_tokens + group)
        num_rows = tl.load(group_rows + group + 1) - first_row
        num_tokens = tl.load(group_tokens + group + 1) - first_token
        m = number // across * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        k = number % across * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        at = tl.load(group_values + group) + m.to(tl.int64) * num_tokens
        total = tl.zeros((BLOCK_ROWS, BLOCK_SIZE), tl.float32)
        for begin in range(0, num_tokens, BLOCK_TOKENS):
            n = begin + tl.arange(0, BLOCK_TOKENS)
            slope = logit_slopes(
                gradient,
                values,
                at[:, None] + n[None, :],
                (m < num_rows)[:, None] & (n < num_tokens)[None, :],
                softcap,
                scale,
                CAPPED,
            )
            token = tl.load(tokens + first_token + n, mask=n < num_tokens, other=0).to(tl.int64)
            y = tl.load(
                weight + token[:, None] * weight_stride + k[None, :] * weight_column_stride,
                mask=(n < num_tokens)[:, None] & (k < size)[None, :],
                other=0.0,
            )
            total = split_dot(slope, y, total, SPLIT, WIDEN)
        row = hidden_rows(rows, first_row + m, m < num_rows, HAS_ROWS).to(tl.int64)
        tl.store(
            into + row[:, None] * into_stride + k[None, :],
            total.to(into.dtype.element_ty),
            mask=(m < num_rows)[:, None] & (k < size)[None, :],
        )


def launch_hidden_gradient(
    gradient: torch.Tensor,
    values: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    softcap: float | None,
    scale: float,
    into: torch.Tensor,
) -> None:
    """Fill the rows of ``into`` [R, D] that are meant; each by one program, in a fixed order."""
    num_groups = group_rows.numel() - 1
    if values.numel() == 0:
        return
    num_rows, block_size = group_rows.diff(), 64
    across = -(-into.shape[1] // block_size)
    with on_device(into):
        for block_rows, only in ((SMALL, num_rows <= SMALL), (LARGE, num_rows > SMALL)):
            hidden_gradient_kernel[(num_programs(into.device),)](
                gradient,
                values,
                weight,
                weight.stride(0),
                weight.stride(1),
                rows,
                group_rows,
                group_tokens,
                group_values_before(group_rows, group_tokens),
                tokens,
                tiles_before(num_rows, block_rows, across, only),
                num_groups,
                into,
                into.stride(0),
                into.shape[1],
                softcap or 1.0,
                scale,
                HAS_ROWS=rows is not None,
                CAPPED=softcap is not None,
                SPLIT=into.dtype == weight.dtype == torch.bfloat16,
                WIDEN=WIDEN,
                BLOCK_ROWS=block_rows,
                BLOCK_TOKENS=32,
                BLOCK_SIZE=block_size,
                num_warps=4,
                num_stages=3,
            )
