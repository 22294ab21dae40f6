"""A catalog in ten shards on Ray: built in parallel, asked in parallel, the best found items merged.

    pip install 'gentrie' ray
    python examples/ray_shards.py --items 1000000 --shards 10

Each shard is an actor with a trie of its own. The "model" here is a table of log-probabilities by position, so that
the exact answer can be checked; with a real one every shard runs its search on it in the same way, and scores are
comparable as `gentrie.sharding.merge_top` says.
"""

from __future__ import annotations

import argparse
import heapq
import time

import numpy as np

from gentrie import TokenTrie
from gentrie.sharding import first_token_ranges, merge_top, shard_of

LENGTH, NUM_CODES = 4, 256


def build_shard(rows: np.ndarray, item_ids: np.ndarray) -> TokenTrie:
    """The trie of one shard. Where rows lie in files, read them here instead of sending them."""
    return TokenTrie.from_sequences(rows, vocab_size=NUM_CODES, item_ids=item_ids, num_threads=1)


def top(trie: TokenTrie, table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact best items under log-probabilities [length, vocabulary]: best-first, as no token can raise a score."""
    heap: list[tuple[float, int, int]] = [(0.0, 0, trie.root)]  # cost so far, depth, state
    scores: list[float] = []
    items: list[int] = []
    while heap and len(items) < count:
        cost, depth, state = heapq.heappop(heap)
        if trie.is_leaf(state):
            found = trie.items_below(state).tolist()
            items += found
            scores += [-cost] * len(found)
            continue
        tokens = trie.next_tokens(state)
        following = trie.advance_batch(np.full(tokens.size, state), tokens)
        costs = cost - table[depth, tokens]
        for entry in zip(costs.tolist(), following.tolist(), strict=True):
            heapq.heappush(heap, (entry[0], depth + 1, entry[1]))
    return np.array(scores[:count]), np.array(items[:count], dtype=np.int64)


def catalog(num_items: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, NUM_CODES, (num_items, LENGTH), dtype=np.int32)


def split(rows: np.ndarray, num_shards: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and item ids of each shard."""
    shards = shard_of(rows[:, 0], first_token_ranges(rows[:, 0], num_shards))
    return [(rows[shards == i], np.flatnonzero(shards == i)) for i in range(num_shards)]


def model_table(seed: int = 1) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, 3, (LENGTH, NUM_CODES))
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def main(num_items: int, num_shards: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    import ray

    @ray.remote
    class Shard:
        def __init__(self, rows: np.ndarray, item_ids: np.ndarray) -> None:
            self.trie = build_shard(rows, item_ids)

        def stats(self) -> tuple[int, int]:
            return self.trie.num_items, self.trie.nbytes

        def top(self, table: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
            return top(self.trie, table, count)

    rows, table = catalog(num_items), model_table()
    start = time.perf_counter()
    # Actors share the processors: a shard that only waits for requests needs no whole one.
    shards = [Shard.options(num_cpus=0.1).remote(*part) for part in split(rows, num_shards)]
    for number, (items, nbytes) in enumerate(ray.get([shard.stats.remote() for shard in shards])):
        print(f"shard {number}: {items:,} items, {nbytes:,} bytes")
    print(f"built in {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    scores, items, origin = merge_top(ray.get([shard.top.remote(table, count) for shard in shards]), count)
    print(f"asked and merged in {1000 * (time.perf_counter() - start):.1f} ms")
    for score, item, shard in zip(scores, items, origin, strict=True):
        print(f"{score:8.3f}  item {item}, shard {shard}: {rows[item].tolist()}")
    return scores, items


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--count", type=int, default=10)
    options = parser.parse_args()
    main(options.items, options.shards, options.count)
