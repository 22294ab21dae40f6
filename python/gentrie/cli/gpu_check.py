"""``gentrie gpu-check``: the GPU tests and every GPU benchmark, on the machine at hand."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

_TABLE_WIDTH = 200
_TESTS = "tests"


def gpu_check(
    only: Annotated[list[str] | None, typer.Option(help="A benchmark, or tests, to run alone; repeatable.")] = None,
    quick: Annotated[bool, typer.Option(help="Smaller sizes; says what it leaves out.")] = False,
    rounds: Annotated[int, typer.Option(help="Rounds of each figure.", min=1)] = 50,
    tests: Annotated[Path | None, typer.Option(help="Folder of the tests; default: the checkout's.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the JSON file and the plots.")] = Path("."),
) -> None:
    """Run the GPU tests and benchmarks, and write JSON and plots.

    Figures are medians with the 20th and 80th percentile, taken in turns with the peers that are importable
    (liger-kernel, cut-cross-entropy, xgrammar, flashinfer, STATIC's checkout on PYTHONPATH), on a cold L2 cache.
    Exit code 1 where a test or a benchmark failed; the others are measured all the same.
    """
    from gentrie._optional import require

    for package, extra in (("torch", "hf"), ("transformers", "hf"), ("tokenizers", "hf"), ("matplotlib", "bench")):
        require(package, extra=extra)
    from gentrie.bench.gpu.check import Result, machine, require_cuda, run_benchmarks
    from gentrie.bench.gpu.gpu_tests import find_tests, run_tests
    from gentrie.bench.gpu.report import table
    from gentrie.bench.gpu.suite import SUITE

    require_cuda()
    names = only or [_TESTS, *SUITE]
    for name in names:
        if name != _TESTS and name not in SUITE:
            raise ValueError(f"--only: {name!r} is not one of {', '.join([_TESTS, *SUITE])}")
    folder = find_tests(tests) if _TESTS in names else None
    output.mkdir(parents=True, exist_ok=True)

    from rich.console import Console
    from tqdm import tqdm

    # Folding to a terminal's width helps people, not files.
    console = Console(width=None if sys.stdout.isatty() else _TABLE_WIDTH)
    suite = {name: SUITE[name] for name in SUITE if name in names}
    cuts = [f"{name}: {cut}" for name in suite for cut in suite[name].cuts()] if quick else []
    cuts += [f"{name}: not run" for name in (_TESTS, *SUITE) if name not in names]
    if _TESTS in names and folder is None:
        cuts.append("tests: not run, there is no checkout beside the package (--tests FOLDER)")
    for cut in cuts:
        console.print(f"cut: {cut}")
    outcome = None
    if folder is not None:
        outcome = run_tests(folder)
        counted = f"{outcome.passed} passed, {outcome.failed} failed, {outcome.skipped} skipped"
        console.print(f"tests: {counted}\n{outcome.tail}".rstrip(), markup=False)
    benchmarks = {}
    with tqdm(total=len(suite), desc="benchmarks") as bar:
        for name, found in run_benchmarks(suite, quick=quick, rounds=rounds):
            benchmarks[name] = found
            bar.update()
    settings = {
        "rounds": rounds,
        "quick": quick,
        "sizes": {name: asdict(benchmark.chosen(quick)) for name, benchmark in suite.items()},
    }
    result = Result(settings, cuts, machine("cuda"), outcome, benchmarks)
    console.print(table(benchmarks, f"gpu-check on {result.machine['gpu']['name']}"))
    for written in result.write(output):
        console.print(f"wrote {written}")
    if not result.is_sound:
        raise typer.Exit(1)
