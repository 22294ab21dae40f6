"""What the scripts of one figure share: rows, their table and JSON, the catalog, compiling, one thread."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

import gentrie
from gentrie.bench.catalogs import TokenisedCatalog, tokenised_catalogs
from gentrie.bench.harness import Spread, circumstances, write_json

VOCAB_SIZE = 131_072
MIN_ROUNDS = 7
_TABLE_WIDTH = 160

Rounds = Annotated[int, typer.Option(help="Rounds of each.", min=MIN_ROUNDS)]
JsonPath = Annotated[Path | None, typer.Option("--json", help="JSON file to write.")]


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes
    ----------
    figure
        Key, the same in every run.
    what
        What was measured, with all that a reader needs to judge it.
    unit
        Of ``spread`` and ``goal``.
    spread
        The value of every round.
    goal
        Upper limit for the median; None for a row that stands beside others for comparison.
    """

    figure: str
    what: str
    unit: str
    spread: Spread
    goal: float | None = None

    @property
    def verdict(self) -> str:
        if self.goal is None:
            return ""
        return "pass" if self.spread.median <= self.goal else "SHORT"

    def cells(self) -> tuple[str, str, str, str]:
        """What, goal, median (lowest-highest round), verdict; as text."""
        digits = 0 if self.spread.median >= 1000 else 1 if self.spread.median >= 10 else 2
        goal = "" if self.goal is None else f"<= {self.goal:g} {self.unit}"
        return self.what, goal, f"{self.spread.format(digits)} {self.unit}".rstrip(), self.verdict

    @classmethod
    def read(cls, path: Path) -> list[Row]:
        """Read the rows of a file written by :func:`report`."""
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [cls(**{**row, "spread": Spread.of(row["spread"]["rounds"])}) for row in rows]


def report(title: str, rows: Sequence[Row], path: Path | None) -> None:
    """Print the rows as a table, and write them to ``path`` where one is given."""
    table = Table("what", "goal", "median (lowest-highest round)", "", title=title)
    for row in rows:
        table.add_row(*row.cells())
    console().print(table)
    if path is not None:
        write_json(path, {"benchmark": title, "circumstances": circumstances(), "rows": [asdict(row) for row in rows]})


def console() -> Console:
    """A console that folds to the terminal's width, but not to that of a file."""
    return Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH)


def toys() -> TokenisedCatalog:
    """The Toys-shaped catalog over the whole vocabulary."""
    (catalog,) = tokenised_catalogs(("toys",), VOCAB_SIZE)
    return catalog


def scaled(spread: Spread, factor: float) -> Spread:
    """Every round times ``factor``."""
    return Spread.of([factor * value for value in spread.rounds])


def ratio(numerator: Spread, denominator: Spread) -> Spread:
    """Round by round, so that what slows a whole round cancels."""
    return Spread.of([a / b for a, b in zip(numerator.rounds, denominator.rounds, strict=True)])


def difference(larger: Spread, smaller: Spread) -> Spread:
    """Round by round."""
    return Spread.of([a - b for a, b in zip(larger.rounds, smaller.rounds, strict=True)])


def compile_cpp(source: str, output: Path, *, shared: bool = False) -> None:
    """Compile a file of ``benchmarks/cpp`` against the installed headers and static library.

    The compiler is ``$CXX``, else ``c++``.

    Raises
    ------
    subprocess.CalledProcessError, OSError
        It failed, or there is none.
    """
    include = Path(gentrie.get_include())
    command = [os.environ.get("CXX", "c++"), "-std=c++17", "-O3", "-DNDEBUG", f"-I{include}"]
    command += ["-shared", "-fPIC"] if shared else []
    command += [str(Path(__file__).parent / "cpp" / source), "-o", str(output)]
    command += [str(include.parent / "lib" / "libgentrie.a"), "-pthread"] if not shared else ["-pthread"]
    subprocess.run(command, check=True)
