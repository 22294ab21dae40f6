"""Catalogs of GPU benchmarks: random ids, and the titles of a synthetic catalog."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from gentrie import datasets
from gentrie.trie import TokenTrie


def random_ids(count: int, length: int, num_codes: int) -> npt.NDArray[np.int32]:
    """int32 [count, length], uniform."""
    rows, rng = np.empty((count, length), dtype=np.int32), np.random.default_rng(0)
    for begin in range(0, count, 1 << 20):  # in parts: int32 draws are made from larger ones
        part = rows[begin : begin + (1 << 20)]
        part[:] = rng.integers(0, num_codes, part.shape, dtype=np.int32)
    return rows


def title_trie(name: str, vocab_size: int, num_items: int | None) -> TokenTrie:
    """Titles of a catalog of ``gentrie.datasets`` over a vocabulary, with its last token behind each."""
    catalog = datasets.load(name, num_items=num_items)
    sequences = catalog.token_sequences(catalog.train_tokenizer(), vocab_size=vocab_size)
    return TokenTrie.from_sequences(sequences, vocab_size=vocab_size, end_token_id=vocab_size - 1)


def some_sequences(trie: TokenTrie, count: int) -> list[list[int]]:
    """Sequences of a trie at random, end tokens included."""
    values, indptr, _, _ = trie.to_sequences()
    chosen = np.random.default_rng(1).integers(trie.num_sequences, size=count)
    return [values[indptr[i] : indptr[i + 1]].tolist() for i in chosen]


def states_inside(trie: TokenTrie, count: int, depth: int | None = None) -> list[int]:
    """States of prefixes that are not complete: of ``depth`` tokens, or one less than the sequence where it is shorter;
    of any length where None."""
    rng = np.random.default_rng(2)
    rows = some_sequences(trie, count)
    cuts = [int(rng.integers(len(row))) if depth is None else min(depth, len(row) - 1) for row in rows]
    return [trie.walk(row[:cut]) for row, cut in zip(rows, cuts, strict=True)]


def allowed_tokens(trie: TokenTrie, states: list[int], width: int) -> torch.Tensor:
    """bool [states, width], True where a token may follow."""
    allowed = torch.zeros(len(states), width, dtype=torch.bool)
    tokens, indptr = trie.next_tokens_batch(states)
    allowed[np.repeat(np.arange(len(states)), np.diff(indptr)), tokens.astype(np.int64)] = True
    return allowed


def labels_of_titles(trie: TokenTrie, num_labels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 [num_labels] twice: tokens of titles, one title after the other, and the state that each is chosen from."""
    tokens: list[int] = []
    states: list[int] = []
    for row in some_sequences(trie, num_labels):
        tokens += row
        states += trie.token_states([row])[0].tolist()
        if len(tokens) >= num_labels:
            break
    return torch.tensor(tokens[:num_labels]), torch.tensor(states[:num_labels])
