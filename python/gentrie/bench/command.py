"""The benchmarks as commands: ``gentrie bench ...`` and the scripts in ``benchmarks/``."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

_TABLE_WIDTH = 200


def table_a2(
    quick: Annotated[bool, typer.Option(help="Few answers: at most two minutes on two cores.")] = False,
    model: Annotated[str, typer.Option(help="small, or llama-3-8b in bfloat16; random weights.")] = "small",
    device: Annotated[str, typer.Option(help="torch device of model and logits.")] = "cpu",
    catalogs: Annotated[str, typer.Option(help="Synthetic catalogs.")] = "steam,movies,toys",
    real: Annotated[Path | None, typer.Option(help="A real catalog too: JSON lines with a title each.")] = None,
    answers: Annotated[int | None, typer.Option(help="Answers in a repetition (128).", min=1)] = None,
    repetitions: Annotated[int | None, typer.Option(help="Repetitions (5).", min=1)] = None,
    warmup: Annotated[int | None, typer.Option(help="Untimed answers before (5).", min=0)] = None,
    beams: Annotated[int, typer.Option(help="Beams of the table of beam searches; 0: without it.", min=0)] = 10,
    threads: Annotated[int, typer.Option(help="Threads of torch's operators on the CPU.", min=1)] = 1,
    seed: Annotated[int, typer.Option(help="Seed of weights and answers.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file and the plot.")] = Path("."),
) -> None:
    """RecLM-cgen's Table A2: what it costs to keep the items of an answer in a catalog.

    Measured in one run, in turns: no constraint, the published approach, transformers' prefix processor, gentrie, and
    gentrie with forced runs skipped; then beam search for single items, generate's and gentrie's. Without options the
    paper's protocol, which takes hours on a CPU.
    """
    from gentrie.bench.table_a2 import Settings
    from gentrie.bench.table_a2_report import beam_table, table
    from gentrie.bench.table_a2_run import run, write

    # Folding to a terminal's width helps people, not files.
    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH)
    settings = Settings().quick() if quick else Settings()
    chosen = {"answers": answers, "repetitions": repetitions, "warmup": warmup}
    settings = replace(
        settings,
        catalogs=tuple(name for name in catalogs.split(",") if name),
        real=real,
        model=model,
        device=device,
        beams=beams,
        threads=threads,
        seed=seed,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    output.mkdir(parents=True, exist_ok=True)
    for cut in settings.cuts():
        console.print(f"cut: {cut}")
    result = run(settings, progress=True)
    console.print(table(result))
    if beams:
        console.print(beam_table(result))
    for written in write(result, output):
        console.print(f"wrote {written}")
