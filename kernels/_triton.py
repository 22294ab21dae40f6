"""Triton where it is installed. Without it kernels are plain functions that nothing calls; their modules import."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

HAS_TRITON = find_spec("triton") is not None

triton: Any
tl: Any
if HAS_TRITON:
    triton, tl = import_module("triton"), import_module("triton.language")
else:
    triton = SimpleNamespace(jit=lambda kernel: kernel)
    tl = SimpleNamespace(constexpr=lambda value: value)


def ceil_div(count: int, size: int) -> int:
    """``ceil(count / size)``."""
    return -(-count // size)


def power_of_two(count: int) -> int:
    """The least power of two that is not below ``count``, at least 1."""
    return 1 << max(count - 1, 0).bit_length()
