"""How gentrie's benchmarks measure: methods in turns, every round kept, results with their circumstances.

Figures of different methods are only comparable when taken in one run, in turns: machines are shared and
their clocks move. Every round is written down, so that a reader can form other statistics than ours.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from gentrie._optional import require

_REPORTED_PACKAGES = ("gentrie", "numpy", "torch", "transformers", "tokenizers", "xgrammar", "llguidance")


@dataclass(frozen=True)
class Spread:
    """Rounds of one figure in the order they were taken, and what they come to."""

    rounds: tuple[float, ...]
    mean: float
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, rounds: Sequence[float]) -> Spread:
        """Summarise one or more rounds; ``low`` and ``high`` are the extremes."""
        return cls(tuple(rounds), statistics.fmean(rounds), statistics.median(rounds), min(rounds), max(rounds))

    def format(self, digits: int = 2, scale: float = 1.0) -> str:
        """Return ``median (low-high)``, each times ``scale``."""
        median, low, high = (f"{value * scale:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low}-{high})"


def in_turns(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield ``(round, name)``: every name once a round, in an order that shifts by one each round.

    With the shift no method always runs after the same other one, on the caches it left.
    """
    for number in range(rounds):
        shift = number % len(names)
        for name in (*names[shift:], *names[:shift]):
            yield number, name


def compare(
    functions: Mapping[str, Callable[[], object]], *, rounds: int = 7, number: int = 1, warmup: int = 1
) -> dict[str, Spread]:
    """Time functions in turns.

    Parameters
    ----------
    functions
        What to time, by name.
    rounds
        Rounds of each.
    number
        Calls in a round.
    warmup
        Untimed rounds of each before the first.

    Returns
    -------
    dict[str, Spread]
        Seconds a call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn, name in in_turns(tuple(functions), warmup + rounds):
        function = functions[name]
        start = time.perf_counter()
        for _ in range(number):
            function()
        elapsed = time.perf_counter() - start
        if turn >= warmup:
            seconds[name].append(elapsed / number)
    return {name: Spread.of(taken) for name, taken in seconds.items()}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run torch's operators on ``count`` threads inside the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def circumstances(device: str = "cpu") -> dict[str, Any]:
    """Return what a figure depends on: time, machine, versions, and the commit when run from a checkout.

    Parameters
    ----------
    device
        torch device the benchmark runs on; a GPU's name and memory are added.
    """
    found: dict[str, Any] = {
        "time_utc": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_name(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": _versions(),
        "commit": _commit(),
        "device": device,
    }
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {"name": properties.name, "memory_bytes": properties.total_memory}
        found["cuda"] = torch.version.cuda
    return found


def write_json(path: str | os.PathLike[str], result: Mapping[str, Any]) -> None:
    """Write ``result`` as indented JSON, dataclasses as objects; the file appears whole or not at all."""
    text = json.dumps(result, indent=1, default=_plain) + "\n"
    write_whole(path, text.encode())


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name beside ``path``, sync it and rename it into place.

    Raises
    ------
    OSError
        The folder is missing or cannot be written; nothing is left behind.
    """
    target = Path(path)
    descriptor, temporary = tempfile.mkstemp(prefix=target.name, suffix=".tmp", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def bars(
    path: str | os.PathLike[str],
    *,
    panels: Mapping[str, Mapping[str, Mapping[str, Spread]]],
    title: str,
) -> None:
    """Draw grouped bars of medians, with whiskers from the lowest to the highest round, as a PNG.

    Parameters
    ----------
    path
        The PNG to write.
    panels
        Panel title, then series, then group, to the figure shown.
    title
        Title of the whole.

    Raises
    ------
    ImportError
        matplotlib is missing.
    """
    require("matplotlib", extra="bench")
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(panels), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    for column, (panel, series) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), column + 1)
        groups = list(dict.fromkeys(group for figures in series.values() for group in figures))
        width = 0.8 / len(series)
        for order, (name, figures) in enumerate(series.items()):
            places = [groups.index(group) + (order - (len(series) - 1) / 2) * width for group in figures]
            medians = [spread.median for spread in figures.values()]
            below = [spread.median - spread.low for spread in figures.values()]
            above = [spread.high - spread.median for spread in figures.values()]
            axes.bar(
                places,
                medians,
                width,
                yerr=(below, above),
                capsize=2,
                label=name,
                color=f"C{names.index(name)}",
            )
        axes.set_xticks(range(len(groups)), groups)
        axes.set_title(panel)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    write_whole(path, drawn.getvalue())


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write a {type(value).__name__} as JSON")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in _REPORTED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _commit() -> str | None:
    """Return the commit of the checkout this file belongs to, ``-dirty`` after it where it was changed."""
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
