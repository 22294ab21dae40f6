"""How GPU benchmarks measure: methods in turns, each call on a cold L2 cache, every round kept.

On a CPU the same functions run with the host's clock, without graphs and without overwriting caches.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from gentrie.bench.gpu.figures import Percentiles
from gentrie.bench.harness import in_turns

Method: TypeAlias = Callable[[], object]

ROUNDS = 50
WARMUP = 5

_COLD_BYTES = 1 << 29  # takes an H100 about 0.2 ms, in which the host can enqueue what follows
_UNKNOWN_L2 = 1 << 26


class DeviceClock:
    """Time on a CUDA device by events, from the call's first work to its last.

    Before each call a buffer of at least four times the L2 cache is written, so that nothing of the call is cached.
    While the device writes it, the host enqueues the call: launch times show only in calls that take longer to enqueue.
    """

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        cache = getattr(properties, "L2_cache_size", _UNKNOWN_L2)  # torch 2.4 does not know it
        self._cold = torch.empty(max(_COLD_BYTES, 4 * cache), dtype=torch.uint8, device=device)
        self._device = device
        self._events: list[tuple[Any, Any]] = []

    def measure(self, method: Method) -> None:
        """Call once between two events."""
        begin, end = _event(), _event()
        self._cold.zero_()
        begin.record()
        method()
        end.record()
        self._events.append((begin, end))

    def seconds(self) -> list[float]:
        """Seconds of every call measured, in order; waits for the device."""
        torch.cuda.synchronize(self._device)
        return [begin.elapsed_time(end) / 1e3 for begin, end in self._events]


class HostClock:
    """Time that the host spends in a call; the device has nothing to do when it starts."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: list[float] = []

    def measure(self, method: Method) -> None:
        """Wait for the device, then call once between two looks at the clock."""
        synchronize(self._device)
        start = time.perf_counter()
        method()
        self._seconds.append(time.perf_counter() - start)

    def seconds(self) -> list[float]:
        """Seconds of every call measured, in order."""
        return list(self._seconds)


def compare(
    methods: Mapping[str, Method], device: torch.device, *, rounds: int = ROUNDS, host: bool = False
) -> dict[str, Percentiles]:
    """Time methods in turns, in an order that shifts by one each round.

    Parameters
    ----------
    methods
        What to time, by name.
    device
        Where they run.
    rounds
        Calls of each that are timed, after ``WARMUP`` that are not.
    host
        The host's clock on a CUDA device too.

    Returns
    -------
    dict[str, Percentiles]
        Seconds a call, by name.
    """
    on_device = device.type == "cuda" and not host
    clock: DeviceClock | HostClock = DeviceClock(device) if on_device else HostClock(device)
    order: list[str] = []
    for turn, name in in_turns(tuple(methods), WARMUP + rounds):
        if turn < WARMUP:
            methods[name]()
            continue
        clock.measure(methods[name])
        order.append(name)
    taken: dict[str, list[float]] = {name: [] for name in methods}
    for name, seconds in zip(order, clock.seconds(), strict=True):
        taken[name].append(seconds)
    return {name: Percentiles.of(seconds) for name, seconds in taken.items()}


def captured(method: Method, device: torch.device) -> Method:
    """``method`` as the replay of a CUDA graph, after calls that compile it; on a CPU the method itself."""
    if device.type != "cuda":
        return method
    beside: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(3):
            method()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        method()
    replay: Method = graph.replay
    return replay


def extra_peak_bytes(method: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that a call has allocated at once on the device beyond what was allocated before, its results
    included; None on a CPU, where torch does not count."""
    method()  # may compile, which takes memory too
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    method()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def synchronize(device: torch.device) -> None:
    """Wait for a CUDA device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
