"""A catalog that is rebuilt while lookups go on: two million semantic ids of eight codes out of 2,048.

A lookup is one token of a matcher: accept it, ask which may follow. Each round times lookups while nothing else runs,
then while a rebuild runs in its thread (``num_threads=1``) until it is swapped in. Two processors, or more. Beside it:
how long an addition takes to be seen, a removal, and taking the current version.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from _figures import Figure, main

from gentrie import LiveCatalog, TokenTrie, TrieMatcher
from gentrie.bench.harness import Spread, compare

NUM_ITEMS, LENGTH, NUM_CODES = 2_000_000, 8, 2048
IDLE_WALKS = 5000


def walk(catalog: LiveCatalog, rows: list[list[int]], is_over: Callable[[int], bool]) -> np.ndarray:
    """Seconds of each lookup, until ``is_over(walks done)``."""
    taken, clock, done = [], time.perf_counter, 0
    while not is_over(done):
        now = catalog.current
        matcher = TrieMatcher(now.trie, item_filter=now.filters["in_stock"])
        for token in rows[done % len(rows)]:
            start = clock()
            matcher.accept_token(token)
            matcher.get_allowed_tokens()
            taken.append(clock() - start)
        done += 1
    return np.array(taken)


def measure(options: argparse.Namespace) -> list[Figure]:
    rng = np.random.default_rng(0)
    rows = rng.integers(0, NUM_CODES, (NUM_ITEMS, LENGTH), dtype=np.int32)
    in_stock = rng.random(NUM_ITEMS + 1) < 0.9

    def build(count: int) -> TokenTrie:
        return TokenTrie.from_sequences(rows[:count], vocab_size=NUM_CODES, num_threads=1)

    catalog = LiveCatalog(build(NUM_ITEMS - 1), filters={"in_stock": in_stock})
    walks = rows[rng.integers(0, NUM_ITEMS - 1, IDLE_WALKS)].tolist()
    idle, busy, visible = [], [], []
    for turn in range(options.rounds + 1):
        quiet = walk(catalog, walks, lambda done: done >= IDLE_WALKS)
        count = NUM_ITEMS - turn % 2
        start = time.perf_counter()
        future: Future[object] = catalog.rebuild(lambda count=count: build(count))
        rebuilding = walk(catalog, walks, lambda _, future=future: future.done())
        if turn == 0:
            continue
        visible.append(time.perf_counter() - start)
        idle.append(quiet)
        busy.append(rebuilding)
        assert catalog.current.trie.num_items == count

    def percentile(lookups: list[np.ndarray], percent: float) -> Spread:
        return Spread.of([float(np.percentile(taken, percent)) for taken in lookups])

    ratio = Spread.of([float(np.percentile(b, 99) / np.percentile(a, 99)) for a, b in zip(idle, busy, strict=True)])
    gone = iter(rng.permutation(NUM_ITEMS))
    taken = compare(
        {"remove": lambda: catalog.remove([next(gone)]), "restore": lambda: catalog.restore(in_stock.nonzero()[0])},
        rounds=options.rounds,
    )
    current = compare({"current": lambda: catalog.current}, rounds=options.rounds, number=100_000)["current"]
    million = NUM_ITEMS // 1_000_000
    return [
        Figure.of("live: p99 of lookups during a rebuild over idle", "times", ratio, goal=1.5),
        Figure.of("live: p99 of lookups, idle", "us", percentile(idle, 99), scale=1e6),
        Figure.of("live: p99 of lookups during a rebuild", "us", percentile(busy, 99), scale=1e6),
        Figure.of("live: median lookup, idle", "us", percentile(idle, 50), scale=1e6),
        Figure.of("live: median lookup during a rebuild", "us", percentile(busy, 50), scale=1e6),
        Figure.of(f"live, {million}M items: an addition is seen after", "s", Spread.of(visible)),
        Figure.of(f"live, {million}M items: a removal is seen after", "ms", taken["remove"], scale=1e3),
        Figure.of("live: take the current version", "ns", current, scale=1e9),
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
