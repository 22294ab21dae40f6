"""Table A2 as a table beside the paper's, and as a plot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gentrie.bench.harness import Spread, bars
from gentrie.bench.table_a2 import PAPER, SKIPPING, UNCONSTRAINED, MethodFigures, Result

if TYPE_CHECKING:
    from rich.table import Table


def table(result: Result) -> Table:
    """Return the paper's rows and ours, catalog by catalog; lookups and calls in milliseconds a token."""
    from rich.table import Table

    shown = Table(
        title=f"Table A2: {result.settings.model} on {result.settings.device}",
        caption="means of the repetitions, medians where in percent; "
        "lookup: finding the allowed tokens; call: the whole processor; "
        "bound: (in + out) / (out + branching), the speed where forced tokens cost nothing",
    )
    shown.add_column("catalog", overflow="fold")
    shown.add_column("method", overflow="fold")
    for heading in (
        "items, tokens/item",
        "tokens in / out",
        "token/s with / without",
        "slower by",
        "times as fast, bound",
        "processor's share",
        "lookup ms in / out",
        "in, item 1 -> 10",
        "call ms in / out",
    ):
        shown.add_column(heading, justify="right", overflow="fold")
    for name, catalog in result.catalogs.items():
        label = name
        if name in PAPER:
            paper = PAPER[name]
            shown.add_row(
                label,
                "the paper, A100",
                f"{paper.items:,}, {paper.tokens_per_item:.1f}",
                f"{paper.tokens_inside} / {paper.tokens_outside}",
                f"{paper.tokens_per_second:.2f} / {paper.tokens_per_second_unconstrained:.2f}",
                f"{1 - paper.tokens_per_second / paper.tokens_per_second_unconstrained:.1%}",
                "",
                "",
                f"{paper.lookup_ms_inside:.4f} / {paper.lookup_ms_outside:.4f}",
                "",
                "",
            )
            label = ""
        free = catalog.methods[UNCONSTRAINED]
        for method, figures in catalog.methods.items():
            if method == UNCONSTRAINED:
                continue
            shown.add_row(
                label,
                method,
                f"{catalog.items:,}, {catalog.tokens_per_item:.1f}",
                f"{catalog.tokens_inside} / {catalog.tokens_outside}",
                f"{figures.tokens_per_second.mean:.2f} / {free.tokens_per_second.mean:.2f}",
                "" if method == SKIPPING else f"{figures.slowdown.median:.1%}",
                _faster(figures, catalog.bound) if method == SKIPPING else "",
                f"{figures.call_share.median:.1%}" if figures.call_share else "",
                _pair(figures.lookup_ms_inside, figures.lookup_ms_outside, " / "),
                _pair(figures.lookup_ms_first_item, figures.lookup_ms_last_item, " -> "),
                _pair(figures.call_ms_inside, figures.call_ms_outside, " / "),
            )
            label = ""
        shown.add_section()
    return shown


def plot(result: Result, path: str | os.PathLike[str]) -> None:
    """Draw speeds and times of all catalogs and methods as a PNG."""

    def series(figure: str) -> dict[str, dict[str, Spread]]:
        found: dict[str, dict[str, Spread]] = {}
        for name, catalog in result.catalogs.items():
            for method, figures in catalog.methods.items():
                spread = getattr(figures, figure)
                if spread is not None:
                    found.setdefault(method, {})[name] = spread
        return found

    bars(
        path,
        title=f"Table A2: {result.settings.model} on {result.settings.device}",
        panels={
            "tokens per second": series("tokens_per_second"),
            "processor inside items, ms": series("call_ms_inside"),
            "processor outside items, ms": series("call_ms_outside"),
        },
    )


def _faster(figures: MethodFigures, bound: float) -> str:
    times = 1 - figures.slowdown.median
    return f"{times:.2f}, {bound:.2f} ({times / bound:.0%})"


def _pair(first: Spread | None, second: Spread | None, between: str) -> str:
    if first is None or second is None:
        return ""
    return f"{first.mean:.4f}{between}{second.mean:.4f}"
