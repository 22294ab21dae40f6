"""Measuring in a process of its own: what it takes of memory is then the work's, not what earlier work left free."""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")


def in_fresh_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a module's function in a new interpreter."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class PeakMemory:
    """Bytes of memory that the block takes at most beyond what the process held before; needs Linux and glibc."""

    bytes = 0

    def __enter__(self) -> PeakMemory:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier work left free would hide what this takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._before = _status("VmRSS:")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = _status("VmHWM:") - self._before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))
