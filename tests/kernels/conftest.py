"""What the tests of kernels share. Without a GPU kernels run in Triton's interpreter, on tensors of the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
sys.path.append(str(Path(__file__).parents[1] / "core"))

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # is read when triton is first imported


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: the GPU, or the CPU in the interpreter."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        return "cuda"
    from triton import language
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(language.sum, InterpretedFunction):
        pytest.skip("triton was imported before TRITON_INTERPRET=1 was set")
    return "cpu"


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request: pytest.FixtureRequest) -> str:
    """Each kind of device for what runs without the interpreter."""
    return str(request.param)
