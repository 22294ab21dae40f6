"""Compare the shape of the synthetic catalogs with that of real titles of the same length.

    python benchmarks/catalog_shapes.py --real CATALOG.jsonl [CATALOG.jsonl ...]

Real titles are few and of their own lengths, so each synthetic catalog is compared with a part of them that has its
mean number of tokens: *whole* titles, the shortest or the longest ones; and all titles *cut* behind so many tokens,
which makes many of them equal. A smaller trie is more forced, so the synthetic catalog is also drawn down to as many
items as the whole titles. Two tokenizers: one trained on the titles at hand with ``gentrie.datasets`` and, where
mistral-common is installed, its tekken, under which the lengths are other than the documented ones.

Columns: items; distinct titles; tokens an item, end token included; share of them that are forced; tokens an item
that are not; valid tokens at a position, mean; tokens that titles begin with; titles that are prefixes of others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from gentrie import TokenTrie, datasets
from gentrie._optional import require
from gentrie.datasets import Catalog
from gentrie.statistics import CatalogStatistics, common_prefix_lengths
from gentrie.tokenization import vocab_size_of

Rows = list[list[int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="catalogs as JSON lines")
    real_paths = parser.parse_args().real
    console = Console()
    found = [path for path in real_paths if path.is_file()]
    for path in real_paths:
        if path not in found:
            console.print(f"{path} is absent: left out")
    if not found:
        console.print("No real catalog: the synthetic ones are shown alone.")
    real = [title for path in found for title in Catalog.from_jsonl(path).titles]

    catalogs = [datasets.load(name) for name in datasets.NAMES]
    tokenizers: dict[str, Callable[[Catalog], Any]] = {"trained on the titles": Catalog.train_tokenizer}
    try:
        tekken = require("mistral_common.tokens.tokenizers.mistral", extra="mistral").MistralTokenizer.v3(
            is_tekken=True
        )
        tokenizers["tekken"] = lambda _: tekken
    except ImportError as error:
        console.print(f"Without tekken: {error}")

    for name, tokenizer_for in tokenizers.items():
        table = Table(title=f"Tokenizer: {name}", padding=(0, 1, 0, 0), pad_edge=False)
        for heading in _HEADINGS:
            table.add_column(heading, justify="left" if heading == "titles" else "right")
        real_rows, real_size = encode(Catalog("real", real), tokenizer_for) if real else ([], 0)
        for catalog in catalogs:
            rows, size = encode(catalog, tokenizer_for)
            table.add_row(*shape(catalog.name, rows, size))
            if real_rows:
                length = float(np.mean([len(row) for row in rows]))
                whole = whole_titles(real_rows, length)
                table.add_row(*shape("  as many as below", sample(rows, len(whole)), size))
                table.add_row(*shape("  real, whole", whole, real_size))
                table.add_row(*shape("  real, cut", cut_titles(real_rows, length), real_size))
            table.add_section()
        console.print(table)


_HEADINGS = (
    "titles",
    "items",
    "distinct",
    "tokens",
    "forced",
    "branching",
    "valid next",
    "first",
    "prefixes",
)


def encode(catalog: Catalog, tokenizer_for: Callable[[Catalog], Any]) -> tuple[Rows, int]:
    """Return the token ids of each title, and the size of the tokenizer's vocabulary."""
    tokenizer = tokenizer_for(catalog)
    values, indptr = catalog.token_sequences(tokenizer)
    return [row.tolist() for row in np.split(values, indptr[1:-1])], vocab_size_of(tokenizer)


def shape(name: str, rows: Rows, vocab_size: int) -> list[str]:
    """Return a row of the table: the shape of these titles with an end token behind each."""
    trie = TokenTrie.from_sequences(rows, vocab_size=vocab_size + 1, end_token_id=vocab_size)
    statistics = CatalogStatistics.of(trie)
    values, indptr, _, _ = trie.to_sequences()
    titles = np.diff(indptr) - 1
    shared = np.concatenate([[0], common_prefix_lengths(values, indptr), [0]])
    prefixes = int(((shared[1:] == titles) | (shared[:-1] == titles)).sum())
    return [
        name,
        f"{statistics.items:,}",
        f"{statistics.sequences:,}",
        f"{statistics.tokens_per_item:.2f}",
        f"{statistics.forced_share:.1%}",
        f"{statistics.branching_tokens_per_item:.2f}",
        f"{statistics.mean_valid_tokens:.0f}",
        f"{trie.next_tokens(trie.root).size:,}",
        f"{prefixes:,}",
    ]


def sample(rows: Rows, count: int) -> Rows:
    """Return ``count`` of the rows, or all of them where there are not so many."""
    chosen = np.random.RandomState(0).permutation(len(rows))[:count]
    return [rows[i] for i in chosen]


def whole_titles(rows: Rows, length: float) -> Rows:
    """Return the shortest or the longest rows, as many as have a mean of ``length`` tokens."""
    shuffled = sample(rows, len(rows))
    longest_first = float(np.mean([len(row) for row in rows])) < length
    ordered = sorted(shuffled, key=len, reverse=longest_first)
    means = np.cumsum([len(row) for row in ordered]) / np.arange(1, len(ordered) + 1)
    fits = np.flatnonzero(means >= length if longest_first else means <= length)
    return ordered[: int(fits[-1]) + 1]


def cut_titles(rows: Rows, length: float) -> Rows:
    """Return the rows cut behind k or k + 1 tokens, so many of either that the mean is ``length`` where it can be."""
    lengths = np.array([len(row) for row in rows])
    limits = np.arange(1, lengths.max() + 1)
    means = np.array([np.minimum(lengths, limit).mean() for limit in limits])
    limit = int(np.searchsorted(means, length))
    if limit >= limits.size:
        return rows
    below = means[limit - 1] if limit else 0.0
    longer = np.random.RandomState(0).random_sample(len(rows)) < (length - below) / (means[limit] - below)
    return [row[: limit + int(more)] for row, more in zip(rows, longer, strict=True)]


if __name__ == "__main__":
    main()
