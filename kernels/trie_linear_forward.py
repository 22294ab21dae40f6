# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The logits of the valid tokens of each group of rows, tile by tile."""

from __future__ import annotations

import torch

from gentrie.kernels._launch import WIDEN, on_device
from gentrie.kernels._linear_tiles import (
    LARGE,
    SMALL,
    dot,
    find_tile,
    group_values_before,
    hidden_rows,
    num_programs,
    tiles_before,
)
from gentrie.kernels._triton import tl, triton


@triton.jit
def trie_linear_kernel(
    hidden,
    hidden_stride,
    hidden_column_stride,
    weight,
    weight_stride,
    weight_column_stride,
    bias,
    rows,
    group_rows,
    group_tokens,
    group_values,
    tokens,
    tiles,
    num_groups,
    values,
    size,
    softcap,
    scale,
    HAS_BIAS: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    CAPPED: tl.constexpr,
    NATIVE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    last = tl.load(tiles + num_groups)
    for tile in range(tl.program_id(0).to(tl.int64), last, tl.num_programs(0)):
        group, number = find_tile(tile, tiles, num_groups)
        first_row, first_token = tl.load(group_rows + group), tl.load(group_tokens + group)
        num_rows = tl.load(group_rows + group + 1) - first_row
        num_tokens = tl.load(group_tokens + group + 1) - first_token
        across = tl.cdiv(num_tokens, BLOCK_TOKENS)
        m = number // across * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        n = number % across * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        row = hidden_rows(rows, first_row + m, m < num_rows, HAS_ROWS).to(tl.int64)
        token = tl.load(tokens + first_token + n, mask=n < num_tokens, other=0).to(tl.int64)
        of_rows = hidden + row[:, None] * hidden_stride
        of_tokens = weight + token[None, :] * weight_stride
        total = tl.zeros((BLOCK_ROWS, BLOCK_TOKENS), tl.float32)
        for begin in range(0, size, BLOCK_SIZE):
            k = begin + tl.arange(0, BLOCK_SIZE)
            x = tl.load(
                of_rows + k[None, :] * hidden_column_stride,
                mask=(m < num_rows)[:, None] & (k < size)[None, :],
                other=0.0,
            )
            y = tl.load(
                of_tokens + k[:, None] * weight_column_stride,
                mask=(k < size)[:, None] & (n < num_tokens)[None, :],
                other=0.0,
            )
            total = dot(x, y, total, NATIVE)
        if HAS_BIAS:
            total += tl.load(bias + token, mask=n < num_tokens, other=0.0).to(tl.float32)[None, :]
        total *= scale
        if CAPPED:  # tanh by exp, which is finite at any size
            e = tl.exp(-2.0 * tl.abs(total / softcap))
            total = tl.where(total < 0, -softcap, softcap) * (1.0 - e) / (1.0 + e)
        at = tl.load(group_values + group) + m.to(tl.int64)[:, None] * num_tokens + n[None, :]
        tl.store(values + at, total, mask=(m < num_rows)[:, None] & (n < num_tokens)[None, :])


def launch_trie_linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    softcap: float | None,
    scale: float,
    values: torch.Tensor,
) -> None:
    """Fill ``values``, float32 [E]."""
    num_groups = group_rows.numel() - 1
    if values.numel() == 0:
        return
    num_rows, num_tokens = group_rows.diff(), group_tokens.diff()
    native = hidden.dtype == weight.dtype != torch.float32 and not WIDEN
    most_tokens = 128 if native else 64  # float32 products do without tensor cores, in registers
    with on_device(hidden):
        for block_rows, block_tokens, only in (
            (SMALL, 64, num_rows <= SMALL),
            (LARGE, most_tokens, num_rows > SMALL),
        ):
            across = (num_tokens + block_tokens - 1) // block_tokens
            trie_linear_kernel[(num_programs(hidden.device),)](
                hidden,
                hidden.stride(0),
                hidden.stride(1),
                weight,
                weight.stride(0),
                weight.stride(1),
                bias,
                rows,
                group_rows,
                group_tokens,
                group_values_before(group_rows, group_tokens),
                tokens,
                tiles_before(num_rows, block_rows, across, only),
                num_groups,
                values,
                hidden.shape[1],
                softcap or 1.0,
                scale,
                HAS_BIAS=bias is not None,
                HAS_ROWS=rows is not None,
                CAPPED=softcap is not None,
                NATIVE=native,
                BLOCK_ROWS=block_rows,
                BLOCK_TOKENS=block_tokens,
                BLOCK_SIZE=64 if native else 32,
                num_warps=4,
                num_stages=3,
            )
