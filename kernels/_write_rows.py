# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""How a program writes a row of the gradient: values where tokens are valid, zeros in all other columns."""

from __future__ import annotations

from gentrie.kernels._triton import tl, triton

BLOCK, NARROW = 4096, 512
"""Columns, and valid tokens, that a program takes at a time."""


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
