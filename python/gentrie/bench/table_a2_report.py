"""Table A2 as a table beside the paper's, and as a plot."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gentrie.bench.harness import Spread, bars
from gentrie.bench.table_a2 import GENTRIE, PAPER, SKIPPING, UNCONSTRAINED, CatalogFigures, Result

if TYPE_CHECKING:
    from rich.table import Table


def table(result: Result) -> Table:
    """Return the paper's rows and ours, catalog by catalog; lookups and calls in milliseconds a token."""
    from rich.table import Table

    shown = Table(
        title=f"Table A2: {result.settings.model} on {result.settings.device}",
        caption="means of the repetitions, medians of shares and ratios; "
        "lookup: finding the allowed tokens; call: the whole processor; "
        "bound: (in + out) / (out + branching), the speed over free text where forced tokens cost nothing",
    )
    shown.add_column("catalog", overflow="fold")
    shown.add_column("method", overflow="fold")
    for heading in (
        "items, tokens/item",
        "tokens in / out",
        "token/s with / without",
        "slower by",
        "constrained, forced runs skipped",
        "bound",
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
                "",
                f"{paper.lookup_ms_inside:.4f} / {paper.lookup_ms_outside:.4f}",
                "",
                "",
            )
            label = ""
        free = catalog.methods[UNCONSTRAINED]
        for method, figures in catalog.methods.items():
            if method in (UNCONSTRAINED, SKIPPING):
                continue
            skipped, bound = _skipped(catalog) if method == GENTRIE else ("", "")
            shown.add_row(
                label,
                method,
                f"{catalog.items:,}, {catalog.tokens_per_item:.1f}",
                f"{catalog.tokens_inside} / {catalog.tokens_outside}",
                f"{figures.tokens_per_second.mean:.2f} / {free.tokens_per_second.mean:.2f}",
                f"{1 - figures.speedup.median:.1%}",
                skipped,
                bound,
                f"{figures.call_share.median:.1%}" if figures.call_share else "",
                _pair(figures.lookup_ms_inside, figures.lookup_ms_outside, " / "),
                _pair(figures.lookup_ms_first_item, figures.lookup_ms_last_item, " -> "),
                _pair(figures.call_ms_inside, figures.call_ms_outside, " / "),
            )
            label = ""
        shown.add_section()
    return shown


def beam_table(result: Result) -> Table:
    """Return beam search for single items, ``generate`` with a processor beside :func:`beam_search`."""
    from rich.table import Table

    shown = Table(
        title=f"Beam search: {result.settings.model} on {result.settings.device}",
        caption="medians of the repetitions; rows: distributions over the next token that were computed; "
        "padding: places in the model's inputs behind the prompts that held no token",
    )
    shown.add_column("catalog", overflow="fold")
    shown.add_column("softmax over", overflow="fold")
    for heading in (
        "prompts x beams",
        "generate, s",
        "gentrie, s",
        "times as fast",
        "calls, generate / gentrie",
        "rows, generate / gentrie",
        "padding",
        "same items",
    ):
        shown.add_column(heading, justify="right", overflow="fold")
    over = {"trie": "valid tokens", "vocab": "the vocabulary"}
    for name, catalog in result.catalogs.items():
        for scope, figures in catalog.beam_search.items():
            shown.add_row(
                name,
                over[scope],
                f"{figures.prompts} x {figures.beams}",
                f"{figures.generate_seconds.median:.3f}",
                f"{figures.seconds.median:.3f}",
                figures.speedup.format(1),
                f"{figures.generate_calls} / {figures.calls}",
                f"{figures.generate_rows} / {figures.rows}",
                f"{figures.padded_slots}",
                f"{figures.same_items:.0%}",
            )
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


def _skipped(catalog: CatalogFigures) -> tuple[str, str]:
    """Speed with forced runs skipped, beside the bound and what of it is reached."""
    figures = catalog.methods[SKIPPING]
    speed = f"{figures.tokens_per_second.mean:.2f}, {figures.speedup.median:.2f} times free"
    return speed, f"{catalog.bound:.2f} times, {catalog.share_of_bound.median:.0%} reached"


def _pair(first: Spread | None, second: Spread | None, between: str) -> str:
    if first is None or second is None:
        return ""
    return f"{first.mean:.4f}{between}{second.mean:.4f}"
