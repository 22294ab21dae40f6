"""What a GPU benchmark reports: figures with their goals, their percentiles and every round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Percentiles:
    """Rounds of one figure in the order they were taken, their median, and the 20th and 80th percentile."""

    rounds: tuple[float, ...]
    low: float
    median: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Percentiles:
        """Summarise one or more rounds."""
        low, median, high = np.percentile(rounds, [20, 50, 80]).tolist()
        return cls(tuple(rounds), low, median, high)

    def over(self, other: Percentiles) -> Percentiles:
        """The ratio to another figure, round by round."""
        return Percentiles.of([x / y for x, y in zip(self.rounds, other.rounds, strict=True)])


@dataclass(frozen=True)
class GpuFigure:
    """One figure.

    Attributes
    ----------
    name, unit
        What is measured.
    median, low, high
        Median, 20th and 80th percentile of the rounds; None where it could not be measured, for the reason in ``note``.
    goal
        The most that ``median`` may be, or the least under ``at_least``; None for what is reported beside (peers,
        floors).
    note
        What the reader has to know of it.
    at_least
        See ``goal``.
    rounds
        Every round, in order; a single value for what is counted.
    p95, p99
        The 95th and 99th percentile of the rounds; the median is the 50th.
    """

    name: str
    unit: str
    median: float | None
    low: float | None
    high: float | None
    goal: float | None = None
    note: str = ""
    at_least: bool = False
    rounds: tuple[float, ...] = ()
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, name: str, unit: str, taken: Percentiles, *, scale: float = 1.0, **rest: Any) -> GpuFigure:
        """A figure of rounds, each times ``scale``; ``rest`` are further attributes."""
        low, median, high = (scale * value for value in (taken.low, taken.median, taken.high))
        rounds = tuple(scale * value for value in taken.rounds)
        p95, p99 = np.percentile(rounds, [95, 99]).tolist()
        return cls(name, unit, median, low, high, rounds=rounds, p95=p95, p99=p99, **rest)

    @classmethod
    def exact(cls, name: str, unit: str, value: float, **rest: Any) -> GpuFigure:
        """A figure that is counted, not timed."""
        return cls(name, unit, value, value, value, rounds=(value,), p95=value, p99=value, **rest)

    @classmethod
    def missing(cls, name: str, unit: str, why: str, **rest: Any) -> GpuFigure:
        """A figure that could not be measured, and why."""
        return cls(name, unit, None, None, None, note=why, **rest)

    @property
    def verdict(self) -> str:
        """``ok`` or ``SHORT``; nothing without a goal or a value."""
        if self.goal is None or self.median is None:
            return ""
        return "ok" if (self.median >= self.goal if self.at_least else self.median <= self.goal) else "SHORT"
