"""The benchmarks of ``gentrie gpu-check``, in one table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from gentrie.bench.gpu import (
    beam_step,
    beam_step_titles,
    bear_loss,
    generate,
    request,
    topb_threshold,
    trie_linear,
    trie_mask,
)
from gentrie.bench.gpu.figures import GpuFigure


@dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes
    ----------
    measure
        ``measure(sizes, device="cuda", rounds=...)``: its figures. A function of a module: it runs in a process of its
        own.
    sizes
        What it measures.
    quick
        The same, smaller; None where it is quick.
    """

    measure: Callable[..., list[GpuFigure]]
    sizes: Any
    quick: Any = None

    def chosen(self, quick: bool) -> Any:
        """The sizes to run."""
        return self.quick if quick and self.quick is not None else self.sizes

    def cuts(self) -> list[str]:
        """Where the quick sizes leave something out."""
        chosen = self.chosen(True)
        pairs = ((each.name, getattr(chosen, each.name), getattr(self.sizes, each.name)) for each in fields(chosen))
        return [f"{name}: {less} instead of {whole}" for name, less, whole in pairs if less != whole]


SUITE: Mapping[str, Benchmark] = {
    "beam-step": Benchmark(beam_step.measure, beam_step.Sizes(), beam_step.QUICK),
    "beam-step-titles": Benchmark(beam_step_titles.measure, beam_step_titles.Sizes()),
    "trie-mask": Benchmark(trie_mask.measure, trie_mask.Sizes()),
    "topb-threshold": Benchmark(topb_threshold.measure, topb_threshold.Sizes()),
    "bear-loss": Benchmark(bear_loss.measure, bear_loss.Sizes(), bear_loss.QUICK),
    "trie-linear": Benchmark(trie_linear.measure, trie_linear.Sizes()),
    "generate": Benchmark(generate.measure, generate.Sizes()),
    "request": Benchmark(request.measure, request.Sizes(), request.QUICK),
}
