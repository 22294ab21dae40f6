"""What a benchmark script reports: figures with their goals, as a table or as JSON for ``figures.py``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from gentrie.bench.harness import Spread

VOCAB_SIZE = 131072
ROUNDS = 9


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    ``goal`` is the most that ``median`` may be, or the least under ``at_least``; None for what is reported beside it
    (peers, floors).
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    goal: float | None = None
    note: str = ""
    at_least: bool = False

    @classmethod
    def of(cls, name: str, unit: str, spread: Spread, *, scale: float = 1.0, **rest: Any) -> Figure:
        return cls(name, unit, spread.median * scale, spread.low * scale, spread.high * scale, **rest)

    @classmethod
    def exact(cls, name: str, unit: str, value: float, **rest: Any) -> Figure:
        """A figure that is counted, not timed."""
        return cls(name, unit, value, value, value, **rest)

    @property
    def verdict(self) -> str:
        """``ok`` or ``SHORT``, nothing without a goal."""
        if self.goal is None:
            return ""
        return "ok" if (self.median >= self.goal if self.at_least else self.median <= self.goal) else "SHORT"


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def row(figure: Figure) -> list[str]:
    """name, goal, value with spread, verdict."""
    spread = "" if figure.low == figure.high else f" ({number(figure.low)}-{number(figure.high)})"
    limit = "at least" if figure.at_least else "at most"
    goal = "" if figure.goal is None else f"{limit} {number(figure.goal)} {figure.unit}"
    return [figure.name, goal, f"{number(figure.median)}{spread} {figure.unit}", figure.verdict, figure.note]


HEADINGS = ("figure", "goal", "median (low-high)", "", "note")


def main(measure: Callable[[argparse.Namespace], Sequence[Figure]], description: str) -> None:
    """Run a script: measure on one thread and print a table, or JSON lines with ``--json``."""
    import torch

    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each figure ({ROUNDS})")
    parser.add_argument("--real", default=None, help="folder of a real catalog: catalog.jsonl inside")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = measure(options)
    if options.json:
        for figure in figures:
            print(json.dumps(asdict(figure)))
        return
    table = Table(*HEADINGS)
    for figure in figures:
        table.add_row(*row(figure))
    Console(width=None if sys.stdout.isatty() else 180).print(table)
