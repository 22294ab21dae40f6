"""Whether kernels can run here, and on which device they do."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch

from gentrie.kernels._triton import HAS_TRITON

WIDEN = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether products have to widen bfloat16 after the load: Triton's interpreter gives wrong ones without a word."""


@cache
def usable() -> bool:
    """Whether Triton is installed and finds the C compiler that it builds its launchers with; warns once where not."""
    compilers = (os.environ.get("CC"), "cc", "gcc", "clang", (sysconfig.get_config_var("CC") or "").partition(" ")[0])
    if not HAS_TRITON:
        missing = "the package triton is not installed"
    elif not any(shutil.which(name) for name in compilers if name):
        missing = "no C compiler was found, which Triton needs"
    else:
        return True
    warnings.warn(f"gentrie uses plain torch on the GPU, which is slow: {missing}", RuntimeWarning, 3)
    return False


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Makes a CUDA tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
