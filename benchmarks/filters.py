"""Item filters over 20 million items (semantic ids of four codes out of 256), made with the default threads.

The boolean array is indexed by item id, which is the row of the input: in the trie the items lie in another, random
order. A denied list holds 1,024 random items and is new at each call, so that what it touches has to come from memory.
Beside it what one step of a constrained search asks of a filter: the open tokens of the root's children.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from _figures import Figure, main

from gentrie import ItemFilter, TokenTrie
from gentrie.bench.harness import Spread, compare

NUM_ITEMS = 20_000_000
LENGTH, NUM_CODES = 4, 256
DENIED = 1024
LISTS = 100


def measure(options: argparse.Namespace) -> list[Figure]:
    rng = np.random.default_rng(0)
    numbers = np.unique(rng.integers(0, NUM_CODES**LENGTH, NUM_ITEMS + NUM_ITEMS // 50, dtype=np.uint32))
    rng.shuffle(numbers)
    codes = numbers[:NUM_ITEMS].reshape(-1, 1).view(np.uint8)
    trie = TokenTrie.from_semantic_ids(codes, token_ids=(0, NUM_CODES), vocab_size=LENGTH * NUM_CODES)
    assert trie.num_sequences == NUM_ITEMS
    by_id = rng.random(NUM_ITEMS) < 0.5
    by_leaf = by_id[trie.items_below(trie.root)]
    resident, adult = ItemFilter.from_mask(trie, by_id), ItemFilter.from_mask(trie, rng.random(NUM_ITEMS) < 0.1)
    assert np.array_equal(
        resident.arrays()["leaf_words"], ItemFilter.from_leaf_order(trie, by_leaf).arrays()["leaf_words"]
    )
    start = time.perf_counter()
    resident.deny([0])
    index_seconds = time.perf_counter() - start
    lists = iter(rng.integers(0, NUM_ITEMS, ((options.rounds + 2) * LISTS, DENIED)))
    denied = resident.deny(next(lists))
    states = trie.advance_batch(np.zeros(NUM_CODES, dtype=np.int64), np.arange(NUM_CODES))

    def deny() -> None:
        for _ in range(LISTS):
            resident.deny(next(lists))

    taken = compare(
        {
            "rows": lambda: ItemFilter.from_mask(trie, by_id),
            "leaves": lambda: ItemFilter.from_leaf_order(trie, by_leaf),
            "algebra": lambda: resident - adult,
            "deny": deny,
            "unfiltered": lambda: trie.next_tokens_batch(states),
            "resident": lambda: resident.next_tokens_batch(states),
            "denied": lambda: denied.next_tokens_batch(states),
        },
        rounds=options.rounds,
    )
    edges = trie.next_tokens_batch(states)[0].size
    million = NUM_ITEMS // 1_000_000

    def per_child(name: str) -> Spread:
        return Spread.of([seconds / edges for seconds in taken[name].rounds])

    lists_taken = Spread.of([seconds / LISTS for seconds in taken["deny"].rounds])
    return [
        Figure.of(f"filter, {million}M items: from a boolean array by row", "ms", taken["rows"], scale=1e3, goal=60),
        Figure.of(f"filter, {million}M items: from leaf order", "ms", taken["leaves"], scale=1e3, goal=15),
        Figure.of(f"filter, {million}M items: deny {DENIED} more", "us", lists_taken, scale=1e6, goal=50),
        Figure.of(f"filter, {million}M items: one minus another", "ms", taken["algebra"], scale=1e3),
        Figure.exact(f"filter, {million}M items: bits an item", "bits", 8 * resident.nbytes / NUM_ITEMS),
        Figure.exact(f"filter, {million}M items: index by id, once a trie", "ms", index_seconds * 1e3),
        Figure.of("valid next tokens, no filter, a child", "ns", per_child("unfiltered"), scale=1e9),
        Figure.of("valid next tokens under a filter, a child", "ns", per_child("resident"), scale=1e9),
        Figure.of("valid next tokens, 1,024 more denied, a child", "ns", per_child("denied"), scale=1e9),
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
