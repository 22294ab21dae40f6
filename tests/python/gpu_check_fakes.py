"""What stands for GPU benchmarks where their own processes are tested; imports little, as each process does it anew."""

from __future__ import annotations

import os
from typing import Any

from gentrie.bench.gpu.figures import GpuFigure, Percentiles


def fails(sizes: Any, *, device: str, rounds: int) -> list[GpuFigure]:
    raise ValueError(f"no luck on {device}")


def dies(sizes: Any, *, device: str, rounds: int) -> list[GpuFigure]:
    os._exit(3)


def counts(sizes: Any, *, device: str, rounds: int) -> list[GpuFigure]:
    return [GpuFigure.of("rounds", "us", Percentiles.of(range(rounds)), goal=5)]
