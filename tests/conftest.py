"""Settings shared by all tests."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Models and batches here are so small that threads would wait for each other longer than they work. Before torch loads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if not Path("/proc/driver/nvidia").exists() and "GENTRIE_KERNELS" not in os.environ:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels run in the interpreter; read when triton first loads

# How long an example takes says something about the machine, not about the code under test.
settings.register_profile("gentrie", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("gentrie")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch sees no CUDA device."""
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if gpu_items and not _cuda_available():
        for item in gpu_items:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device and a torch that sees it"))


def pytest_collection_finish() -> None:
    """Keep what was imported and collected, some millions of objects, out of every later search for garbage."""
    if "GENTRIE_KERNELS" not in os.environ:  # the machine of tests/ptx asks the collector which tensors there are
        gc.collect()
        gc.freeze()


def _cuda_available() -> bool:
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
