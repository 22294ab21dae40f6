"""Runs the GPU tests and benchmarks and keeps what they come to, whatever fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.gpu.gpu_tests import PytestOutcome
from gentrie.bench.harness import circumstances, write_json

if TYPE_CHECKING:
    from gentrie.bench.gpu.suite import Benchmark

_PACKAGES = ("triton", "liger-kernel", "cut-cross-entropy", "flashinfer-python", "xgrammar")


@dataclass(frozen=True)
class Outcome:
    """What one benchmark came to.

    Attributes
    ----------
    figures
        Its figures; none where it failed.
    seconds
        How long it took.
    error
        Why it failed; None where it did not.
    """

    figures: list[GpuFigure]
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Result:
    """A run, as it is written to JSON.

    Attributes
    ----------
    settings
        Device, rounds, and the sizes of each benchmark by name.
    cuts
        What was left out.
    machine
        Device, driver, versions and commit.
    tests
        The GPU tests; None where they were not run.
    benchmarks
        What each came to, by name.
    """

    settings: Mapping[str, Any]
    cuts: list[str]
    machine: Mapping[str, Any]
    tests: PytestOutcome | None
    benchmarks: Mapping[str, Outcome]

    @property
    def is_sound(self) -> bool:
        """Whether no benchmark and no test failed. Goals that were missed are no failure."""
        tests_passed = self.tests is None or self.tests.is_passed
        return tests_passed and all(outcome.error is None for outcome in self.benchmarks.values())

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the figures and a plot of each benchmark into ``folder``, made where missing; returns the paths."""
        from gentrie.bench.gpu.report import plot

        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        device = re.sub(r"[^a-z0-9]+", "-", str(self.machine.get("gpu", {}).get("name", "cpu")).lower()).strip("-")
        stem = f"gpu_check-{device}" + ("-short" if self.cuts else "")
        figures = place / f"{stem}.json"
        write_json(figures, {"benchmark": "gpu-check", **asdict(self)})
        written = [figures]
        for name, outcome in self.benchmarks.items():
            drawing = place / f"{stem}-{name}.png"
            if plot(name, outcome.figures, str(device), drawing):
                written.append(drawing)
        return written


def require_cuda() -> None:
    """Raise OSError where torch sees no CUDA device or kernels would run in Triton's interpreter."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "none"
        raise OSError(f"gpu-check needs a CUDA device, and torch sees none (torch {torch.__version__}, CUDA {built})")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise OSError("gpu-check measures compiled kernels: unset TRITON_INTERPRET, which is 1")


def machine(device: str) -> dict[str, Any]:
    """What figures depend on: device, driver, versions, commit."""
    found = circumstances(device)
    for package in _PACKAGES:
        try:
            found["versions"][package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        found["gpu"]["compute_capability"] = f"{properties.major}.{properties.minor}"
        found["gpu"]["multiprocessors"] = properties.multi_processor_count
        found["driver"] = _driver()
    return found


def run_benchmarks(
    suite: Mapping[str, Benchmark], *, quick: bool, rounds: int, device: str = "cuda"
) -> Iterator[tuple[str, Outcome]]:
    """Run each in a process of its own, one after the other; yields its name and what it came to.

    What one leaves on the device, or does to it, does not reach the next.
    """
    for name, benchmark in suite.items():
        sizes = benchmark.chosen(quick)
        start = time.perf_counter()
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            try:
                outcome = pool.submit(_run, benchmark.measure, sizes, device, rounds).result()
            except BrokenProcessPool:
                outcome = Outcome([], time.perf_counter() - start, "its process died")
        yield name, outcome


def _run(measure: Callable[..., list[GpuFigure]], sizes: Any, device: str, rounds: int) -> Outcome:
    start = time.perf_counter()
    try:
        figures = measure(sizes, device=device, rounds=rounds)
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        return Outcome([], time.perf_counter() - start, reason)
    return Outcome(figures, time.perf_counter() - start)


def _driver() -> str | None:
    """Version of the driver; None where nvidia-smi does not tell it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.partition("\n")[0].strip() or None
