"""What the tests of kernels share.

Without a GPU kernels run on tensors of the CPU: in Triton's interpreter or, with ``GENTRIE_KERNELS=sm_90`` in the
environment, compiled for such a GPU and run by ``tests/ptx``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path += [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "core")]

COMPILED_FOR = os.environ.get("GENTRIE_KERNELS")

if COMPILED_FOR is not None:
    from ptx import triton_driver

    triton_driver.install(COMPILED_FOR)
elif not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # is read when triton is first imported


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: the GPU, or the CPU in the interpreter or the machine."""
    pytest.importorskip("triton")
    if COMPILED_FOR is not None:
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(language.sum, InterpretedFunction):
        pytest.skip("triton was imported before TRITON_INTERPRET=1 was set")
    from interpreter import round_to_nearest

    round_to_nearest()
    return "cpu"


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> str:
    """Each kind of device for what runs without the interpreter."""
    return str(request.param)
