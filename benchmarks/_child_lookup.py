"""The C++ program that times child lookups, compiled against the installed library."""

from __future__ import annotations

import subprocess
from pathlib import Path

import gentrie
from gentrie.bench.harness import Spread


def compile_program(folder: Path) -> Path:
    """``cpp/child_lookup.cc`` as a program in ``folder``."""
    program, include = folder / "child_lookup", Path(gentrie.get_include())
    source = Path(__file__).parent / "cpp" / "child_lookup.cc"
    library = include.parent / "lib" / "libgentrie.a"
    command = ["c++", "-std=c++17", "-O3", f"-I{include}", source, library, "-pthread", "-o", program]
    subprocess.run(list(map(str, command)), check=True)
    return program


def child_lookup(program: Path, trie: Path, rounds: int) -> Spread:
    """Seconds of a child lookup from random places of a saved trie, each waiting for the one before."""
    lines = subprocess.run([program, trie, str(rounds)], check=True, capture_output=True, text=True).stdout
    return Spread.of([float(line.split()[0]) * 1e-9 for line in lines.splitlines()])
