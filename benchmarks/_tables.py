"""Tables of docs/performance.md: Table A2 and the training on real interactions, from the JSON in ``results``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gentrie.bench.table_a2 import PAPER, SKIPPING, UNCONSTRAINED

RESULTS = Path(__file__).parent / "results"

_A2 = (
    "catalog",
    "",
    "tokens in / out",
    "token/s with / without",
    "faster than free",
    "lookup ms in / out",
    "whole call ms in / out",
)
_OFFICE = {
    "hr@10 constrained": "HR@10",
    "ndcg@10 constrained": "NDCG@10",
    "pruning_rate@10": "PruningRate@10",
    "ood@10 constrained": "OOD@10",
    "ood@10 free": "OOD@10, not constrained",
}


def table_a2(path: Path = RESULTS / "table_a2-small-cpu-short.json") -> str:
    """Every catalog with the paper's row, the methods', and beam search over single items."""
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = [*_head(_A2), *(line for name, catalog in result["catalogs"].items() for line in _catalog(name, catalog))]
    scopes = {"trie": "valid tokens", "vocab": "vocabulary"}
    beams = _head(("beam search, single items", "softmax over", "`generate`, s", "`beam_search`, s", "times as fast"))
    for name, catalog in result["catalogs"].items():
        for scope, found in catalog["beam_search"].items():
            seconds = f"{found['generate_seconds']['median']:.2f} | {found['seconds']['median']:.3f}"
            beams.append(f"| {name} | {scopes[scope]} | {seconds} | {found['speedup']['median']:.1f} |")
    cut = "; ".join(result["cuts"])
    note = f"Cut: {cut}. ![Table A2](../benchmarks/results/{path.with_suffix('.png').name})"
    return "\n".join([*lines, "", *beams, "", note])


def office(path: Path = RESULTS / "office_training.json") -> str:
    """One line a method: means over the seeds, and their range."""
    result = json.loads(path.read_text(encoding="utf-8"))
    lines = _head(("", *_OFFICE.values(), "CPU s a step", "peak MB"))
    for method, found in result["methods"].items():
        cells = [_range(found[name]) for name in _OFFICE]
        step, memory = found["cpu_seconds_per_step"]["mean"], found["peak_memory_bytes"]["high"] / 1e6
        lines.append(f"| {method.upper()} | {' | '.join(cells)} | {step:.2f} | {memory:.0f} |")
    return "\n".join([*lines, "", f"![Sweep](../benchmarks/results/{path.with_suffix('.png').name})"])


def _head(names: tuple[str, ...]) -> list[str]:
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def _range(spread: dict[str, float]) -> str:
    if spread["low"] == spread["high"]:
        return f"{spread['mean']:.3f}"
    return f"{spread['mean']:.3f} ({spread['low']:.3f}-{spread['high']:.3f})"


def _catalog(name: str, catalog: dict[str, Any]) -> Iterator[str]:
    label = name
    if name in PAPER:
        paper = PAPER[name]
        faster = paper.tokens_per_second / paper.tokens_per_second_unconstrained - 1
        yield (
            f"| {label} | the paper, A100, Llama-3-8B | {paper.tokens_inside:,} / {paper.tokens_outside:,} "
            f"| {paper.tokens_per_second:.1f} / {paper.tokens_per_second_unconstrained:.1f} | {faster:.1%} "
            f"| {paper.lookup_ms_inside:.2f} / {paper.lookup_ms_outside:.2f} | |"
        )
        label = ""
    free = catalog["methods"][UNCONSTRAINED]["tokens_per_second"]["mean"]
    for method, found in catalog["methods"].items():
        if method == UNCONSTRAINED:
            continue
        faster = f"{found['speedup']['median'] - 1:.1%}"
        if method == SKIPPING:
            faster += f" (bound {catalog['bound'] - 1:.0%})"
        times = [_pair(found[f"{what}_ms_inside"], found[f"{what}_ms_outside"]) for what in ("lookup", "call")]
        yield (
            f"| {label} | {method} | {catalog['tokens_inside']} / {catalog['tokens_outside']} "
            f"| {found['tokens_per_second']['mean']:.0f} / {free:.0f} | {faster} | {' | '.join(times)} |"
        )
        label = ""


def _pair(inside: dict[str, float] | None, outside: dict[str, float] | None) -> str:
    return f"{inside['mean']:.3f} / {outside['mean']:.3f}" if inside and outside else ""
