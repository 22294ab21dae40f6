# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The gradient of the logits of valid tokens by the LM head and its bias, in float32 and by atomics."""

from __future__ import annotations

import torch

from gentrie.kernels._launch import WIDEN, on_device
from gentrie.kernels._linear_tiles import (
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
def head_gradient_kernel(
    gradient,
    values,
    hidden,
    hidden_stride,
    hidden_column_stride,
    rows,
    group_rows,
    group_tokens,
    group_values,
    tokens,
    slots,
    tiles,
    num_groups,
    into,
    into_bias,
    size,
    softcap,
    scale,
    HAS_ROWS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
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
        n = number // across * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        k = number % across * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        start = tl.load(group_values + group)
        total = tl.zeros((BLOCK_TOKENS, BLOCK_SIZE), tl.float32)
        of_bias = tl.zeros((BLOCK_TOKENS,), tl.float32)
        for begin in range(0, num_rows, BLOCK_ROWS):
            m = begin + tl.arange(0, BLOCK_ROWS)
            slope = logit_slopes(
                gradient,
                values,
                start + m.to(tl.int64)[None, :] * num_tokens + n[:, None],
                (n < num_tokens)[:, None] & (m < num_rows)[None, :],
                softcap,
                scale,
                CAPPED,
            )
            row = hidden_rows(rows, first_row + m, m < num_rows, HAS_ROWS).to(tl.int64)
            x = tl.load(
                hidden + row[:, None] * hidden_stride + k[None, :] * hidden_column_stride,
                mask=(m < num_rows)[:, None] & (k < size)[None, :],
                other=0.0,
            )
            total = split_dot(slope, x, total, SPLIT, WIDEN)
            of_bias += tl.sum(slope, 1)
        slot = tl.load(slots + first_token + n, mask=n < num_tokens, other=0).to(tl.int64)
        tl.atomic_add(
            into + slot[:, None] * size + k[None, :], total, mask=(n < num_tokens)[:, None] & (k < size)[None, :]
        )
        if HAS_BIAS:
            token = tl.load(tokens + first_token + n, mask=n < num_tokens, other=0).to(tl.int64)
            tl.atomic_add(into_bias + token, of_bias, mask=n < tl.where(number % across == 0, num_tokens, 0))


def launch_head_gradient(
    gradient: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    slots: torch.Tensor,
    softcap: float | None,
    scale: float,
    into: torch.Tensor,
    into_bias: torch.Tensor | None,
    narrow: bool,
) -> None:
    """Add to ``into`` float32 [S, D] (row ``slots[t]`` for ``tokens[t]``) and ``into_bias`` float32 [V], by atomics.

    ``narrow``: hidden states are bfloat16 and so will the gradient be.
    """
    num_groups = group_rows.numel() - 1
    if values.numel() == 0:
        return
    num_tokens, block_tokens, block_size = group_tokens.diff(), 64, 64
    tiles = tiles_before(num_tokens, block_tokens, -(-into.shape[1] // block_size), num_tokens > 0)
    with on_device(into):
        head_gradient_kernel[(num_programs(into.device),)](
            gradient,
            values,
            hidden,
            hidden.stride(0),
            hidden.stride(1),
            rows,
            group_rows,
            group_tokens,
            group_values_before(group_rows, group_tokens),
            tokens,
            slots,
            tiles,
            num_groups,
            into,
            into_bias,
            into.shape[1],
            softcap or 1.0,
            scale,
            HAS_ROWS=rows is not None,
            HAS_BIAS=into_bias is not None,
            CAPPED=softcap is not None,
            SPLIT=narrow,
            WIDEN=WIDEN,
            BLOCK_ROWS=32,
            BLOCK_TOKENS=block_tokens,
            BLOCK_SIZE=block_size,
            num_warps=4,
            num_stages=3,
        )


def distinct_slots(tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each of ``tokens`` [T] the place of its token among the distinct ones, ascending, and those in [T] places.

    What ``torch.unique`` gives, without waiting for the device to learn how many they are: places beyond hold -1.
    """
    ordered, order = tokens.sort()
    rank = (torch.diff(ordered, prepend=ordered[:1]) != 0).cumsum(0)
    slots = torch.empty_like(rank).scatter_(0, order, rank)
    return slots, torch.full_like(tokens, -1).scatter_(0, rank, ordered)


def head_gradient(
    gradient: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    softcap: float | None,
    scale: float,
    into_bias: torch.Tensor,
) -> torch.Tensor:
    """The gradient [V, D] of the head, summed in float32 for the tokens that occur, and that of the bias added.

    The sums are by atomics where a token is valid in several groups: repeated calls may differ in the last bits.
    """
    num_tokens, size = weight.shape
    slots, distinct = distinct_slots(tokens)
    sums = torch.zeros(min(tokens.numel(), num_tokens), size, dtype=torch.float32, device=weight.device)
    launch_head_gradient(
        gradient,
        values,
        hidden,
        rows,
        group_rows,
        group_tokens,
        tokens,
        slots,
        softcap,
        scale,
        sums,
        into_bias if into_bias.numel() else None,
        hidden.dtype == weight.dtype == torch.bfloat16,
    )
    # One row more, for the places beyond the distinct tokens.
    into = weight.new_zeros(num_tokens + 1, size)
    into.index_copy_(0, distinct[: sums.shape[0]].long() % (num_tokens + 1), sums.to(weight.dtype))
    return into[:num_tokens]
