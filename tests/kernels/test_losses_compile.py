"""Without a GPU: all kernels of the losses compile for sm_90, the device's path gives what the CPU's does, and without
Triton the modules import.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched_kernels import OF_LOSSES


def run(*command: str | Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *map(str, command)], env=kept | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_sm_90(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    lines = run(Path(__file__).with_name("compile_losses.py"), TRITON_CACHE_DIR=str(tmp_path)).splitlines()
    assert {line.split()[0] for line in lines} == OF_LOSSES


@pytest.mark.slow
def test_device_path() -> None:
    pytest.importorskip("triton")
    launched = run(Path(__file__).with_name("device_path.py")).split()
    assert {name.replace("launch_", "") + "_kernel" for name in launched} == OF_LOSSES


def test_without_triton() -> None:
    """Operations on CPU tensors work; what would have been launched is said once, by one warning."""
    code = """
import importlib.util, warnings
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import torch
from gentrie.kernels import bear_loss, label_log_probs, topb_threshold, trie_linear
from gentrie.kernels._launch import usable
print(topb_threshold.topb_threshold(torch.arange(5.0)[None], 2)[0].item())
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(usable(), usable(), [str(warning.message) for warning in caught])
"""
    first, second = run("-c", code).splitlines()
    assert first == "3.0"
    assert second.startswith("False False [")
    assert second.count("the package triton is not installed") == 1
