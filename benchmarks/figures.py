"""Every figure that gentrie answers for, in one table: its goal, what is measured now, and the command behind it.

``python benchmarks/figures.py`` runs the scripts beside it one after the other. ``--save`` keeps the rows as JSON with
machine, versions and commit; ``--readme`` puts them into the README, from such a file where ``--load`` names one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from _figures import HEADINGS, Figure, row
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gentrie.bench.harness import circumstances, write_json

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
SCRIPTS = (
    "lookup",
    "processor",
    "catalog_50k",
    "matcher",
    "layout",
    "losses",
    "training_step",
    "text_with_items",
    "best_first",
    "build",
)


def run(script: str, real: str | None) -> list[Figure]:
    """Figures of one script, run as its own process on one thread."""
    command = [sys.executable, str(FOLDER / f"{script}.py"), "--json", *(["--real", real] if real else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{script}.py failed:\n{done.stderr}")
    return [Figure(**json.loads(line)) for line in done.stdout.splitlines()]


def committed_rows() -> list[tuple[Figure, str]]:
    """What takes too long to measure anew, from the JSON in ``results``, which says on what machine."""
    found = []
    path = FOLDER / "results" / "compare_published.json"
    if path.is_file():
        for name, ratio in json.loads(path.read_text())["ratios"].items():
            spread = ratio["ratio"]
            figure = Figure(
                f"our rewriting of the published approach over the original: {name}",
                "times",
                **{key: spread[key] for key in ("median", "low", "high")},
                goal=1.2,
            )
            found.append((figure, "python benchmarks/compare_published.py"))
    for path in sorted((FOLDER / "results").glob("table_a2*.json")):
        for name, catalog in json.loads(path.read_text())["catalogs"].items():
            for method, measured in catalog["methods"].items():
                if method == "unconstrained":
                    continue
                percent = {key: 100 * measured["slowdown"][key] for key in ("median", "low", "high")}
                figure = Figure(f"Table A2, {name}: {method}, slower than free by", "%", **percent)
                found.append((figure, "gentrie bench table-a2"))
    return found


def markdown(rows: list[tuple[Figure, str]]) -> str:
    lines = ["| figure | goal | measured | | command |", "|---|---|---|---|---|"]
    for figure, command in rows:
        name, goal, value, verdict, _ = row(figure)
        lines.append(f"| {name} | {goal} | {value} | {verdict} | `{command}` |")
    return "\n".join(lines)


def update_readme(rows: list[tuple[Figure, str]], where: dict[str, Any]) -> None:
    """Replace what stands between the README's two markers."""
    head = (
        f"{where['cpu']}, one thread unless a row says otherwise, Python {where['python']}, "
        f"torch {where['versions']['torch']}, commit {where['commit'][:7]}; median (range of the rounds)."
    )
    pattern = re.compile(r"(?<=<!-- figures -->\n).*?(?=<!-- /figures -->)", re.DOTALL)
    text, found = pattern.subn(lambda _: f"\n{head}\n\n{markdown(rows)}\n\n", README.read_text())
    if found != 1:
        sys.exit(f"{README} lacks the markers <!-- figures --> and <!-- /figures -->")
    README.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SCRIPTS, action="append", help="run this script alone (may be repeated)")
    parser.add_argument("--real", help="folder of a real catalog: catalog.jsonl inside")
    parser.add_argument("--readme", action="store_true", help="write the README's table")
    parser.add_argument("--save", type=Path, help="write the rows here as JSON")
    parser.add_argument("--load", type=Path, help="show the rows saved there instead of measuring")
    options = parser.parse_args()
    if options.load:
        saved: dict[str, Any] = json.loads(options.load.read_text())
        rows = [(Figure(**entry["figure"]), entry["command"]) for entry in saved["rows"]]
        where = saved["circumstances"]
    else:
        where = circumstances()
        scripts = options.only or SCRIPTS
        rows = [
            (figure, f"python benchmarks/{script}.py")
            for script in tqdm(scripts, desc="measuring", unit="script")
            for figure in run(script, options.real)
        ]
    if options.save:
        entries = [{"figure": vars(figure), "command": command} for figure, command in rows]
        write_json(options.save, {"circumstances": where, "rows": entries})
    rows += committed_rows()
    if options.readme:
        update_readme([(figure, command) for figure, command in rows if not figure.name.startswith("Table A2")], where)
    table = Table(*HEADINGS, "command")
    for figure, command in rows:
        table.add_row(*row(figure), command)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
