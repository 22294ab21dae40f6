"""The figures of ``gentrie gpu-check`` as a table and as plots."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gentrie._optional import require
from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.harness import write_whole

if TYPE_CHECKING:
    from rich.table import Table

    from gentrie.bench.gpu.check import Outcome


def table(benchmarks: Mapping[str, Outcome], title: str) -> Table:
    """Return every figure with its goal; failed benchmarks with their message."""
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title)
    for heading in ("benchmark", "figure", "goal", "median (20%-80%)", "95%, 99%", "", "note"):
        shown.add_column(heading, overflow="fold")
    for name, outcome in benchmarks.items():
        if outcome.error is not None:
            shown.add_row(name, "", "", "", "", "FAILED", escape(outcome.error))
        for at, figure in enumerate(outcome.figures):
            shown.add_row("" if at else name, *map(escape, _row(figure)))
        shown.add_section()
    return shown


def plot(name: str, figures: Sequence[GpuFigure], device: str, path: str | os.PathLike[str]) -> bool:
    """Draw medians as bars, a panel for each unit, with whiskers from the 20th to the 80th percentile and a line at
    each goal, as a PNG.

    Returns
    -------
    bool
        Whether there was anything to draw; otherwise no file is written.

    Raises
    ------
    ImportError
        matplotlib is missing.
    """
    require("matplotlib", extra="bench")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    by_unit: dict[str, list[GpuFigure]] = {}
    for figure in figures:
        if figure.median is not None:
            by_unit.setdefault(figure.unit, []).append(figure)
    if not by_unit:
        return False
    heights = [len(listed) + 1 for listed in by_unit.values()]
    drawing = Figure(figsize=(11, 0.4 * sum(heights) + 0.6), layout="constrained")
    FigureCanvasAgg(drawing)
    drawing.suptitle(f"{name} on {device}")
    panels = drawing.subplots(len(by_unit), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (unit, listed) in zip(panels, by_unit.items(), strict=True):
        for place, figure in enumerate(listed):
            low, median, high = (value or 0.0 for value in (figure.low, figure.median, figure.high))
            whiskers = [[median - low], [high - median]]
            axes.barh(place, median, 0.6, xerr=whiskers, capsize=2, color="C1" if figure.goal is None else "C0")
            if figure.goal is not None:
                axes.vlines(figure.goal, place - 0.45, place + 0.45, color="black")
        axes.set_yticks(range(len(listed)), [figure.name for figure in listed], fontsize=6)
        axes.invert_yaxis()
        axes.set_xlabel(unit)
    drawn = io.BytesIO()
    drawing.savefig(drawn, format="png", dpi=120)
    write_whole(path, drawn.getvalue())
    return True


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _row(figure: GpuFigure) -> list[str]:
    limit = "at least" if figure.at_least else "at most"
    goal = "" if figure.goal is None else f"{limit} {_number(figure.goal)} {figure.unit}"
    if figure.median is None or figure.low is None or figure.high is None:
        return [figure.name, goal, "not measured", "", "", figure.note]
    spread = "" if figure.low == figure.high else f" ({_number(figure.low)}-{_number(figure.high)})"
    value = f"{_number(figure.median)}{spread} {figure.unit}"
    tail = ", ".join(_number(rank) for rank in (figure.p95, figure.p99) if rank is not None and spread)
    return [figure.name, goal, value, tail, figure.verdict, figure.note]
