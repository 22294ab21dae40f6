"""What compiles: Triton for the device, or for a kind of GPU without one, where launches start nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch

from gentrie.kernels._launch import WIDEN, usable
from gentrie.kernels._triton import HAS_TRITON

_NO_DEVICE = -1  # Triton keeps what it knows by device; this is none's
_MOST_SHARED = 1 << 30  # the launch on a device says what it has


def check_toolchain(arch: str | None) -> None:
    """Raise RuntimeError where nothing can be compiled, for ``arch`` or, where that is None, for the device."""
    if WIDEN:
        raise RuntimeError("TRITON_INTERPRET=1 is set, with which nothing is compiled: unset it")
    if arch is not None and not HAS_TRITON:
        raise RuntimeError("the package triton is not installed")
    if arch is None and not torch.cuda.is_available():
        raise RuntimeError("there is no CUDA device that torch sees; to compile for another machine's, name its arch")
    if arch is None and not usable():
        raise RuntimeError("Triton cannot run here: see the warning")


@contextmanager
def ahead_of_time(arch: str | None) -> Iterator[None]:
    """Kernels launched inside are compiled for ``arch`` ("sm_90") and not started; None: everything is as usual.

    A launch goes the usual way up to the driver, whose place is taken. What names an entry of Triton's cache (source,
    types, constants and divisibility of arguments, options, compiler, kind of GPU) is therefore as on a device.

    Raises
    ------
    ValueError
        If ``arch`` names no kind of GPU.
    """
    if arch is None:
        yield
        return
    named = re.fullmatch(r"sm_(\d{2,3})a?", arch)
    if named is None:
        raise ValueError(f"arch={arch!r} is not the name of a kind of GPU, like 'sm_90'")
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    former = vars(driver).get("_active")
    driver.set_active(_driver(GPUTarget("cuda", int(named[1]), 32)))
    try:
        yield
    finally:
        driver.set_active(former)


def _driver(target: Any) -> Any:
    """What Triton asks of a driver, with no device behind it."""

    def start_nothing(*arguments: object) -> None:
        return None

    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": _MOST_SHARED},
        load_binary=lambda *arguments: (object(), 0, 0, 0, 1024),
    )
    return SimpleNamespace(
        utils=utils,
        launcher_cls=lambda *arguments: start_nothing,
        get_current_target=lambda: target,
        get_current_device=lambda: _NO_DEVICE,
        get_current_stream=lambda device: 0,
    )
