"""Whether kernels can run here, and on which device they do."""

from __future__ import annotations

import os
import shutil
import sysconfig
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch

from gentrie.kernels._triton import HAS_TRITON

WIDEN = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether products have to widen bfloat16 after the load: Triton's interpreter gives wrong ones without a word."""


@cache
def usable() -> bool:
    """Whether Triton is installed and finds what it builds its launcher with, as it looks for it: a C compiler and the
    headers of Python. Warns once where it does not."""
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if not HAS_TRITON:
        missing = "the package triton is not installed"
    elif not any(map(shutil.which, compilers)):
        missing = f"no C compiler was found, which Triton needs ({' or '.join(compilers)})"
    elif not Path(_include_folder(), "Python.h").exists():
        missing = f"Python.h, which Triton needs, is not in {_include_folder()}"
    else:
        return True
    warnings.warn(f"gentrie uses plain torch on the GPU, which is slow: {missing}", RuntimeWarning, 3)
    return False


def _include_folder() -> str:
    scheme = sysconfig.get_default_scheme()  # Debian's own names a folder under /usr/local, where no headers are
    return sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]


def on_device(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Makes a CUDA tensor's device the current one, on which Triton launches."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
