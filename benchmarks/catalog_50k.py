"""The Toys-shaped catalog of 49,985 tokenised titles: build, load, bytes an item, and a child lookup in C++."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from _child_lookup import child_lookup, compile_program
from _figures import VOCAB_SIZE, Figure, main

from gentrie import TokenTrie
from gentrie.bench.catalogs import tokenised_catalogs
from gentrie.bench.harness import compare


def measure(options: argparse.Namespace) -> list[Figure]:
    catalog = tokenised_catalogs(["toys"], VOCAB_SIZE)[0]
    end = VOCAB_SIZE - 1
    order = np.random.default_rng(0).permutation(catalog.num_items)  # sorted input would be too kind
    rows = catalog.titles()
    values = np.concatenate([np.array(rows[i], dtype=np.int32) for i in order])
    indptr = np.concatenate([[0], np.cumsum(np.diff(catalog.indptr)[order])])

    def build(threads: int | None) -> TokenTrie:
        return TokenTrie.from_sequences(
            (values, indptr), vocab_size=VOCAB_SIZE, end_token_id=end, item_ids=order, num_threads=threads
        )

    trie = build(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "toys.safetensors"
        trie.save(path)
        taken = compare(
            {
                "build": lambda: build(1),
                "build, all threads": lambda: build(None),
                "load": lambda: TokenTrie.load(path),
                "load unverified": lambda: TokenTrie.load(path, verify=False),
            },
            rounds=options.rounds,
        )
        lookup = child_lookup(compile_program(Path(folder)), path, options.rounds)
    touched = sum(size for name, size in trie.nbytes_by_array.items() if not name.startswith("item_"))
    note = f"{trie.num_items:,} items, {len(values) / trie.num_items:.1f} tokens each"
    return [
        Figure.of("build from arrays, one thread", "ms", taken["build"], scale=1e3, goal=100, note=note),
        Figure.of("build from arrays, default threads", "ms", taken["build, all threads"], scale=1e3),
        Figure.of("load and verify", "ms", taken["load"], scale=1e3, goal=5),
        Figure.of("load unverified", "ms", taken["load unverified"], scale=1e3),
        Figure.exact("bytes an item, item table apart", "B", touched / trie.num_items, goal=40),
        Figure.of("child lookup in C++", "ns", lookup, scale=1e9, goal=100),
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
