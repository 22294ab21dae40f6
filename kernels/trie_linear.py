# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The logits of valid tokens straight from hidden states and the rows of the LM head, never [tokens, vocabulary].

Rows that share their valid tokens (those at one node of a trie) make a group: one dense product of its hidden states
with its rows of the head. Programs go through the tiles of all groups; small groups have tiles of their own shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch

from gentrie.kernels import _plain
from gentrie.kernels._launch import WIDEN, on_device, usable
from gentrie.kernels._triton import tl, triton

_SCHEMA = (
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor? rows, Tensor group_rows, Tensor group_tokens, "
    "Tensor tokens, int num_values, float? softcap, float scale) -> Tensor"
)
_SMALL, _LARGE = 16, 64
"""Rows in a tile of a group of at most so many rows, and of a larger one."""


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


def _tiles(counts: torch.Tensor, size: int, times: torch.Tensor | int, only: torch.Tensor) -> torch.Tensor:
    """int64 [G + 1]: tiles before each group, ``ceil(counts / size) * times`` in each of ``only``."""
    inside = torch.where(only, (counts + size - 1) // size * times, 0)
    return torch.nn.functional.pad(inside.cumsum(0), (1, 0))


@cache
def _num_programs(device: torch.device) -> int:
    """Programs that share the tiles: a few for each multiprocessor."""
    return 4 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _group_values(group_rows: torch.Tensor, group_tokens: torch.Tensor) -> torch.Tensor:
    """int64 [G + 1]: logits before each group's."""
    return torch.nn.functional.pad((group_rows.diff() * group_tokens.diff()).cumsum(0), (1, 0))


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
            (_SMALL, 64, num_rows <= _SMALL),
            (_LARGE, most_tokens, num_rows > _SMALL),
        ):
            across = (num_tokens + block_tokens - 1) // block_tokens
            trie_linear_kernel[(_num_programs(hidden.device),)](
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
                _group_values(group_rows, group_tokens),
                tokens,
                _tiles(num_rows, block_rows, across, only),
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
        for block_rows, only in ((_SMALL, num_rows <= _SMALL), (_LARGE, num_rows > _SMALL)):
            hidden_gradient_kernel[(_num_programs(into.device),)](
                gradient,
                values,
                weight,
                weight.stride(0),
                weight.stride(1),
                rows,
                group_rows,
                group_tokens,
                _group_values(group_rows, group_tokens),
                tokens,
                _tiles(num_rows, block_rows, across, only),
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
    tiles = _tiles(num_tokens, block_tokens, -(-into.shape[1] // block_size), num_tokens > 0)
    with on_device(into):
        head_gradient_kernel[(_num_programs(into.device),)](
            gradient,
            values,
            hidden,
            hidden.stride(0),
            hidden.stride(1),
            rows,
            group_rows,
            group_tokens,
            _group_values(group_rows, group_tokens),
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


def _plain_groups(
    hidden: torch.Tensor,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, slice]]:
    """Rows of the hidden states, tokens and place of the logits of each group."""
    every = torch.arange(hidden.shape[0], device=hidden.device) if rows is None else rows
    row, token, value = 0, 0, 0
    for next_row, next_token in zip(group_rows[1:].tolist(), group_tokens[1:].tolist(), strict=True):
        size = (next_row - row) * (next_token - token)
        yield every[row:next_row], tokens[token:next_token].long(), slice(value, value + size)
        row, token, value = next_row, next_token, value + size


def _full_precision(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Products in the dtype of their inputs, whatever autocast says outside."""
    return torch.autocast(tensor.device.type, enabled=False)


def _forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    num_values: int,
    softcap: float | None,
    scale: float,
) -> torch.Tensor:
    dtype = _plain.sum_dtype(hidden, weight)
    values = hidden.new_empty(num_values, dtype=dtype)
    if hidden.is_cuda and usable() and dtype == torch.float32:
        launch_trie_linear(hidden, weight, bias, rows, group_rows, group_tokens, tokens, softcap, scale, values)
        return values
    with _full_precision(hidden):
        for row, token, place in _plain_groups(hidden, rows, group_rows, group_tokens, tokens):
            logits = hidden[row].to(dtype) @ weight[token].to(dtype).T
            logits = scale * (logits if bias is None else logits + bias[token].to(dtype))
            values[place] = (logits if softcap is None else softcap * torch.tanh(logits / softcap)).flatten()
    return values


def _backward(
    gradient: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    softcap: float | None,
    scale: float,
    of_hidden: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = values.dtype
    by_hidden = torch.zeros_like(hidden if of_hidden else hidden[:0], memory_format=torch.contiguous_format)
    by_bias = torch.zeros(weight.shape[0] if of_bias else 0, dtype=dtype, device=weight.device)
    if hidden.is_cuda and usable() and dtype == torch.float32:
        if of_hidden:
            launch_hidden_gradient(
                gradient, values, weight, rows, group_rows, group_tokens, tokens, softcap, scale, by_hidden
            )
        by_weight = weight.new_empty(0, weight.shape[1])
        if of_weight or of_bias:
            by_weight = head_gradient(
                gradient, values, hidden, weight, rows, group_rows, group_tokens, tokens, softcap, scale, by_bias
            )
    else:
        by_weight = torch.zeros_like(weight if of_weight else weight[:0], dtype=dtype)
        with _full_precision(hidden):
            for row, token, place in _plain_groups(hidden, rows, group_rows, group_tokens, tokens):
                slope = gradient[place] * scale
                if softcap is not None:
                    slope = slope * (1 - (values[place] / softcap).square())
                slope = slope.reshape(len(row), len(token))
                if of_hidden:
                    by_hidden[row] = (slope @ weight[token].to(dtype)).to(hidden.dtype)
                if of_weight:
                    by_weight.index_add_(0, token, slope.T @ hidden[row].to(dtype))
                if of_bias:
                    by_bias.index_add_(0, token, slope.sum(0))
    return by_hidden, by_weight.to(weight.dtype), by_bias if bias is None else by_bias.to(bias.dtype)


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


trie_linear_op = torch.library.custom_op("gentrie::trie_linear", _forward, mutates_args=(), schema=_SCHEMA)
_backward_op = torch.library.custom_op(
    "gentrie::trie_linear_backward",
    _backward,
    mutates_args=(),
    schema=(
        "(Tensor gradient, Tensor values, Tensor hidden, Tensor weight, Tensor? bias, Tensor? rows, "
        "Tensor group_rows, Tensor group_tokens, Tensor tokens, float? softcap, float scale, "
        "bool of_hidden, bool of_weight, bool of_bias) -> (Tensor, Tensor, Tensor)"
    ),
)


@trie_linear_op.register_fake
def _(hidden: torch.Tensor, weight: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return hidden.new_empty(arguments[5], dtype=_plain.sum_dtype(hidden, weight))


@_backward_op.register_fake
def _(
    gradient: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    of_hidden, of_weight, of_bias = arguments[-3:]
    return (
        hidden.new_empty(hidden.shape if of_hidden else (0, hidden.shape[1])),
        weight.new_empty(weight.shape if of_weight else (0, weight.shape[1])),
        weight.new_empty(weight.shape[0] if of_bias else 0, dtype=values.dtype if bias is None else bias.dtype),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, _, ctx.softcap, ctx.scale = inputs
    ctx.save_for_backward(output, *tensors)


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    values, *tensors = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    found = _backward_op(grad.contiguous(), values, *tensors, ctx.softcap, ctx.scale, *needs)
    return *(gradient if needed else None for gradient, needed in zip(found, needs, strict=True)), *(None,) * 7


trie_linear_op.register_autograd(_differentiate, setup_context=_setup)


def trie_linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    num_values: int,
    *,
    bias: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """``cap(scale * (hidden @ weight.T + bias))`` of each row's valid tokens, ``cap(x) = softcap * tanh(x / softcap)``.

    Differentiable by ``hidden``, ``weight`` and ``bias``; each gradient is computed only where it is required. Products
    are summed in float32. The result and the gradient of ``hidden`` have equal bits in repeated calls; those of
    ``weight`` and ``bias`` are summed on CUDA by atomics where a token is valid in several groups, and may differ in
    the last bits. On CUDA nothing waits for the device.

    Parameters
    ----------
    hidden
        [R, D]; float16, bfloat16, float32 or float64, as ``weight``, whose dtype may be another.
    weight
        [V, D], the LM head.
    group_rows
        int64 [G + 1]: the entries ``group_rows[g]`` to ``group_rows[g + 1]`` of ``rows`` make group g.
    group_tokens, tokens
        int64 [G + 1] and integers [T]: ``tokens[group_tokens[g]:group_tokens[g + 1]]`` are valid in group g, each once.
        With one group a row this is any CSR matrix of valid tokens; rows of equal tokens are faster together.
    num_values
        E, the sum over groups of rows times tokens.
    bias
        [V] or None.
    rows
        int64 [group_rows[G]], rows of ``hidden``, none twice; default all in order.
    softcap, scale
        As the head has them.

    Returns
    -------
    torch.Tensor
        [E], row after row, the tokens of a row in the order of its group; float64 if hidden or weight is, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}: expected [rows, size] and "
            "[vocabulary, size]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected [{weight.shape[0]}]")
    if group_rows.dim() != 1 or group_rows.shape[0] < 1 or group_rows.shape != group_tokens.shape:
        raise ValueError(
            f"group_rows has shape {tuple(group_rows.shape)} and group_tokens {tuple(group_tokens.shape)}: expected "
            "[groups + 1] for both"
        )
    values: torch.Tensor = trie_linear_op(
        hidden, weight, bias, rows, group_rows, group_tokens, tokens, num_values, softcap, scale
    )
    return values
