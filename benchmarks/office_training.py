"""Train small models from scratch on a real catalog's interactions: plain likelihood (SFT), MSL and BEAR.

``--real`` names a folder with ``catalog.jsonl`` (``item_id``, ``title``), ``train.jsonl`` and ``test.jsonl``
(``item_ids``, oldest first, the last one the target). Every run is a process of its own on one thread, two at a time;
what is done lies in ``--work`` and is not done again. Then a sweep of BEAR's weight and temperature (figure 8 of the
paper), and what one step costs that simulates the beam search (objective 3.1). Writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from _fresh import in_fresh_process
from _office import BEAR, METHODS, Office, Run, Size, carry_out, model_of
from rich.console import Console
from rich.table import Table
from torch.nn.functional import pad
from tqdm import tqdm

from gentrie._optional import require
from gentrie.bench.harness import Spread, circumstances, write_json
from gentrie.training import ItemCollator, beam_search_objective, bear_loss

WEIGHTS, TEMPERATURES = (0.1, 0.25, 1.0, 4.0), (0.5, 2.75, 8.0)
QUICK = Size(users=16, users_free=4)
SHOWN = (
    "hr@10 constrained",
    "ndcg@10 constrained",
    "pruning_rate@10",
    "ood@10 constrained",
    "hr@10 free",
    "ood@10 free",
)


def runs_of(options: argparse.Namespace) -> list[Run]:
    """All methods and seeds, then the sweep: one setting at a time off the authors'."""
    found = [Run(method, seed, options.epochs) for seed in range(options.seeds) for method in METHODS]
    swept = {(weight, BEAR["reg_temperature"]) for weight in WEIGHTS}
    swept |= {(BEAR["reg_weight"], temperature) for temperature in TEMPERATURES}
    return found + [Run("bear", 0, options.sweep_epochs, *setting) for setting in sorted(swept)]


def objective_step(folder: Path, prompts: int = 4, rounds: int = 3) -> dict[str, float]:
    """Seconds of one step with BEAR and with objective (3.1), forward and backward, on a few prompts."""
    torch.set_num_threads(1)
    office = Office.load(folder, QUICK)
    model = model_of(0, office)
    batch = ItemCollator(office.trie, office.pad)(office.train[:prompts])
    starts = (batch["labels"] >= 0).int().argmax(1).tolist()
    longest = int((batch["labels"] >= 0).sum(1).max())
    labels = torch.full((prompts, longest), -100)
    for row in range(prompts):
        item = batch["labels"][row][batch["labels"][row] >= 0]
        labels[row, : len(item)] = item

    def logits_of_targets() -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        rows = [pad(row[start - 1 :], (0, 0, 0, longest))[:longest] for row, start in zip(logits, starts, strict=True)]
        return torch.stack(rows)

    def next_logits(rows: torch.Tensor, prefixes: torch.Tensor) -> torch.Tensor:
        width = max(starts)
        ids = torch.full((len(rows), width), office.pad)
        for place, row in enumerate(rows.tolist()):
            ids[place, width - starts[row] :] = batch["input_ids"][row, : starts[row]]
        mask = torch.cat([(ids != office.pad).long(), torch.ones_like(prefixes)], 1)
        whole = torch.cat([ids, prefixes], 1)
        logits: torch.Tensor = model(input_ids=whole, attention_mask=mask, logits_to_keep=1).logits
        return logits[:, -1]

    steps = {
        "BEAR": lambda: bear_loss(logits_of_targets(), labels, trie=office.trie),
        "objective (3.1)": lambda: beam_search_objective(logits_of_targets(), labels, next_logits, trie=office.trie),
    }
    seconds = {}
    for name, step in steps.items():
        taken = []
        for _ in range(rounds):
            started = time.process_time()
            step().backward()
            taken.append(time.process_time() - started)
        seconds[name] = sorted(taken)[rounds // 2]
    return seconds


def summary(results: list[dict[str, Any]], epochs: float) -> dict[str, dict[str, Spread]]:
    """Each method's figures over its seeds."""
    found: dict[str, dict[str, Spread]] = {}
    for method in METHODS:
        rows = [row for row in results if row["run"]["method"] == method and row["run"]["reg_weight"] is None]
        rows = [row for row in rows if row["run"]["epochs"] == epochs]
        names = [name for name in rows[0] if name != "run"] if rows else []
        found[method] = {name: Spread.of([row[name] for row in rows]) for name in names}
    return found


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """NDCG and PruningRate over weight and over temperature."""
    pyplot = require("matplotlib.pyplot", extra="plot")
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    swept = [row for row in results if row["run"]["reg_weight"] is not None]
    names = ("reg_weight", "reg_temperature")
    for panel, varied, fixed in zip(panels, names, reversed(names), strict=True):
        rows = sorted((row for row in swept if row["run"][fixed] == BEAR[fixed]), key=lambda row: row["run"][varied])
        x = [row["run"][varied] for row in rows]
        panel.plot(x, [row["ndcg@10 constrained"] for row in rows], "o-")
        panel.set(
            xscale="log",
            xticks=x,
            xticklabels=[f"{value:g}" for value in x],
            xlabel=varied,
            ylabel="NDCG@10",
            title=f"{fixed} = {BEAR[fixed]}",
        )
        panel.minorticks_off()
        beside = panel.twinx()
        beside.plot(x, [row["pruning_rate@10"] for row in rows], "s--", color="tab:red")
        beside.set_ylabel("PruningRate@10 (dashed)", color="tab:red")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", type=Path, required=True, help="folder with catalog.jsonl, train.jsonl, test.jsonl")
    parser.add_argument("--work", type=Path, default=Path("office-training"), help="where finished runs are kept")
    parser.add_argument("--output", type=Path, default=Path("office_training.json"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--sweep-epochs", type=float, default=1.5)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--quick", action="store_true", help="a hundredth of everything: does it run at all?")
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    if options.quick:
        options.seeds, options.epochs, options.sweep_epochs = 1, 0.02, 0.01
    options.work.mkdir(parents=True, exist_ok=True)
    runs, results = runs_of(options), []
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = [pool.submit(in_fresh_process, carry_out, run, options.real, size, options.work) for run in runs]
        for done in tqdm(as_completed(waiting), total=len(runs), desc="runs"):
            results.append(done.result())
    methods = summary(results, options.epochs)
    write_json(
        options.output,
        {
            "circumstances": circumstances(),
            "size": vars(size),
            "methods": methods,
            "runs": results,
            "cpu_minutes": sum(row["cpu_seconds"] for row in results) / 60,
            "seconds_per_step_on_4_prompts": objective_step(options.real),
        },
    )
    plot(results, options.output.with_suffix(".png"))
    table = Table("method", *SHOWN, "s/step", "peak MB", title="means (lowest-highest) over seeds")
    for method, figures in methods.items():
        cells = [f"{figures[name].mean:.3f} ({figures[name].low:.3f}-{figures[name].high:.3f})" for name in SHOWN]
        table.add_row(
            method,
            *cells,
            f"{figures['cpu_seconds_per_step'].mean:.3f}",
            f"{figures['peak_memory_bytes'].high / 1e6:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 180).print(table)


if __name__ == "__main__":
    main()
