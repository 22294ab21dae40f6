"""Building, loading and looking up at five million ids: time on two threads, memory beside the input, bytes an item.

Each round builds in a process of its own, STATIC's builder (on ids sorted before) in turns with ours where it is
importable. Bytes count everything that a lookup touches, the table from leaves to items apart.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from _child_lookup import child_lookup, compile_program
from _figures import Figure, main
from _fresh import PeakMemory, in_fresh_process
from _static import StaticIndex, is_importable

from gentrie import TokenTrie
from gentrie.bench.catalogs import tokenised_catalogs
from gentrie.bench.harness import Spread, compare, in_turns

NUM_IDS, NUM_THREADS, CHUNK = 5_000_000, 2, 250_000
MAX_BUILDS = 7
SHAPES = {(8, 2048): 17.0, (4, 256): 5.5}
"""Length and codes a level, with the most bytes an item may take."""


def ids(length: int, num_codes: int, count: int = NUM_IDS, seed: int = 0) -> npt.NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, num_codes, (count, length), dtype=np.int32)


def lookup_bytes(trie: TokenTrie) -> int:
    return sum(size for name, size in trie.nbytes_by_array.items() if not name.startswith("item_"))


def built(length: int, num_codes: int, method: str) -> tuple[float, float, float]:
    """Seconds, bytes of peak memory beside the input, and bytes of the index."""
    if method == "chunks":
        seeds = range(NUM_IDS // CHUNK)
        with PeakMemory() as peak:
            started = time.perf_counter()
            chunks = (ids(length, num_codes, CHUNK, seed) for seed in seeds)
            trie = TokenTrie.from_chunks(chunks, vocab_size=num_codes, num_threads=NUM_THREADS)
            seconds = time.perf_counter() - started
        return seconds, (peak.bytes - CHUNK * length * 4) / trie.nbytes, 0.0
    rows = ids(length, num_codes)
    if method == "STATIC":
        index = StaticIndex.build(rows, num_codes)
        return index.seconds, index.peak_bytes, index.nbytes
    with PeakMemory() as peak:
        started = time.perf_counter()
        trie = TokenTrie.from_sequences(rows, vocab_size=num_codes, num_threads=NUM_THREADS)
        seconds = time.perf_counter() - started
    return seconds, peak.bytes, lookup_bytes(trie)


def building(length: int, num_codes: int, goal: float, rounds: int) -> list[Figure]:
    methods = ("gentrie", "chunks", *(("STATIC",) if is_importable() else ()))
    taken: dict[str, list[tuple[float, float, float]]] = {method: [] for method in methods}
    for _, method in in_turns(methods, rounds):
        taken[method].append(in_fresh_process(built, length, num_codes, method))
    spreads = {method: [Spread.of(column) for column in zip(*rows, strict=True)] for method, rows in taken.items()}
    name, wide = f"{NUM_IDS // 10**6}M ids of {length} x {num_codes}", num_codes == 2048
    seconds, peak, size = spreads["gentrie"]
    figures = [
        Figure.of(f"{name}: bytes an item", "B", size, scale=1 / NUM_IDS, goal=goal),
        Figure.of(f"{name}: build, two threads", "s", seconds, goal=1.5 if wide else None),
        Figure.of(f"{name}: peak memory above the input", "MB", peak, scale=1e-6, goal=500 if wide else None),
        Figure.of(f"{name}: build from chunks, drawn in between", "s", spreads["chunks"][0]),
        Figure.of(f"{name}: peak from chunks over the finished trie", "times", spreads["chunks"][1], goal=2.5),
    ]
    if "STATIC" in spreads:
        seconds, peak, size = spreads["STATIC"]
        figures += [
            Figure.of(f"STATIC, {name}: bytes an item", "B", size, scale=1 / NUM_IDS),
            Figure.of(f"STATIC, {name}: build from sorted ids", "s", seconds),
            Figure.of(f"STATIC, {name}: peak memory above the input", "MB", peak, scale=1e-6),
        ]
    return figures


def loading(folder: Path, rounds: int) -> list[Figure]:
    path = folder / "large.safetensors"
    TokenTrie.from_sequences(ids(8, 2048), vocab_size=2048).save(path)
    taken = compare(
        {
            "load unverified": lambda: TokenTrie.load(path, verify=False),
            "load with prefault": lambda: TokenTrie.load(path, verify=False, prefault=True),
            "load and verify": lambda: TokenTrie.load(path, verify=True),
        },
        rounds=rounds,
    )
    name = f"{NUM_IDS // 10**6}M ids of 8 x 2048"
    goals = {"load unverified": 10}
    return [Figure.of(f"{name}: {way}", "ms", spread, scale=1e3, goal=goals.get(way)) for way, spread in taken.items()]


def looking_up(folder: Path, rounds: int) -> list[Figure]:
    program, path, count = compile_program(folder), folder / "small.safetensors", 100_000
    figures = []
    for length, num_codes in SHAPES:
        TokenTrie.from_sequences(ids(length, num_codes, count), vocab_size=num_codes).save(path)
        spread = child_lookup(program, path, rounds)
        name = f"child lookup in C++, 10^5 ids of {length} x {num_codes}"
        figures.append(Figure.of(name, "ns", spread, scale=1e9, goal=100))
    return figures


def titles(real: Path) -> Figure:
    catalog = tokenised_catalogs([], 131072, real / "catalog.jsonl")[0]
    trie = TokenTrie.from_sequences(
        (catalog.values, catalog.indptr), vocab_size=catalog.vocab_size, end_token_id=catalog.vocab_size - 1
    )
    name = f"{catalog.name}, {trie.num_items:,} titles: bytes an item"
    return Figure.exact(name, "B", lookup_bytes(trie) / trie.num_items, goal=32)


def measure(options: argparse.Namespace) -> list[Figure]:
    figures = [
        figure
        for (length, num_codes), goal in SHAPES.items()
        for figure in building(length, num_codes, goal, min(options.rounds, MAX_BUILDS))
    ]
    with tempfile.TemporaryDirectory() as folder:
        figures += loading(Path(folder), options.rounds)
        figures += looking_up(Path(folder), options.rounds)
    return [*figures, *([titles(Path(options.real))] if options.real else [])]


if __name__ == "__main__":
    main(measure, __doc__ or "")
