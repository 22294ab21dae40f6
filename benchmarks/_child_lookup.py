"""The C++ programs that time child lookups and count their cache lines, compiled against the installed library."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import gentrie
from gentrie.bench.harness import Spread


def compile_program(folder: Path, name: str = "child_lookup") -> Path:
    """``cpp/<name>.cc`` as a program in ``folder``."""
    program, include = folder / name, Path(gentrie.get_include())
    source = Path(__file__).parent / "cpp" / f"{name}.cc"
    library = include.parent / "lib" / "libgentrie.a"
    command = ["c++", "-std=c++17", "-O3", f"-I{include}", source, library, "-pthread", "-o", program]
    subprocess.run(list(map(str, command)), check=True)
    return program


def child_lookup(program: Path, trie: Path, rounds: int) -> Spread:
    """Seconds of a child lookup from random places of a saved trie, each waiting for the one before."""
    lines = subprocess.run([program, trie, str(rounds)], check=True, capture_output=True, text=True).stdout
    return Spread.of([float(line.split()[0]) * 1e-9 for line in lines.splitlines()])


@dataclass(frozen=True)
class DependentLines:
    """Cache lines of one child lookup whose addresses wait for each other, over random states of a trie.

    ``missed`` is the mean of those among them that a cache of 32 KiB does not hold.
    """

    least: int
    most: int
    mean: float
    missed: float
    steps: int


def dependent_lines(program: Path, trie: Path) -> DependentLines:
    """Count what ``cpp/dependent_lines.cc`` counts in a saved trie."""
    found = subprocess.run([program, trie], check=True, capture_output=True, text=True).stdout.split()
    least, most, mean, missed, steps = found
    return DependentLines(int(least), int(most), float(mean), float(missed), int(steps))
