"""Peers of a benchmark: other people's code, which may be missing or fail without our figures being lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from gentrie.bench.gpu.figures import GpuFigure, Percentiles
from gentrie.bench.gpu.timing import Method, captured


class Peers:
    """The peers that could be built, and figures that say why the others could not.

    Attributes
    ----------
    methods
        What to time, by name.
    notes
        What the figures of a peer have to say of it, by name.
    missing
        One figure for each peer that is not measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.methods: dict[str, Method] = {}
        self.notes: dict[str, str] = {}
        self.missing: list[GpuFigure] = []
        self._device = device

    def add(self, name: str, unit: str, build: Callable[[], Method], *, capture: bool = False) -> None:
        """Add a peer where it can be had.

        Parameters
        ----------
        name
            What tables call it.
        unit
            Unit of its figure.
        build
            Imports it, checks its result against ours and returns what is to be timed.
        capture
            Time the replay of a CUDA graph; of what cannot be captured, the call, with a note.
        """
        try:
            method = build()
        except ImportError as error:
            self.missing.append(GpuFigure.missing(name, unit, f"not importable: {error}"))
            return
        except Exception as error:  # whatever goes wrong in it is no fault of ours
            self.missing.append(GpuFigure.missing(name, unit, f"failed: {type(error).__name__}: {error}"))
            return
        if capture:
            try:
                method = captured(method, self._device)
            except Exception as error:
                self.notes[name] = f"not in a CUDA graph: {type(error).__name__}: {error}"
        self.methods[name] = method

    def figures(self, taken: Mapping[str, Percentiles], unit: str, scale: float) -> list[GpuFigure]:
        """The figures of those that were timed, then of the missing ones."""
        timed = [
            GpuFigure.of(name, unit, taken[name], scale=scale, note=self.notes.get(name, "")) for name in self.methods
        ]
        return [*timed, *self.missing]


def ratio(
    name: str,
    taken: Mapping[str, Percentiles],
    above: str,
    below: str,
    *,
    goal: float | None = None,
    at_least: bool = False,
    note: str = "",
) -> GpuFigure:
    """How many times ``above`` takes what ``below`` does, round by round; a missing figure where one was not timed."""
    for method in (above, below):
        if method not in taken:
            return GpuFigure.missing(name, "times", f"{method} is not measured", goal=goal, at_least=at_least)
    return GpuFigure.of(name, "times", taken[above].over(taken[below]), goal=goal, at_least=at_least, note=note)
