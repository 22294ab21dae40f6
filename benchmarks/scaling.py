"""How gentrie scales: build, memory, size, load and lookups from ten thousand items up, as JSON and a plot.

Random semantic ids (L=4, V=256) and (L=8, V=2048), and synthetic titles; STATIC beside the ids where it is importable
and fits in memory. Every point is measured in a process of its own, on two threads:

- build: seconds from an array in memory, and the peak of memory above it;
- bytes an item: all that a lookup touches, the table from leaves to items apart;
- load: milliseconds to open the saved file unverified;
- child lookup: nanoseconds in C++, each waiting for the one before;
- mask: microseconds to mask the scores [140, V] of 140 random items after two tokens; with gentrie a bitmask of
  matchers, applied.

By default a minute, up to a million ids; ``--max-items 100000000 --max-titles 1000000`` takes minutes and 8 GB.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from _child_lookup import child_lookup, compile_program
from _figures import VOCAB_SIZE as TITLE_VOCAB_SIZE
from _fresh import PeakMemory, in_fresh_process
from _static import BYTES_A_TOKEN, StaticIndex, is_importable
from tqdm import tqdm

import gentrie
from gentrie import TokenTrie, TrieMatcher, datasets
from gentrie._optional import require
from gentrie.bench.harness import Spread, circumstances, write_json, write_whole

NUM_THREADS, ROUNDS, ROWS = 2, 7, 140
IDS = {"ids, L=4, V=256": (4, 256), "ids, L=8, V=2048": (8, 2048)}
TITLES = "titles"
PANELS = {
    "build_s": "build, s",
    "peak_mb": "peak memory above the input, MB",
    "bytes_an_item": "bytes an item",
    "load_ms": "load unverified, ms",
    "child_lookup_ns": "child lookup in C++, ns",
    "mask_us": f"mask of {ROWS} rows, us",
}


def ids(name: str, count: int) -> npt.NDArray[np.int32]:
    length, num_codes = IDS[name]
    rows, rng = np.empty((count, length), dtype=np.int32), np.random.default_rng(0)
    for begin in range(0, count, 1 << 20):  # drawn in parts: int32 draws are made from larger ones
        part = rows[begin : begin + (1 << 20)]
        part[:] = rng.integers(0, num_codes, part.shape, dtype=np.int32)
    return rows


def titles(count: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Titles of as many seeds as it takes, in the tokens of one tokenizer."""
    whole = len(datasets.load("toys"))
    catalogs = [datasets.load("toys", num_items=min(whole, count - a), seed=a) for a in range(0, count, whole)]
    tokenizer = datasets.load("toys").train_tokenizer()
    parts = [catalog.token_sequences(tokenizer, vocab_size=TITLE_VOCAB_SIZE) for catalog in catalogs]
    values = np.concatenate([values for values, _ in parts])
    return values, np.cumsum([0, *np.concatenate([np.diff(indptr) for _, indptr in parts])])


def timed(function: Callable[[], object], number: int = 1) -> Spread:
    """Seconds a call, rounds of ``number`` calls after one to warm up."""
    function()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(number):
            function()
        rounds.append((time.perf_counter() - started) / number)
    return Spread.of(rounds)


def measure_gentrie(name: str, count: int, program: Path, folder: Path) -> dict[str, Any]:
    """One point of gentrie, spreads and counts by the keys of ``PANELS``."""
    import torch

    torch.set_num_threads(1)
    if name == TITLES:
        source: Any = titles(count)
        options = {"vocab_size": TITLE_VOCAB_SIZE, "end_token_id": TITLE_VOCAB_SIZE - 1, "num_threads": NUM_THREADS}
    else:
        source, options = ids(name, count), {"vocab_size": IDS[name][1] + 1, "num_threads": NUM_THREADS}
    builds = []
    with PeakMemory() as peak:
        for _ in range(1 if count > 2_000_000 else 3):
            trie = None  # the one before is gone while the next is built
            started = time.perf_counter()
            trie = TokenTrie.from_sequences(source, **options)
            builds.append(time.perf_counter() - started)
    assert trie is not None
    path = folder / "scaling.safetensors"
    trie.save(path)
    loaded = TokenTrie.load(path, verify=False, prefault=True)

    rng = np.random.default_rng(1)
    values, indptr = source if name == TITLES else (source.ravel(), np.arange(count + 1) * source.shape[1])
    items = rng.integers(0, count, ROWS)
    eos = loaded.vocab_size - 1  # of titles the end token, else the token behind all codes
    matchers = [TrieMatcher(loaded, eos_token_id=eos) for _ in items]
    for matcher, item in zip(matchers, items, strict=True):
        assert matcher.accept_tokens(values[indptr[item] : min(indptr[item] + 2, indptr[item + 1])].tolist())
    scores, bitmask = torch.zeros(ROWS, loaded.vocab_size), gentrie.allocate_token_bitmask(ROWS, loaded.vocab_size)

    def mask() -> None:
        gentrie.batch_fill_next_token_bitmask(matchers, bitmask)
        gentrie.apply_token_bitmask_inplace(scores, bitmask)

    lookup_bytes = sum(size for array, size in trie.nbytes_by_array.items() if not array.startswith("item_"))
    return {
        "build_s": Spread.of(builds),
        "peak_mb": peak.bytes / 1e6,
        "bytes_an_item": lookup_bytes / trie.num_items,
        "load_ms": timed(lambda: TokenTrie.load(path, verify=False)),
        "child_lookup_ns": child_lookup(program, path, ROUNDS),
        "mask_us": timed(mask, 10),
    }


def measure_static(name: str, count: int, *_: Path) -> dict[str, Any]:
    """One point of STATIC."""
    import torch

    torch.set_num_threads(1)
    rows = ids(name, count)
    index = StaticIndex.build(rows, IDS[name][1])
    prefixes = rows[np.random.default_rng(1).integers(0, count, ROWS), :2]
    return {
        "build_s": Spread.of([index.seconds]),
        "peak_mb": index.peak_bytes / 1e6,
        "bytes_an_item": index.nbytes / count,
        "mask_us": timed(index.step(prefixes, torch.zeros(ROWS, IDS[name][1])), 10),
    }


SCALES = {"load_ms": 1e3, "child_lookup_ns": 1e9, "mask_us": 1e6}


def plain(key: str, value: Spread | float) -> dict[str, float]:
    """A figure in its panel's unit."""
    if not isinstance(value, Spread):
        return {"median": value, "low": value, "high": value}
    return {field: getattr(value, field) * SCALES.get(key, 1.0) for field in ("median", "low", "high")}


def sizes(largest: int) -> list[int]:
    return [10**power for power in range(4, 10) if 10**power <= largest]


def points(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    """(method, catalog, items), the small ones first."""
    found = [("gentrie", name, count) for name in IDS for count in sizes(options.max_items)]
    found += [("gentrie", TITLES, count) for count in sizes(options.max_titles)]
    if is_importable():
        memory = options.static_memory_gb * 1e9
        for name, (length, _) in IDS.items():
            fitting = [count for count in sizes(options.max_items) if count * length * BYTES_A_TOKEN <= memory]
            found += [("STATIC", name, count) for count in fitting]
    return sorted(found, key=lambda point: point[2])


def plot(path: Path, rows: list[dict[str, Any]]) -> None:
    require("matplotlib", extra="plot")
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8), layout="constrained")
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(row["catalog"] for row in rows))
    series = list(dict.fromkeys((row["method"], row["catalog"]) for row in rows))
    for axes, (key, title) in zip(figure.subplots(2, 3).flat, PANELS.items(), strict=True):
        for method, name in series:
            line = [row for row in rows if (row["method"], row["catalog"]) == (method, name) and key in row]
            axes.plot(
                [row["items"] for row in line],
                [row[key]["median"] for row in line],
                "o-" if method == "gentrie" else "s--",
                color=f"C{names.index(name)}",
                label=f"{method}, {name}",
            )
        axes.set(title=title, xlabel="items", xscale="log", yscale="log")
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    write_whole(path, drawn.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-items", type=int, default=10**6, help="largest number of ids (10^6)")
    parser.add_argument("--max-titles", type=int, default=10**4, help="largest number of titles (10^4)")
    parser.add_argument("--static-memory-gb", type=float, default=4, help="what STATIC's builder may take (4)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = compile_program(folder)
        for method, catalog, count in tqdm(points(options), desc="measuring", unit="point"):
            measure = measure_gentrie if method == "gentrie" else measure_static
            figures = in_fresh_process(measure, catalog, count, program, folder)
            point = {"method": method, "catalog": catalog, "items": count}
            rows.append({**point, **{key: plain(key, value) for key, value in figures.items()}})
    write_json(options.output, {"circumstances": circumstances(), "threads": NUM_THREADS, "points": rows})
    plot(options.output.with_suffix(".png"), rows)


if __name__ == "__main__":
    main()
