"""Every figure that gentrie answers for, in one table: its goal, what is measured now, and the command behind it.

``python benchmarks/figures.py`` runs the scripts beside it one after the other. ``--save`` keeps the rows as JSON with
machine, versions and commit, and ``--load`` reads such a file. A row of it may name a ``commit`` of its own. ``--docs``
writes six figures into the README, all figures into ``docs/all_figures.md``, and those with a goal and the tables of
committed results into ``docs/performance.md``.
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

from _committed import committed_rows
from _figures import HEADINGS, Figure, row
from _tables import office, table_a2
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from gentrie.bench.harness import circumstances, write_json

FOLDER = Path(__file__).parent
README = FOLDER.parent / "README.md"
PERFORMANCE = FOLDER.parent / "docs" / "performance.md"
ALL_FIGURES = FOLDER.parent / "docs" / "all_figures.md"
HEADLINES = {
    "lookup inside items": "Time to find the tokens allowed after a history of 500 tokens, called from Python",
    "bytes an item: 5M ids of 8 x 2048": "Memory per item, 5 million semantic ids of 8 codes",
    "5M ids of 8 x 2048: build, two threads": "Time to build that trie of 5 million ids",
    "text with items, real toy: speed over free text": "Speed of text with items, relative to free text",
    "beam search, toy, 10 beams, scope=trie: generate over ours": "Time of constrained `generate` divided by that of "
    "`beam_search`, ten titles",
    "training step, vocabulary 131,072: BEAR over transformers": "Time of a BEAR training step divided by that of "
    "`transformers`' own loss",
}
"""The README's figures, in the words of a newcomer."""
FEWER_ROUNDS = {"best_first": 3, "beam_search": 3}
"""Where a round of ``generate`` takes a quarter of a minute."""
WITH_TABLES_OF_THEIR_OWN = ("gentrie bench table-a2", "python benchmarks/office_training.py")
SCRIPTS = (
    "lookup",
    "calls",
    "processor",
    "catalog_50k",
    "matcher",
    "beam_stepper",
    "layout",
    "losses",
    "training_step",
    "text_with_items",
    "best_first",
    "beam_search",
    "build",
    "filters",
    "live",
)


def rounds(script: str) -> list[str]:
    return ["--rounds", str(FEWER_ROUNDS[script])] if script in FEWER_ROUNDS else []


def run(script: str, real: str | None) -> list[Figure]:
    """Figures of one script, run as its own process on one thread."""
    command = [
        sys.executable,
        str(FOLDER / f"{script}.py"),
        "--json",
        *rounds(script),
        *(["--real", real] if real else []),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{script}.py failed:\n{done.stderr}")
    return [Figure(**json.loads(line)) for line in done.stdout.splitlines()]


def markdown(rows: list[tuple[Figure, str]]) -> str:
    lines = ["| figure | goal | measured | | command |", "|---|---|---|---|---|"]
    for figure, command in rows:
        name, goal, value, verdict, _ = row(figure)
        lines.append(f"| {name} | {goal} | {value} | {verdict} | `{command}` |")
    return "\n".join(lines)


def update_docs(rows: list[tuple[Figure, str]], where: dict[str, Any], earlier: dict[str, str]) -> None:
    """Replace what stands between the markers of the README and of the pages, and the page of all figures."""
    others = "".join(
        f", those of {', '.join(f'`{name}`' for name, own in earlier.items() if own == commit)} at {commit[:7]}"
        for commit in dict.fromkeys(earlier.values())
    )
    head = (
        f"{where['cpu']}, one thread unless a row says otherwise, Python {where['python']}, "
        f"torch {where['versions']['torch']}, commit {where['commit'].removesuffix('-dirty')[:7]}"
        f"{' with changes' if where['commit'].endswith('-dirty') else ''}; median (range of the rounds). Some "
        "rows were measured at earlier commits: those of `scaling.py`, `compare_published*.py` and of 50 and 200 beams "
        f"at the commits in the JSON files of `benchmarks/results`{others}."
    )
    ALL_FIGURES.write_text(f"# All figures\n\n{head}\n\n{markdown(rows)}\n")
    with_goals = markdown([entry for entry in rows if entry[0].goal is not None])
    parts = {"figures": f"{head}\n\n{with_goals}", "table-a2": table_a2(), "office": office()}
    replace_parts(PERFORMANCE, parts)
    replace_parts(README, {"headlines": headlines(rows)})


def headlines(rows: list[tuple[Figure, str]]) -> str:
    measured = {figure.name: row(figure)[2] for figure, _ in rows}
    missing = HEADLINES.keys() - measured.keys()
    if missing:
        sys.exit(f"no figures named {sorted(missing)}")
    lines = [f"| {text} | {measured[name]} |" for name, text in HEADLINES.items()]
    return "\n".join(["| | median (range) |", "|---|---|", *lines])


def replace_parts(page: Path, parts: dict[str, str]) -> None:
    text = page.read_text()
    for name, part in parts.items():
        pattern = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- /{name} -->)", re.DOTALL)
        text, found = pattern.subn(lambda _, part=part: f"\n{part}\n\n", text)
        if found != 1:
            sys.exit(f"{page} lacks the markers <!-- {name} --> and <!-- /{name} -->")
    page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SCRIPTS, action="append", help="run this script alone (may be repeated)")
    parser.add_argument("--real", help="folder of a real catalog: catalog.jsonl inside")
    parser.add_argument("--docs", action="store_true", help="write the tables of README.md and docs/")
    parser.add_argument("--save", type=Path, help="write the rows here as JSON")
    parser.add_argument("--load", type=Path, help="show the rows saved there instead of measuring")
    options = parser.parse_args()
    if options.load:
        saved: dict[str, Any] = json.loads(options.load.read_text())
        rows = [(Figure(**entry["figure"]), entry["command"]) for entry in saved["rows"]]
        where = saved["circumstances"]
        earlier = {
            entry["command"].split("/")[1].split()[0]: entry["commit"] for entry in saved["rows"] if "commit" in entry
        }
    else:
        where, earlier = circumstances(), {}
        scripts = options.only or SCRIPTS
        rows = [
            (figure, " ".join([f"python benchmarks/{script}.py", *rounds(script)]))
            for script in tqdm(scripts, desc="measuring", unit="script")
            for figure in run(script, options.real)
        ]
    if options.save:
        entries = [{"figure": vars(figure), "command": command} for figure, command in rows]
        write_json(options.save, {"circumstances": where, "rows": entries})
    rows += committed_rows()
    if options.docs:
        update_docs([row for row in rows if row[1] not in WITH_TABLES_OF_THEIR_OWN], where, earlier)
    table = Table(*HEADINGS, "command")
    for figure, command in rows:
        table.add_row(*row(figure), command)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    main()
