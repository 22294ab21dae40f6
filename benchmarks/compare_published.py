"""Times gentrie's rewriting of the published approach against the original code, in one run.

    git clone https://github.com/microsoft/RecAI
    python benchmarks/compare_published.py --original RecAI/RecLM-cgen/train_utils/processor.py

Both see the same histories in turns, after every allowed set was compared. The ratio printed is ours over the
original's: what Table A2 shows of the published approach is fair as long as it stays near 1.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from gentrie.bench.baselines.dict_trie import DictTrie
from gentrie.bench.baselines.published import PublishedLookup, PublishedProcessor
from gentrie.bench.catalogs import TokenisedCatalog, tokenised_catalogs
from gentrie.bench.harness import Spread, circumstances, compare, torch_threads, write_json
from gentrie.bench.responses import ControlTokens, write_answers

VOCAB_SIZE = 131_072


class _ControlTokenizer:
    """What the original asks of a tokenizer."""

    def __init__(self, control: ControlTokens) -> None:
        self.soi_token_id = control.begin
        self.eoi_token_id = control.end
        self.eos_token_id = control.eos

    def __len__(self) -> int:
        return VOCAB_SIZE


def main(
    original: Annotated[Path, typer.Option(help="processor.py of RecLM-cgen, or a folder above it.", exists=True)],
    catalog: Annotated[str, typer.Option(help="steam, movies or toys.")] = "toys",
    rounds: Annotated[int, typer.Option(help="Rounds of each.", min=7)] = 9,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time the rewriting of the published approach against the original."""
    (tokenised,) = tokenised_catalogs((catalog,), VOCAB_SIZE)
    with torch_threads(1):
        ratios = ratios_to_original(load_original(original), tokenised, rounds=rounds)
    table = Table("what", "original, us", "ours, us", "ratio, median (lowest-highest round)")
    for name, (theirs, ours, ratio) in ratios.items():
        table.add_row(name, theirs.format(1, 1e6), ours.format(1, 1e6), ratio.format())
    Console().print(table)
    if output is not None:
        named = {
            name: dict(zip(("original_seconds", "ours_seconds", "ratio"), spreads, strict=True))
            for name, spreads in ratios.items()
        }
        write_json(
            output,
            {
                "benchmark": "compare_published",
                "catalog": catalog,
                "circumstances": circumstances(),
                "ratios": named,
            },
        )


def load_original(path: Path) -> ModuleType:
    """Import ``processor.py`` from ``path``, a file or a folder somewhere above it."""
    files = sorted(path.rglob("RecLM-cgen/train_utils/processor.py")) or sorted(path.rglob("processor.py"))
    file = path if path.is_file() else next(iter(files), None)
    if file is None:
        raise typer.BadParameter(f"{path} holds no processor.py")
    spec = importlib.util.spec_from_file_location("reclm_cgen_processor", file)
    if spec is None or spec.loader is None:
        raise typer.BadParameter(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ratios_to_original(
    original: ModuleType, catalog: TokenisedCatalog, *, rounds: int
) -> dict[str, tuple[Spread, Spread, Spread]]:
    """Return seconds a step of the original and of ours, and their ratio, by what was timed."""
    control = ControlTokens.unused(catalog.values, VOCAB_SIZE)
    titles = catalog.titles()
    theirs = original.Trie_link(titles, _ControlTokenizer(control)).constrain_search_list
    ours = PublishedLookup(
        DictTrie([*title, control.end] for title in titles),
        begin_token_id=control.begin,
        end_token_id=control.end,
        eos_token_id=control.eos,
    )
    inside, outside = histories(titles, control)
    for history in (*inside, *outside):
        if theirs(0, history[0]) != ours(0, history[0]):
            raise RuntimeError(f"allowed tokens differ after {history[0].tolist()}")

    scores = torch.randn(1, VOCAB_SIZE)
    their_processor = original.FastPrefixConstrainedLogitsProcessor(theirs, 1)
    our_processor = PublishedProcessor(ours)
    found = {}
    for place, where in (("inside items", inside), ("outside items", outside)):
        found[f"lookup {place}"] = _ratio(
            lambda history: theirs(0, history[0]), lambda history: ours(0, history[0]), where, rounds
        )
        found[f"whole call {place}"] = _ratio(
            lambda history: their_processor(history, scores),
            lambda history: our_processor(history, scores),
            where,
            rounds,
        )
    return found


def histories(titles: list[list[int]], control: ControlTokens) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return every history (int64 [1, length]) inside and outside the items of one answer."""
    (answer,) = write_answers(titles, control, answers=1, prompt_tokens=300, seed=0)
    text = torch.from_numpy(np.concatenate([answer.prompt, answer.tokens]))[None]
    steps = [text[:, : len(answer.prompt) + step].contiguous() for step in range(len(answer.tokens))]
    inside = [history for history, is_inside in zip(steps, answer.inside, strict=True) if is_inside]
    outside = [history for history, is_inside in zip(steps, answer.inside, strict=True) if not is_inside]
    return inside, outside


def _ratio(
    theirs: Callable[[torch.Tensor], Any],
    ours: Callable[[torch.Tensor], Any],
    steps: list[torch.Tensor],
    rounds: int,
) -> tuple[Spread, Spread, Spread]:
    def over_all(function: Callable[[torch.Tensor], Any]) -> Callable[[], None]:
        def run() -> None:
            for step in steps:
                function(step)

        return run

    taken = compare({"theirs": over_all(theirs), "ours": over_all(ours)}, rounds=rounds)
    original = Spread.of([seconds / len(steps) for seconds in taken["theirs"].rounds])
    rewritten = Spread.of([seconds / len(steps) for seconds in taken["ours"].rounds])
    ratio = Spread.of([b / a for a, b in zip(original.rounds, rewritten.rounds, strict=True)])
    return original, rewritten, ratio


if __name__ == "__main__":
    typer.run(main)
