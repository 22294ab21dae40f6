"""Greedy text with ten items, forced tokens skipped, against free text: the speed of Table A2 and its bound.

The answers are Table A2's, scripted and without template. The bound is (in + out) / (out + branching): what the speed
would come to if forced tokens cost nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _figures import Figure, main

from gentrie.bench.harness import Spread
from gentrie.bench.table_a2 import SKIPPING, Settings, run


def measure(options: argparse.Namespace) -> list[Figure]:
    real = None if options.real is None else Path(options.real) / "catalog.jsonl"
    result = run(Settings(real=real, answers=1, warmup=1, repetitions=options.rounds))
    figures = []
    for name, catalog in result.catalogs.items():
        times = Spread.of([1 - slower for slower in catalog.methods[SKIPPING].slowdown.rounds])
        figures += [
            Figure.of(f"text with items, {name}: speed over free text", "times", times, goal=1, at_least=True),
            Figure.of(
                f"text with items, {name}: share of the bound",
                "%",
                times,
                scale=100 / catalog.bound,
                goal=75,
                at_least=True,
                note=f"bound {catalog.bound:.2f} times",
            ),
        ]
    return figures


if __name__ == "__main__":
    main(measure, __doc__ or "")
