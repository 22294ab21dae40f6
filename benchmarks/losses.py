"""BEAR's loss on the labels of real or synthetic titles, forward and backward, against the published dense form.

Sequences of titles in double quotes make up 64 or 256 labels, a vocabulary of 131,072. The published form is our
rewriting of it; its boolean masks are made beforehand, which is not timed. ``--real`` names a folder with the real
catalog (``catalog.jsonl``); without it the embedded toys-shaped catalog is taken. As in training, memory that was
freed is used again: malloc is told so.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _figures import VOCAB_SIZE, Figure, main
from processor import keep_memory, ratio

from gentrie import TokenTrie, datasets
from gentrie._optional import require
from gentrie.bench.baselines.dense_losses import dense_bear_loss
from gentrie.bench.harness import Spread, compare
from gentrie.training import bear_loss, linear_bear_loss
from gentrie.training._rows import LabelRows

SEQUENCES, HIDDEN_SIZE, SAMPLES = 4, 2048, 10_000
GOALS = {64: (25, 150), 256: (35, 250)}


@dataclass(frozen=True)
class Labels:
    """Labels and states [sequences, 1 + length] for unshifted logits, and the published form's mask of them."""

    shifted: torch.Tensor
    states: torch.Tensor
    published: torch.Tensor
    mask: torch.Tensor


def catalog_trie(real: str | None) -> tuple[str, TokenTrie]:
    """Titles in double quotes with an end token."""
    if real is None:
        catalog, tokenizer, vocab_size = datasets.load("toys"), None, VOCAB_SIZE
    else:
        catalog = datasets.Catalog.from_jsonl(Path(real) / "catalog.jsonl")
        mistral = require("mistral_common.tokens.tokenizers.mistral", extra="mistral")
        tokenizer, vocab_size = mistral.MistralTokenizer.v3(is_tekken=True), None
    quoted = datasets.Catalog(catalog.name, tuple(f'"{title}"' for title in catalog.titles))
    values, indptr = quoted.token_sequences(tokenizer or quoted.train_tokenizer(), vocab_size=vocab_size)
    trie = TokenTrie.from_sequences((values, indptr), vocab_size=VOCAB_SIZE, end_token_id=VOCAB_SIZE - 1)
    return f"{quoted.name}, {trie.num_sequences:,} titles", trie


def some_titles(trie: TokenTrie, seed: int) -> list[list[int]]:
    """Titles of the catalog at random, end tokens included, as many as there are samples."""
    values, indptr, _, _ = trie.to_sequences()
    chosen = np.random.default_rng(seed).integers(trie.num_sequences, size=SAMPLES)
    return [values[indptr[i] : indptr[i + 1]].tolist() for i in chosen]


def labels_of(trie: TokenTrie, num_labels: int) -> Labels:
    """One title after the other until there are ``num_labels``, cut into sequences."""
    tokens: list[int] = []
    states: list[int] = []
    for title in some_titles(trie, seed=num_labels):
        tokens += title
        states += trie.token_states([title])[0].tolist()
        if len(tokens) >= num_labels:
            break
    rows = torch.tensor(tokens[:num_labels]).view(SEQUENCES, -1)
    row_states = torch.tensor(states[:num_labels]).view(SEQUENCES, -1)
    ignored = torch.full((SEQUENCES, 1), -100)
    mask = torch.zeros(num_labels, VOCAB_SIZE, dtype=torch.bool)
    valid, indptr = trie.next_tokens_batch(row_states.flatten().numpy())
    mask[torch.from_numpy(np.repeat(np.arange(num_labels), np.diff(indptr))), torch.from_numpy(valid).long()] = True
    return Labels(
        torch.cat([rows, ignored], 1),
        torch.cat([row_states, torch.full((SEQUENCES, 1), -2)], 1),
        torch.cat([ignored, rows], 1),
        mask.view(*rows.shape, VOCAB_SIZE),
    )


def with_gradient(loss: torch.Tensor, leaf: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def peak_bytes(function: object) -> int:
    """Most bytes that torch held at a time during a call, over what it held before."""
    assert callable(function)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    del result
    held = peak = 0
    for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
        if event.name == "[memory]":
            held += event.cpu_memory_usage
            peak = max(peak, held)
    return peak


def losses(trie: TokenTrie, note: str, num_labels: int, rounds: int) -> list[Figure]:
    labels = labels_of(trie, num_labels)
    generator = torch.Generator().manual_seed(0)
    shape = labels.shifted.shape
    logits = (3 * torch.randn(*shape, VOCAB_SIZE, generator=generator)).requires_grad_()
    hidden = torch.randn(*shape, HIDDEN_SIZE, generator=generator).requires_grad_()
    head = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator) * HIDDEN_SIZE**-0.5
    options = {"trie": trie, "states": labels.states, "form": "reweighted"}
    methods = {
        "logits": lambda: with_gradient(bear_loss(logits, labels.shifted, **options), logits),
        "published, logits": lambda: with_gradient(dense_bear_loss(logits, labels.published, labels.mask), logits),
        "hidden": lambda: with_gradient(linear_bear_loss(hidden, head, labels.shifted, **options), hidden),
        "published, hidden": lambda: with_gradient(
            dense_bear_loss(hidden @ head.t(), labels.published, labels.mask), hidden
        ),
        "zeros": lambda: torch.zeros_like(logits),
    }
    for kind in ("logits", "hidden"):
        torch.testing.assert_close(methods[kind](), methods[f"published, {kind}"](), rtol=1e-3, atol=1e-5)
    taken = compare(methods, rounds=rounds)
    goals = GOALS[num_labels]
    figures = []
    for kind, goal, what in (("logits", goals[0], "from logits"), ("hidden", goals[1], "from hidden states")):
        name = f"BEAR {what}, {num_labels} labels"
        speedup = ratio(taken[f"published, {kind}"], taken[kind])
        figures += [
            Figure.of(f"{name}: faster than dense by", "times", speedup, goal=goal, at_least=True, note=note),
            Figure.of(name, "ms", taken[kind], scale=1e3, note=note),
            Figure.of(f"published: {name}", "ms", taken[f"published, {kind}"], scale=1e3, note=note),
        ]
    memory = Figure.exact(
        f"BEAR from hidden states, {num_labels} labels: extra memory",
        "MiB",
        peak_bytes(methods["hidden"]) / 2**20,
        goal=10,
        note=note,
    )
    dense = Figure.exact(
        f"published: BEAR from hidden states, {num_labels} labels: extra memory",
        "MiB",
        peak_bytes(methods["published, hidden"]) / 2**20,
        note=note,
    )
    zeros = Figure.of(f"zeros like the logits of {num_labels} labels", "ms", taken["zeros"], scale=1e3)
    return [*figures, memory, dense, zeros]


def valid_sets(trie: TokenTrie, note: str, rounds: int) -> list[Figure]:
    """States and valid tokens of all labels of 10,000 samples, padded to the longest."""
    titles = some_titles(trie, seed=1)
    width = max(map(len, titles))
    labels = torch.tensor([title + [-100] * (width - len(title)) for title in titles])

    def look_up() -> LabelRows:
        return LabelRows.of(trie, labels, None, ignore_index=-100, width=VOCAB_SIZE, on_invalid="error")

    kept = look_up()
    arrays = (kept.row, kept.label, kept.node, kept.place, kept.num_valid, kept.states, kept.tokens, kept.indptr)
    name = f"states and valid sets of {SAMPLES:,} samples"
    return [
        Figure.of(name, "s", compare({"look up": look_up}, rounds=rounds)["look up"], goal=2, note=note),
        Figure.exact(name, "MB", sum(array.nbytes for array in arrays) / 1e6, goal=10, note=note),
        Figure.exact(f"published: masks of {SAMPLES:,} samples", "GiB", len(kept.row) * VOCAB_SIZE / 2**30, note=note),
    ]


def measure(options: argparse.Namespace) -> list[Figure]:
    keep_memory()
    note, trie = catalog_trie(options.real)
    found = [figure for count in GOALS for figure in losses(trie, note, count, options.rounds)]
    return found + valid_sets(trie, note, options.rounds)


if __name__ == "__main__":
    main(measure, __doc__ or "")
