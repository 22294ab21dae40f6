"""Greedy text with ten items, forced tokens skipped, against free text: the speed of Table A2 and its bound.

The answers are Table A2's, scripted and without template. The bound is (in + out) / (out + branching): what the speed
would come to if forced tokens cost nothing.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _figures import Figure, main
from _table_a2 import skipping_rows

from gentrie.bench.table_a2 import SKIPPING, Settings
from gentrie.bench.table_a2_run import run


def measure(options: argparse.Namespace) -> list[Figure]:
    real = None if options.real is None else Path(options.real) / "catalog.jsonl"
    result = run(Settings(real=real, answers=1, warmup=1, repetitions=options.rounds, beams=0))
    return [
        row
        for name, catalog in result.catalogs.items()
        for row in skipping_rows(name, catalog.methods[SKIPPING].speedup.rounds, catalog.bound)
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
