"""Some of the kernels' tests with what Triton compiles for Hopper in the place of its interpreter.

``tests/ptx`` runs the PTX on the CPU and looks for reads and writes out of place or out of order. All of them:
``GENTRIE_KERNELS=sm_90 python -m pytest -m "" tests/kernels``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = (
    "test_trie_walk.py",
    "test_trie_mask.py::test_rows_of_any_number_of_children",
    "test_trie_bitmask.py::test_rows_of_any_number_of_children",
    "test_trie_constrain.py::test_histories_longer_than_a_block[513]",
    "test_beam_step.py::test_rows_of_any_number_of_children",
    "test_device_beam_stepper.py::test_the_kernels_find_the_same",
    "test_topb_threshold.py::test_order_and_ties",
    "test_trie_linear.py::test_kernels",
)


@pytest.mark.slow
def test_compiled_kernels(tmp_path: Path):
    pytest.importorskip("triton")
    folder = Path(__file__).parent
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"GENTRIE_KERNELS": "sm_90", "GENTRIE_TEST_EFFORT": "0.05", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(folder / name) for name in TESTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder.parents[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " skipped" not in done.stdout.splitlines()[-1], done.stdout
