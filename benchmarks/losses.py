"""BEAR's loss on the labels of real or synthetic titles, forward and backward, against the published dense form.

Sequences of titles in double quotes make up 64 or 256 labels, a vocabulary of 131,072. The published form is our
rewriting of it; its boolean masks are made beforehand, which is not timed. ``--real`` names a folder with the real
catalog (``catalog.jsonl``); without it the embedded toys-shaped catalog is taken. As in training, memory that was
freed is used again: malloc is told so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _figures import VOCAB_SIZE, Figure, main
from _fresh import PeakMemory
from processor import keep_memory, ratio

from gentrie import TokenTrie, datasets
from gentrie._optional import require
from gentrie.bench.baselines.dense_losses import dense_bear_loss
from gentrie.bench.harness import Spread, compare
from gentrie.training import bear_loss, linear_bear_loss
from gentrie.training._rows import FilteredTrie, LabelRows

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


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes of the process during a call, over what it had before."""
    function()
    with PeakMemory() as peak:
        function()
    return peak.bytes


@dataclass(frozen=True)
class Methods:
    """The loss of some labels, forward and backward, from logits and from hidden states, ours and as published."""

    num_labels: int
    functions: dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]
    logits: torch.Tensor

    @classmethod
    def of(cls, trie: TokenTrie, num_labels: int, head: torch.Tensor) -> Methods:
        labels = labels_of(trie, num_labels)
        generator = torch.Generator().manual_seed(0)
        shape = labels.shifted.shape
        logits = (3 * torch.randn(*shape, VOCAB_SIZE, generator=generator)).requires_grad_()
        hidden = torch.randn(*shape, HIDDEN_SIZE, generator=generator).requires_grad_()

        def published(values: torch.Tensor) -> torch.Tensor:
            return dense_bear_loss(values, labels.published, labels.mask)

        def ours_from_logits() -> torch.Tensor:
            return bear_loss(logits, labels.shifted, trie=trie, states=labels.states, form="reweighted")

        def ours_from_hidden() -> torch.Tensor:
            return linear_bear_loss(hidden, head, labels.shifted, trie=trie, states=labels.states, form="reweighted")

        methods = cls(
            num_labels,
            {
                "logits": lambda: with_gradient(ours_from_logits(), logits),
                "published, logits": lambda: with_gradient(published(logits), logits),
                "hidden": lambda: with_gradient(ours_from_hidden(), hidden),
                "published, hidden": lambda: with_gradient(published(hidden @ head.t()), hidden),
            },
            logits,
        )
        for kind in ("logits", "hidden"):
            expected = methods.functions[f"published, {kind}"]()
            torch.testing.assert_close(methods.functions[kind](), expected, rtol=1e-3, atol=1e-5)
        return methods


def memory(methods: Methods, note: str, rounds: int) -> list[Figure]:
    """Before malloc is told to keep what it has."""
    name = f"BEAR from hidden states, {methods.num_labels} labels: extra memory"
    ours = Spread.of([peak_bytes(methods.functions["hidden"]) for _ in range(rounds)])
    published = Spread.of([peak_bytes(methods.functions["published, hidden"])])
    return [
        Figure.of(name, "MiB", ours, scale=2**-20, goal=10, note=note),
        Figure.of(f"published: {name}", "MiB", published, scale=2**-20, note=note),
    ]


def times(methods: Methods, note: str, rounds: int) -> list[Figure]:
    taken = compare({**methods.functions, "zeros": lambda: torch.zeros_like(methods.logits)}, rounds=rounds)
    figures = []
    for kind, goal in zip(("logits", "hidden"), GOALS[methods.num_labels], strict=True):
        name = f"BEAR from {'logits' if kind == 'logits' else 'hidden states'}, {methods.num_labels} labels"
        speedup = ratio(taken[f"published, {kind}"], taken[kind])
        figures += [
            Figure.of(f"{name}: faster than published", "times", speedup, goal=goal, at_least=True, note=note),
            Figure.of(name, "ms", taken[kind], scale=1e3, note=note),
            Figure.of(f"published: {name}", "ms", taken[f"published, {kind}"], scale=1e3, note=note),
        ]
    return [
        *figures,
        Figure.of(f"zeros like the logits of {methods.num_labels} labels", "ms", taken["zeros"], scale=1e3),
    ]


def valid_sets(trie: TokenTrie, note: str, rounds: int) -> list[Figure]:
    """States and valid tokens of all labels of 10,000 samples, padded to the longest."""
    titles = some_titles(trie, seed=1)
    width = max(map(len, titles))
    labels = torch.tensor([title + [-100] * (width - len(title)) for title in titles])

    def look_up() -> LabelRows:
        return LabelRows.of(FilteredTrie(trie), labels, None, ignore_index=-100, width=VOCAB_SIZE, on_invalid="error")

    kept = look_up()
    arrays = (kept.row, kept.label, kept.node, kept.place, kept.num_valid, kept.states, kept.tokens, kept.indptr)
    name = f"states and valid sets of {SAMPLES:,} samples"
    return [
        Figure.of(name, "s", compare({"look up": look_up}, rounds=rounds)["look up"], goal=2, note=note),
        Figure.exact(name, "MB", sum(array.nbytes for array in arrays) / 1e6, goal=10, note=note),
        Figure.exact(f"published: masks of {SAMPLES:,} samples", "GiB", len(kept.row) * VOCAB_SIZE / 2**30, note=note),
    ]


def measure(options: argparse.Namespace) -> list[Figure]:
    note, trie = catalog_trie(options.real)
    generator = torch.Generator().manual_seed(1)
    head = torch.randn(VOCAB_SIZE, HIDDEN_SIZE, generator=generator) * HIDDEN_SIZE**-0.5
    batches = [Methods.of(trie, num_labels, head) for num_labels in GOALS]
    figures = [figure for methods in batches for figure in memory(methods, note, options.rounds)]
    keep_memory()
    figures += [figure for methods in batches for figure in times(methods, note, options.rounds)]
    return figures + valid_sets(trie, note, options.rounds)


if __name__ == "__main__":
    main(measure, __doc__ or "")
