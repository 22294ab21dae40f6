"""Triton's launches, compiled as for a GPU and run by the machine on tensors of the CPU."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import torch

from ptx.machine import launch
from ptx.program import parse

LAUNCHED: set[str] = set()
"""Names of the kernels that were run."""


def install(arch: str) -> None:
    """From here on kernels are compiled for ``arch``, such as sm_90, and run on the CPU.

    Triton's interpreter has to be off.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.driver import driver

    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    driver.set_active(
        SimpleNamespace(
            utils=SimpleNamespace(unload_module=lambda module: None),
            get_current_target=lambda: target,
            get_current_device=lambda: -1,
            get_current_stream=lambda device: 0,
        )
    )

    def prepare(kernel: Any) -> None:
        if kernel._run is None:
            kernel._run = _Launcher(kernel)

    CompiledKernel._init_handles = prepare


class _Launcher:
    """What Triton calls in the place of what it builds for the driver."""

    def __init__(self, kernel: Any) -> None:
        self.program, self.num_shared = parse(kernel.asm["ptx"]), kernel.metadata.shared
        self.kinds = list(kernel.src.signature.values())

    def __call__(self, x: int, y: int, z: int, *arguments: Any) -> None:
        given = [
            _bits(value, kind)
            for value, kind in zip(arguments[-len(self.kinds) :], self.kinds, strict=True)
            if kind != "constexpr"
        ]
        given += [0] * (len(self.program.parameters) - len(given))  # room for what no kernel of ours asks
        LAUNCHED.add(self.program.name)
        launch(self.program, given, (x, y, z), self.num_shared)


def _bits(value: Any, kind: str) -> int:
    if isinstance(value, torch.Tensor):
        return value.data_ptr()
    if kind in ("fp32", "fp64"):
        return int.from_bytes(struct.pack("<f" if kind == "fp32" else "<d", value), "little")
    return int(value)
