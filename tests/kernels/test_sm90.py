"""Without a GPU: every kernel that is launched anywhere compiles for sm_90, here or in ``test_losses_compile.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched_kernels import OF_LOSSES, launched


@pytest.mark.slow
def test_every_kernel_compiles_for_hopper(tmp_path: Path):
    """In a process without Triton's interpreter, with which nothing can be compiled."""
    pytest.importorskip("triton")
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("sm90.py"))]
    done = subprocess.run(command, env=kept | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(case["cubin"] > 0 and case["shared"] <= 48 << 10 for case in cases)
    assert {case["kernel"] for case in cases} | OF_LOSSES == launched()
