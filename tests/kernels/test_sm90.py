"""Without a GPU: every kernel that is launched anywhere compiles for sm_90."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched_kernels import launched


def test_every_kernel_compiles_for_hopper(tmp_path: Path):
    """In processes without Triton's interpreter, with which nothing can be compiled."""
    pytest.importorskip("triton")
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    lines = {}
    for script in ("sm90.py", "compile_losses.py"):
        command = [sys.executable, str(Path(__file__).with_name(script))]
        done = subprocess.run(command, env=kept | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        lines[script] = done.stdout.splitlines()
    cases = [json.loads(line) for line in lines["sm90.py"]]
    assert all(case["cubin"] > 0 and case["shared"] <= 48 << 10 for case in cases)
    losses = {line.split()[0] for line in lines["compile_losses.py"]}
    assert {case["kernel"] for case in cases} | losses == launched()
