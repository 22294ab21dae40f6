# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""The greatest of a block of numbers, exactly, by bisection: without sorting, atomics or shared memory."""

from __future__ import annotations

from gentrie.kernels._triton import tl, triton

NAN_KEY = tl.constexpr(0x7FC00000)  # above infinity, as torch orders it


@triton.jit
def order_key(values):
    """float32 to int32 in the same order; NaN is above all."""
    bits = values.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(values == values, key, NAN_KEY)


@triton.jit
def take_greatest(keys, live, count):
    """Which live lanes hold the ``count`` greatest keys; all of them where there are no more. Of equal ones the first
    lanes."""
    taken = live
    if tl.sum(live.to(tl.int32), 0) > count:
        low = tl.min(tl.where(live, keys, 0x7FFFFFFF), 0).to(tl.int64)  # at least `count` keys are not below it
        high = tl.max(tl.where(live, keys, -0x7FFFFFFF), 0).to(tl.int64) + 1  # fewer are not below this
        while high - low > 1:
            middle = low + (high - low) // 2
            num_above = tl.sum((live & (keys >= middle.to(tl.int32))).to(tl.int32), 0)
            high = tl.where(num_above > count, high, tl.where(num_above == count, middle + 1, middle))
            low = tl.where(num_above >= count, middle, low)
        above = live & (keys > low.to(tl.int32))
        equal = live & (keys == low.to(tl.int32))
        num_equal = count - tl.sum(above.to(tl.int32), 0)
        taken = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= num_equal))
    return taken
