# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""The greatest of a block of numbers, exactly, by bisection: without sorting, atomics or shared memory."""

from __future__ import annotations

from gentrie.kernels._triton import tl, triton

NAN_KEY = tl.constexpr(0x7FC00000)  # above infinity, as torch orders it


@triton.jit
def order_key(values):
    """float32 to int32 in the same order; NaN is above all."""
    bits = (values + 0.0).to(tl.int32, bitcast=True)  # of two zeros none is greater
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return tl.where(values == values, key, NAN_KEY)


@triton.jit
def separator(keys, live, count, enough):
    """A key that at least ``count`` of the live ones, which are more, are not below, and at most ``enough`` unless they
    equal it. With ``enough`` the same as ``count`` it is the ``count``-th greatest, or lies between that and the next.
    """
    low = tl.min(tl.where(live, keys, 0x7FFFFFFF), 0).to(tl.int64)  # at least `count` keys are not below it
    high = tl.max(tl.where(live, keys, -0x7FFFFFFF), 0).to(tl.int64) + 1  # fewer are not below this
    while high - low > 1:
        middle = low + (high - low) // 2
        num_above = tl.sum((live & (keys >= middle.to(tl.int32))).to(tl.int32), 0)
        high = tl.where(num_above > enough, high, tl.where(num_above >= count, middle + 1, middle))
        low = tl.where(num_above >= count, middle, low)
    return low.to(tl.int32)


@triton.jit
def take_greatest(keys, live, count):
    """Which live lanes hold the ``count`` greatest keys; all of them where there are no more. Of equal ones the first
    lanes."""
    taken = live
    if tl.sum(live.to(tl.int32), 0) > count:
        least = separator(keys, live, count, count)
        above = live & (keys > least)
        equal = live & (keys == least)
        num_equal = count - tl.sum(above.to(tl.int32), 0)
        taken = above | (equal & (tl.cumsum(equal.to(tl.int32), 0) <= num_equal))
    return taken


@triton.jit
def may_be_taken(keys, live, count, LANES: tl.constexpr, GROUPS: tl.constexpr):
    """Live lanes among which those of :func:`take_greatest` are, found by the greatest of each group of lanes: of keys
    in random order not many more than twice ``count``."""
    grouped = tl.reshape(tl.where(live, keys, -0x80000000).to(tl.int32), [LANES // GROUPS, GROUPS])
    greatest = tl.max(grouped, 0)
    has_live = greatest != -0x80000000
    candidates = live
    if tl.sum(has_live.to(tl.int32), 0) > count:
        candidates = live & (keys >= separator(greatest, has_live, count, 2 * count))
    return candidates
