"""See it work: a small model recommends from a catalog, free and constrained.

A synthetic catalog, its users and a tokenizer are made, a small model is trained on what some users bought, and
then it recommends items to others. Everything takes about a minute on one core and needs no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie import datasets
from gentrie._optional import require
from gentrie.demo import _model
from gentrie.demo._lists import ListStatistics, ListWriter, Way
from gentrie.demo._render import render
from gentrie.trie import TokenTrie

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["DemoResult", "ListStatistics", "render", "run"]

_CATALOG = "steam"
_VOCAB_SIZE = 2048
_HISTORY = 10
_LIST_LENGTH = 5
_FEWEST_ITEMS = 50
_EPOCHS = 3
_BATCH = 16


@dataclass(frozen=True)
class DemoResult:
    """What :func:`run` measured.

    Attributes
    ----------
    num_items, num_sequences
        Items of the catalog, and their different titles.
    tokens_per_item
        Mean tokens of an item's title, its end token included.
    trie_bytes
        Size of the trie.
    build_seconds
        Time from titles to trie.
    num_parameters
        Parameters of the model.
    num_training_users, training_seconds, training_loss
        Users the model was trained on, how long that took, and the mean BEAR loss of a token in
        the last epoch.
    num_users, list_length, batch_size
        Users that got lists, items asked for in each, and users served together.
    popular_hit_rate
        Share of these users who next bought one of the ``list_length`` items most bought in training: what
        recommending the same to everybody reaches.
    ways
        Statistics of the lists by the way they were written: "greedy, free", "greedy, constrained",
        "sampled, free", "sampled, constrained".
    examples
        One user's lists by the way they were written: each item's text, and whether it is in the catalog.
    """

    num_items: int
    num_sequences: int
    tokens_per_item: float
    trie_bytes: int
    build_seconds: float
    num_parameters: int
    num_training_users: int
    training_seconds: float
    training_loss: float
    num_users: int
    list_length: int
    batch_size: int
    popular_hit_rate: float
    ways: dict[str, ListStatistics]
    examples: dict[str, list[tuple[str, bool]]]


def run(
    *, items: int = 1000, users: int = 128, seed: int = 0, epochs: int = _EPOCHS, console: Console | None = None
) -> DemoResult:
    """Train a small model to recommend, and compare its free and its constrained lists.

    The model continues a user's ten items, each between ``<SOI>`` and ``<EOI>``, with five more. Free and
    constrained lists are written in turns, so that both meet the same conditions. All of it runs on one CPU
    thread. All but the timings is the same for the same arguments on the same machine.

    Parameters
    ----------
    items
        Items of the catalog: the first ones of the Steam-shaped one.
    users
        Users that get lists. The model is trained on as many users as there are items.
    seed
        Seed of catalog, users, model and sampling.
    epochs
        How often the model sees each training user.
    console
        ``rich`` console to show progress on; by default there is none.

    Raises
    ------
    ImportError
        If ``torch`` or ``transformers`` is not installed.
    ValueError
        If ``items`` is not in [50, 11726], or ``users`` or ``epochs`` is below 1.
    """
    for name, value, least in (
        ("items", items, _FEWEST_ITEMS),
        ("users", users, 1),
        ("epochs", epochs, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    torch = require("torch", extra="demo")
    # Tensors this small gain little from more threads and lose much where the cores are busy; and the sums, so
    # the results, do not depend on the machine's number of cores.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _run(items, users, seed, epochs, console)
    finally:
        torch.set_num_threads(num_threads)


def _run(items: int, users: int, seed: int, epochs: int, console: Console | None) -> DemoResult:
    generation = require("gentrie.generation", extra="demo")
    catalog = datasets.load(_CATALOG, num_items=items, seed=seed)
    tokenizer = catalog.train_tokenizer(_VOCAB_SIZE)
    pad_id, bos_id, eos_id = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    model = _model.build(len(tokenizer), pad_id, bos_id, eos_id)
    begin_id, end_id = generation.add_item_tokens(tokenizer, model)

    started = perf_counter()
    trie = TokenTrie.from_titles(catalog.titles, tokenizer, end_token_id=end_id, item_ids=catalog.item_ids)
    build_seconds = perf_counter() - started

    titles = _title_tokens(catalog, tokenizer, end_id)
    line_break = tokenizer("\n", add_special_tokens=False)["input_ids"]

    def history(bought: npt.NDArray[np.int64]) -> list[int]:
        return [bos_id, *(token for item in bought for token in (begin_id, *titles[item], *line_break))]

    # What a user buys after the history is a list to learn from; its first item is what a list should hold.
    split = catalog.histories(
        items + users, seed=seed, length=_HISTORY + _LIST_LENGTH - 1, test_share=users / (items + users)
    )
    learnt = np.column_stack(split.train)
    started = perf_counter()
    with _progress(console, "train") as on_step:
        loss = _model.train(
            model,
            [history(row) for row in learnt],
            trie,
            epochs=epochs,
            begin_id=begin_id,
            pad_id=pad_id,
            seed=seed,
            on_step=on_step,
        )
    training_seconds = perf_counter() - started

    writer = ListWriter(
        model,
        trie,
        begin_id=begin_id,
        end_id=end_id,
        pad_id=pad_id,
        eos_id=eos_id,
        list_length=_LIST_LENGTH,
    )
    processor = generation.TrieLogitsProcessor(trie, begin_token_id=begin_id, eos_token_id=eos_id, unique=True)
    prompts = [history(row[:_HISTORY]) for row in split.test.items]
    targets = split.test.items[:, _HISTORY]
    ways = [
        Way("greedy, free", sample=False, processor=None),
        Way("greedy, constrained", sample=False, processor=processor),
        Way("sampled, free", sample=True, processor=None),
        Way("sampled, constrained", sample=True, processor=processor),
    ]
    with _progress(console, "recommend") as on_step:
        written, seconds = _write_in_turns(writer, prompts, ways, on_step)
    wanted = [titles[item] for item in targets]
    return DemoResult(
        num_items=trie.num_items,
        num_sequences=trie.num_sequences,
        tokens_per_item=float(np.mean([len(titles[item]) for item in range(items)])),
        trie_bytes=trie.nbytes,
        build_seconds=build_seconds,
        num_parameters=model.num_parameters(),
        num_training_users=len(learnt),
        training_seconds=training_seconds,
        training_loss=loss,
        num_users=users,
        list_length=_LIST_LENGTH,
        batch_size=_BATCH,
        popular_hit_rate=_popular_hit_rate(learnt, targets),
        ways={way.name: writer.statistics(prompts, wanted, written[way.name], seconds[way.name]) for way in ways},
        examples={
            way.name: [
                (tokenizer.decode(item, skip_special_tokens=True), writer.in_catalog(item))
                for item in writer.items(written[way.name][0])
            ]
            for way in ways
        },
    )


def _title_tokens(catalog: datasets.Catalog, tokenizer: Any, end_id: int) -> list[tuple[int, ...]]:
    """Tokens of each title, end token included."""
    values, indptr = catalog.token_sequences(tokenizer)
    return [(*row.tolist(), end_id) for row in np.split(values, indptr[1:-1])]


def _write_in_turns(
    writer: ListWriter, prompts: list[list[int]], ways: list[Way], on_step: Callable[[int, int], None]
) -> tuple[dict[str, list[list[int]]], dict[str, float]]:
    """Write lists batch by batch, each batch in all ways; the first batch is written once more to warm up."""
    written: dict[str, list[list[int]]] = {way.name: [] for way in ways}
    seconds = {way.name: 0.0 for way in ways}
    batches = [prompts[start : start + _BATCH] for start in range(0, len(prompts), _BATCH)]
    for way in ways:
        writer.write(batches[0], way)
    for number, batch in enumerate(batches):
        # Every other batch in reverse order, so that none of the ways always comes first.
        for way in ways if number % 2 == 0 else ways[::-1]:
            started = perf_counter()
            written[way.name] += writer.write(batch, way)
            seconds[way.name] += perf_counter() - started
        on_step(number + 1, len(batches))
    return written, seconds


def _popular_hit_rate(learnt: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> float:
    """Share of the targets among the items most bought in training."""
    items, counts = np.unique(learnt, return_counts=True)
    popular = items[np.argsort(-counts, kind="stable")[:_LIST_LENGTH]]
    return float(np.isin(targets, popular).mean())


@contextmanager
def _progress(console: Console | None, description: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a callback that takes what is done and what there is to do."""
    if console is None:
        yield lambda done, total: None
        return
    rich_progress = require("rich.progress", extra="demo")
    with rich_progress.Progress(console=console, transient=True) as bar:
        task = bar.add_task(description, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
