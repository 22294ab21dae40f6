# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""Products of the rows of groups with the head rows of their tokens: tiles, and the functions that kernels share."""

from __future__ import annotations

from functools import cache

import torch

from gentrie.kernels._triton import tl, triton

SMALL, LARGE = 16, 64
"""Rows in a tile of a group of at most so many rows, and of a larger one."""


def tiles_before(counts: torch.Tensor, size: int, times: torch.Tensor | int, only: torch.Tensor) -> torch.Tensor:
    """int64 [G + 1]: tiles before each group, ``ceil(counts / size) * times`` in each of ``only``."""
    inside = torch.where(only, (counts + size - 1) // size * times, 0)
    return torch.nn.functional.pad(inside.cumsum(0), (1, 0))


@cache
def num_programs(device: torch.device) -> int:
    """Programs that share the tiles: a few for each multiprocessor."""
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def group_values_before(group_rows: torch.Tensor, group_tokens: torch.Tensor) -> torch.Tensor:
    """int64 [G + 1]: logits before each group's."""
    return torch.nn.functional.pad((group_rows.diff() * group_tokens.diff()).cumsum(0), (1, 0))


@triton.jit
def find_tile(tile, tiles, num_groups):
    """The group of a tile, and the tile's number inside it; ``tiles`` [num_groups + 1] counts those before."""
    low = tile * 0
    high = low + num_groups
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(tiles + middle) <= tile:
            low = middle
        else:
            high = middle
    return low, tile - tl.load(tiles + low)


@triton.jit
def hidden_rows(rows, row, inside, HAS_ROWS: tl.constexpr):
    """Which rows of the hidden states are meant."""
    place = row
    if HAS_ROWS:
        place = tl.load(rows + row, mask=inside, other=0)
    return place


@triton.jit
def logit_slopes(gradient, values, at, inside, softcap, scale, CAPPED: tl.constexpr):
    """The gradient by ``hidden @ weight.T + bias`` of some logits; 0 outside."""
    slope = tl.load(gradient + at, mask=inside, other=0.0) * scale
    if CAPPED:
        ratio = tl.load(values + at, mask=inside, other=0.0) / softcap
        slope *= 1.0 - ratio * ratio
    return slope


@triton.jit
def dot(x, y, total, NATIVE: tl.constexpr):
    """``total + x @ y``, by tensor cores where x and y are of one 16-bit type."""
    if NATIVE:
        return tl.dot(x, y, total)
    else:
        return tl.dot(x.to(tl.float32), y.to(tl.float32), total, input_precision="ieee")


@triton.jit
def split_dot(x, y, total, SPLIT: tl.constexpr, WIDEN: tl.constexpr):
    """``total + x @ y`` of float32 x; x as the sum of two bfloat16 numbers where y is bfloat16, for tensor cores."""
    if SPLIT:
        high = x.to(tl.bfloat16)
        low = (x - high.to(tl.float32)).to(tl.bfloat16)
        return dot(high, y, dot(low, y, total, not WIDEN), not WIDEN)
    else:
        return dot(x, y, total, False)
