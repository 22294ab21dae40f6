"""Times gentrie's rewriting of BEAR's published loss against the original code, in one run.

    git clone https://github.com/Tiny-Snow/BEAR-SIGIR-2026
    pip install fire pandas peft  # which the original imports
    python benchmarks/compare_published_loss.py --original BEAR-SIGIR-2026

Both see the same logits, labels and masks in turns, forward and backward, after loss and gradient were compared. The
ratio printed is ours over the original's: the dense baseline of ``losses.py`` is fair as long as it is not above 1.2.
As there, memory that was freed is used again.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from _figures import VOCAB_SIZE
from losses import GOALS, HIDDEN_SIZE, Labels, catalog_trie, labels_of, with_gradient
from processor import keep_memory, ratio
from rich.console import Console
from rich.table import Table

from gentrie.bench.baselines.dense_losses import dense_bear_loss
from gentrie.bench.harness import Spread, circumstances, compare, torch_threads, write_json

Loss = Callable[[torch.Tensor, Labels], torch.Tensor]


def main(
    original: Annotated[Path, typer.Option(help="Folder of train_bear.py.", exists=True, file_okay=False)],
    real: Annotated[str | None, typer.Option(help="Folder of a real catalog: catalog.jsonl inside.")] = None,
    rounds: Annotated[int, typer.Option(help="Rounds of each.", min=7)] = 9,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Time the rewriting of the published loss against the original."""
    keep_memory()
    published = load_original(original)
    note, trie = catalog_trie(real)
    found: dict[str, tuple[Spread, Spread, Spread]] = {}
    with torch_threads(1):
        head = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=torch.Generator().manual_seed(1)) * HIDDEN_SIZE**-0.5
        for num_labels in GOALS:
            labels = labels_of(trie, num_labels)
            found |= ratios_to_original(published, labels, head, num_labels, rounds)
    table = Table(
        "forward and backward", "original, ms", "ours, ms", "ratio, median (lowest-highest round)", title=note
    )
    for name, (theirs, ours, quotient) in found.items():
        table.add_row(name, theirs.format(1, 1e3), ours.format(1, 1e3), quotient.format())
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    if output is not None:
        keys = ("original_seconds", "ours_seconds", "ratio")
        write_json(
            output,
            {
                "benchmark": "compare_published_loss",
                "catalog": note,
                "circumstances": circumstances(),
                "ratios": {name: dict(zip(keys, spreads, strict=True)) for name, spreads in found.items()},
            },
        )


def load_original(folder: Path) -> Loss:
    """The loss of ``CustomTrainer`` in ``train_bear.py``, of logits that are there already."""
    sys.path.insert(0, str(folder))
    try:
        trainer = importlib.import_module("train_bear").CustomTrainer
    except ImportError as error:
        raise typer.BadParameter(f"train_bear.py of {folder} cannot be imported: {error}") from None
    settings = SimpleNamespace(tau=1.0, topk_tau=1.0, topk_weight=1.0, K=10)

    def published(logits: torch.Tensor, labels: Labels) -> torch.Tensor:
        def model(**_: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=logits)

        inputs = {"labels": labels.published, "constrain_mask": labels.mask}
        loss: torch.Tensor = trainer.compute_loss(settings, model, inputs)
        return loss

    return published


def rewritten(logits: torch.Tensor, labels: Labels) -> torch.Tensor:
    return dense_bear_loss(logits, labels.published, labels.mask)


def ratios_to_original(
    published: Loss, labels: Labels, head: torch.Tensor, num_labels: int, rounds: int
) -> dict[str, tuple[Spread, Spread, Spread]]:
    """Return seconds of the original and of ours, and their ratio, by what was timed."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(*labels.shifted.shape, VOCAB_SIZE, generator=generator)).requires_grad_()
    hidden = torch.randn(*labels.shifted.shape, HIDDEN_SIZE, generator=generator).requires_grad_()

    def both(loss: Loss, leaf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return with_gradient(loss(leaf if leaf is logits else leaf @ head.t(), labels), leaf)

    found = {}
    for kind, leaf in (("logits", logits), ("hidden states", hidden)):
        torch.testing.assert_close(both(rewritten, leaf), both(published, leaf), rtol=1e-6, atol=1e-8)
        taken = compare(
            {"theirs": partial(both, published, leaf), "ours": partial(both, rewritten, leaf)}, rounds=rounds
        )
        found[f"{kind}, {num_labels} labels"] = (taken["theirs"], taken["ours"], ratio(taken["ours"], taken["theirs"]))
    return found


if __name__ == "__main__":
    typer.run(main)
