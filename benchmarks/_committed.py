"""Figures that take too long to measure anew: from the JSON in ``results``, which says on what machine and commit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _figures import Figure
from _table_a2 import saved_rows

RESULTS = Path(__file__).parent / "results"

SCALING = "python benchmarks/scaling.py --max-items 100000000 --max-titles 1000000"
OFFICE = {
    "hr@10 constrained": ("HR@10", ""),
    "ndcg@10 constrained": ("NDCG@10", ""),
    "pruning_rate@10": ("PruningRate@10", ""),
    "ood@10 constrained": ("OOD@10", ""),
    "ood@10 free": ("OOD@10, not constrained", ""),
    "cpu_seconds_per_step": ("CPU time of a training step", "s"),
    "peak_memory_bytes": ("peak memory", "MB"),
}


def committed_rows() -> list[tuple[Figure, str]]:
    """Each figure and the command that measured it."""
    return [*_checks(), *_published(), *_scaling(), *_wide_beams(), *_table_a2(), *_office(), *_gpu()]


def _read(name: str) -> Any:
    path = RESULTS / name
    return json.loads(path.read_text()) if path.is_file() else None


def _of(name: str, unit: str, spread: dict[str, float], scale: float = 1.0, **rest: Any) -> Figure:
    return Figure(name, unit, **{key: scale * spread[key] for key in ("median", "low", "high")}, **rest)


def _checks() -> Iterator[tuple[Figure, str]]:
    if found := _read("checks.json"):
        minutes = found["fast_tests"]["seconds"] / 60
        yield Figure.exact("tests that the README names, on two cores", "min", minutes, goal=6), ".ci/run"
        minutes = found["steps"]["all steps"] / 60
        yield Figure.exact("all checks with their installations, on two cores", "min", minutes, goal=45), ".ci/run"


def _published() -> Iterator[tuple[Figure, str]]:
    for script, what in (("compare_published", "approach"), ("compare_published_loss", "BEAR loss")):
        found = _read(f"{script}.json")
        for name, ratio in found["ratios"].items() if found else ():
            name = f"our rewriting of the published {what} over the original: {name}"
            yield _of(name, "times", ratio["ratio"], goal=1.2), f"python benchmarks/{script}.py"


def _scaling() -> Iterator[tuple[Figure, str]]:
    """The smallest and the largest catalogs with goals: 10^5 ids, and 10^8 (5 x 10^7 of the longer ones)."""
    found = _read("scaling.json")
    points = [point for point in found["points"] if point["method"] == "gentrie"] if found else []
    for point in points:
        name = f"{point['items']:,} {point['catalog']}"
        if point["items"] >= 50_000_000:
            yield _of(f"{name}: build", "s", point["build_s"], goal=180), SCALING
            yield _of(f"{name}: load unverified", "ms", point["load_ms"], goal=10), SCALING
            yield _of(f"{name}: child lookup in C++", "ns", point["child_lookup_ns"], goal=400), SCALING
        elif point["items"] == 100_000 and point["catalog"] != "titles":
            yield _of(f"{name}: child lookup in C++", "ns", point["child_lookup_ns"], goal=100), SCALING


def _wide_beams() -> Iterator[tuple[Figure, str]]:
    """More beams, with the ratio at fewer as the goal: it is to grow."""
    found = _read("beam_search_wide.json")
    fewer: dict[str, float] = {}
    for figure in found["figures"] if found else ():
        scope, what = figure["name"].split(", ")[-1].split(": ")
        if what == "generate over ours":
            figure["goal"], fewer[scope] = fewer.get(scope), figure["median"]
            figure["name"] += f" ({found['circumstances']['note']})"
        yield Figure(**figure), found["command"]


def _table_a2() -> Iterator[tuple[Figure, str]]:
    for path in sorted(RESULTS.glob("table_a2*.json")):
        for figure in saved_rows(path):
            yield figure, "gentrie bench table-a2"


def _office() -> Iterator[tuple[Figure, str]]:
    found, command = _read("office_training.json"), "python benchmarks/office_training.py"
    for method, figures in found["methods"].items() if found else ():
        for key, (name, unit) in OFFICE.items():
            scale = 1e-6 if unit == "MB" else 1.0
            yield _of(f"training on Office, {method.upper()}: {name}", unit, figures[key], scale), command
    if found:
        minutes = Figure.exact("training on Office: all runs, on two cores", "min", found["cpu_minutes"] / 2, goal=40)
        yield minutes, command
        for name, seconds in found["seconds_per_step_on_4_prompts"].items():
            yield Figure.exact(f"training on Office: a step of 4 prompts, {name}", "s", seconds), command


def _gpu() -> Iterator[tuple[Figure, str]]:
    for path in sorted(RESULTS.glob("gpu_check*.json")):
        for outcome in json.loads(path.read_text())["benchmarks"].values():
            for figure in outcome["figures"]:
                del figure["rounds"]
                if figure["median"] is not None:
                    yield Figure(**figure), "gentrie gpu-check"
