"""Runs the benchmark of :mod:`gentrie.bench.table_a2` and writes what it found."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path

from gentrie._optional import require
from gentrie.bench.harness import circumstances, write_json
from gentrie.bench.table_a2 import PAPER, Result, Settings
from gentrie.bench.table_a2_report import plot


def run(settings: Settings, *, progress: bool = False) -> Result:
    """Run the benchmark.

    Parameters
    ----------
    settings
        What to run.
    progress
        Show progress bars.

    Raises
    ------
    ImportError
        torch, transformers, tokenizers or matplotlib (for the plot afterwards) is missing.
    RuntimeError
        A method said something else than the script: it allowed a token that it must not, or
        removed one that is allowed.
    """
    for package in ("torch", "transformers", "tokenizers", "matplotlib"):
        require(package, extra="bench")
    from gentrie.bench.measure import measure

    catalogs = measure(settings, progress=progress)
    return Result(settings, circumstances(settings.device), catalogs)


def write(result: Result, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write the figures of a run and a plot into ``folder``, made where missing, and return both paths."""
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    name = "-".join(("table_a2", result.settings.model, result.settings.device.replace(":", "")))
    name += "-short" if result.settings.cuts() else ""
    figures = place / f"{name}.json"
    drawing = place / f"{name}.png"
    write_json(
        figures,
        {
            "benchmark": "table_a2",
            # Where a catalog lies says nothing to others, and the catalogs are named below.
            "settings": asdict(replace(result.settings, real=None)),
            "cuts": result.settings.cuts(),
            "circumstances": result.circumstances,
            "catalogs": {
                name: {**asdict(figures), "bound": figures.bound, "share_of_bound": figures.share_of_bound}
                for name, figures in result.catalogs.items()
            },
            "paper": PAPER,
        },
    )
    plot(result, drawing)
    return figures, drawing
