"""Bytes an item of the compressed trie, and dependent cache lines of a child lookup: random semantic ids, and real
titles where they are at hand (``--real``)."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from _child_lookup import compile_program, dependent_lines
from _figures import Figure, main

from gentrie import TokenTrie
from gentrie.bench.catalogs import tokenised_catalogs

NUM_IDS = 5_000_000
NUM_LOOKED_UP = 1_000_000


def figure(name: str, trie: TokenTrie, goal: float | None, note: str) -> Figure:
    touched = sum(size for array, size in trie.nbytes_by_array.items() if not array.startswith("item_"))
    return Figure.exact(f"bytes an item: {name}", "B", touched / trie.num_items, goal=goal, note=note)


def chains(of: str, trie: TokenTrie) -> list[Figure]:
    """Lines whose addresses wait for each other in a step from a random state, and those of them out of a cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trie.safetensors"
        trie.save(path)
        lines = dependent_lines(compile_program(Path(folder), "dependent_lines"), path)
    name = f"dependent cache lines of a step: {of}"
    note = f"of {lines.steps:,} steps the least is {lines.least}, the mean {lines.mean:.3f}"
    return [
        Figure.exact(f"{name}, most", "lines", lines.most, goal=3, note=note),
        Figure.exact(f"{name}, mean of those not in 32 KiB", "lines", lines.missed),
    ]


def measure(options: argparse.Namespace) -> list[Figure]:
    figures = []
    for length, codes, goal, bound in ((8, 2048, 15.4, 8.4), (4, 256, 4.8, 1.4)):
        rows = np.random.default_rng(0).integers(0, codes, (NUM_IDS, length), dtype=np.int32)
        started = time.perf_counter()
        trie = TokenTrie.from_sequences(rows, vocab_size=codes)
        note = f"information bound {bound}; built in {time.perf_counter() - started:.1f} s"
        figures.append(figure(f"{NUM_IDS // 10**6}M ids of {length} x {codes}", trie, goal, note))
        fewer = TokenTrie.from_sequences(rows[:NUM_LOOKED_UP], vocab_size=codes)
        figures += chains(f"{NUM_LOOKED_UP // 10**6}M ids of {length} x {codes}", fewer)
        apart = TokenTrie.from_semantic_ids(rows, token_ids=(0, codes), vocab_size=codes * length)
        figures.append(figure(f"{NUM_IDS // 10**6}M ids of {length} x {codes}, tokens of their own", apart, None, ""))
    if options.real:
        catalog = tokenised_catalogs([], 131072, Path(options.real) / "catalog.jsonl")[0]
        trie = TokenTrie.from_sequences(
            (catalog.values, catalog.indptr), vocab_size=catalog.vocab_size, end_token_id=catalog.vocab_size - 1
        )
        figures.append(figure(f"{catalog.name}, {trie.num_items:,} titles", trie, 32, "mistral-common's tokenizer"))
        figures += chains(f"{catalog.name}, {trie.num_items:,} titles", trie)
    return figures


if __name__ == "__main__":
    main(measure, __doc__ or "")
