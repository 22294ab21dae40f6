"""Rows of Table A2 as figures: from a run, and from the JSON files in ``results``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _figures import Figure

from gentrie.bench.harness import Spread
from gentrie.bench.table_a2 import SKIPPING, UNCONSTRAINED


def skipping_rows(name: str, speedup: Sequence[float], bound: float) -> list[Figure]:
    """What skipping forced runs comes to on one catalog: over free text, and as a share of the bound."""
    times = Spread.of(speedup)
    return [
        Figure.of(f"text with items, {name}: speed over free text", "times", times, goal=1, at_least=True),
        Figure.of(
            f"text with items, {name}: share of the bound",
            "%",
            times,
            scale=100 / bound,
            goal=75,
            at_least=True,
            note=f"bound {bound:.2f} times",
        ),
    ]


def saved_rows(path: Path) -> list[Figure]:
    """Rows of a file that ``gentrie bench table-a2`` wrote."""
    result: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    run = f"{result['settings']['model']}, {result['settings']['device']}"
    found = []
    for name, catalog in result["catalogs"].items():
        title = f"{name} ({run})"
        for method, measured in catalog["methods"].items():
            rounds = measured["speedup"]["rounds"]
            if method == SKIPPING:
                found += skipping_rows(title, rounds, catalog["bound"])
            elif method != UNCONSTRAINED:
                slower = Spread.of([1 - times for times in rounds])
                found.append(Figure.of(f"Table A2, {title}: {method}, slower than free by", "%", slower, scale=100))
        for scope, beams in catalog["beam_search"].items():
            figure = Figure.of(
                f"Table A2, {title}: beam search, scope={scope}, generate over ours",
                "times",
                Spread.of(beams["speedup"]["rounds"]),
                note=f"{beams['prompts']} prompts, {beams['beams']} beams, {beams['same_items']:.0%} the same items",
            )
            found.append(figure)
    return found
