# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""How a program reads a row of logits: which tokens are its, and their logsumexp and B-th largest by one read."""

from __future__ import annotations

from gentrie.kernels._triton import power_of_two, tl, triton

MOST_RANKS = 1024
"""The largest B that a program keeps in registers; above it (and above that many tokens) rows are sorted by torch."""


def ranks(beam_width: int, width: int) -> int:
    """Slots for the top ``beam_width`` of at most ``width`` logits; 0 for none."""
    return power_of_two(min(beam_width, max(1, width))) if beam_width else 0


@triton.jit
def row_span(i, indptr, node, width, HAS_SPANS: tl.constexpr, HAS_NODE: tl.constexpr):
    """Where the tokens of row i start, how many they are, and the row's kind: below 0 all tokens, at -2 free text."""
    start = i * 0
    count = start + width
    kind = start - 1
    if HAS_SPANS:
        kind = i
        if HAS_NODE:
            kind = tl.load(node + i).to(tl.int64)
        if kind >= 0:
            start = tl.load(indptr + kind).to(tl.int64)
            count = tl.load(indptr + kind + 1).to(tl.int64) - start
    elif HAS_NODE:
        kind = tl.load(node + i).to(tl.int64)
    return start, count, kind


@triton.jit
def column_pointers(at, column_stride, tokens, begin, lane, inside, GATHERS: tl.constexpr):
    """Where the logits of the columns ``begin + lane`` are, or of ``tokens[begin + lane]``."""
    if GATHERS:
        return at + tl.load(tokens + begin + lane, mask=inside, other=0).to(tl.int64) * column_stride
    else:
        return at + begin * column_stride + lane.to(tl.int64) * column_stride


@triton.jit
def take_largest(x, top, RANKS: tl.constexpr):
    """Put what is above the smallest of ``top`` in its place, the largest first, repeats as often as they come.

    ``top`` has RANKS slots in no order; those beyond B hold infinity and so never give way.
    """
    slots = tl.arange(0, RANKS)
    threshold = tl.min(top, 0)
    peak = tl.max(x, 0)
    while peak > threshold:
        largest = x == peak
        left = tl.sum(largest.to(tl.int32), 0)
        while (left > 0) & (peak > threshold):
            top = tl.where(slots == tl.argmin(top, 0), peak, top)
            threshold = tl.min(top, 0)
            left -= 1
        x = tl.where(largest, float("-inf"), x)
        peak = tl.max(x, 0)
    return top


@triton.jit
def scan_columns(
    at,
    column_stride,
    tokens,
    count,
    beam_width,
    tau,
    GATHERS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    SUM: tl.constexpr,
):
    """Logsumexp at temperature ``tau`` and min(B, count)-th largest of the columns (or tokens) 0 to count.

    Every lane keeps its two largest, and every GROUP of lanes that one thread loads at once a running sum, so that
    nothing in the loop waits for another thread. The B-th largest of the groups' largest is a lower bound, and exact
    unless B lanes lie above it; the B-th largest of the lanes' largest is exact unless a lane's second lies above it.
    Only then (about B * B / (2 * BLOCK) of all rows) is the row, now in the L2 cache, read again for what lies above.
    """
    lane = tl.arange(0, BLOCK // GROUP)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    factor = 1.4426950408889634 / tau
    first = tl.full((BLOCK // GROUP, GROUP), float("-inf"), SUM)
    second = first
    maximum = tl.max(first, 1)
    total = tl.zeros((BLOCK // GROUP,), SUM)
    for begin in range(0, count, BLOCK):
        inside = lane < (count - begin).to(tl.int32)
        pointers = column_pointers(at, column_stride, tokens, begin, lane, inside, GATHERS)
        x = tl.load(pointers, mask=inside, other=float("-inf")).to(SUM)
        if RANKS > 0:
            second = tl.maximum(second, tl.minimum(first, x))
        first = tl.maximum(first, x)
        higher = tl.max(first, 1)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp2((maximum - base) * factor)
        total += tl.sum(tl.exp2((x - base[:, None]) * factor), 1)
        maximum = higher
    peak = tl.max(maximum, 0)
    base = tl.where(peak == float("-inf"), 0.0, peak)
    logsumexp = base / tau + tl.log(tl.sum(total * tl.exp2((maximum - base) * factor), 0))
    threshold = peak
    if RANKS > 0:
        most = tl.minimum(count, beam_width)
        wanted = tl.arange(0, RANKS) < most
        top = take_largest(maximum, tl.where(wanted, float("-inf"), float("inf")).to(SUM), RANKS)
        threshold = tl.min(top, 0)
        if tl.sum(tl.sum((first > threshold).to(tl.int32), 1), 0) >= most:
            top = tl.where(wanted, threshold, float("inf")).to(SUM)
            top = take_largest(tl.reshape(first, (BLOCK,)), top, RANKS)
            threshold = tl.min(top, 0)
        if tl.max(tl.max(second, 1), 0) > threshold:
            top = tl.where(wanted, threshold, float("inf")).to(SUM)
            flat = tl.arange(0, BLOCK)
            for begin in range(0, count, BLOCK):
                inside = flat < (count - begin).to(tl.int32)
                pointers = column_pointers(at, column_stride, tokens, begin, flat, inside, GATHERS)
                top = take_largest(tl.load(pointers, mask=inside, other=float("-inf")).to(SUM), top, RANKS)
            threshold = tl.min(top, 0)
    return logsumexp, tl.where(count > 0, threshold, float("-inf"))


@triton.jit
def scan_row(
    at,
    column_stride,
    tokens,
    start,
    count,
    kind,
    beam_width,
    tau,
    GATHERS: tl.constexpr,
    RANKS: tl.constexpr,
    BLOCK: tl.constexpr,
    NARROW: tl.constexpr,
    GROUP: tl.constexpr,
    SUM: tl.constexpr,
):
    """:func:`scan_columns` of a row's tokens, or of its whole width."""
    if GATHERS:
        if kind >= 0:
            logsumexp, threshold = scan_columns(
                at, column_stride, tokens + start, count, beam_width, tau, True, RANKS, NARROW, GROUP, SUM
            )
        else:
            logsumexp, threshold = scan_columns(
                at, column_stride, tokens, count, beam_width, tau, False, RANKS, BLOCK, GROUP, SUM
            )
    else:
        logsumexp, threshold = scan_columns(
            at, column_stride, tokens, count, beam_width, tau, False, RANKS, BLOCK, GROUP, SUM
        )
    return logsumexp, threshold


@triton.jit
def row_tau(tau, kind, HAS_TAU: tl.constexpr, SUM: tl.constexpr):
    """The temperature of a row: 1 in free text."""
    value = tl.full((), 1.0, SUM)
    if HAS_TAU and kind != -2:
        value = tl.load(tau).to(SUM)
    return value
