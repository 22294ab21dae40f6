"""Single calls from Python that take microseconds: a history of int32 beside one of int64, the next tokens of a prefix
given as a list, and the build of a few items, each beside a plain dictionary where there is one."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from _figures import Figure, main

from gentrie import TokenTrie
from gentrie.bench.harness import Spread, compare
from gentrie.history import HistoryRules

CALLS = 500
FEW = [[5, 6], [5, 7, 8], [9], [4, 4, 4]]


def repeated(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def prefixes(items: list[list[int]]) -> dict[tuple[int, ...], list[int]]:
    """The next tokens behind every prefix."""
    found: dict[tuple[int, ...], set[int]] = {}
    for item in items:
        for length in range(len(item)):
            found.setdefault(tuple(item[:length]), set()).add(item[length])
    return {prefix: sorted(tokens) for prefix, tokens in found.items()}


def measure(options: argparse.Namespace) -> list[Figure]:
    generator = np.random.default_rng(0)
    codes = generator.integers(10, 266, (5000, 4))
    trie = TokenTrie.from_sequences(codes, vocab_size=1000, end_token_id=3)
    rules = HistoryRules(
        trie,
        begin_token_id=5,
        eos_token_id=4,
        prompt_length=None,
        after=None,
        unique=False,
        item_filter=None,
        on_dead="eos",
    )
    wide = torch.from_numpy(generator.integers(300, 900, (1, 500)))
    wide[0, -2:] = torch.tensor([5, codes[0, 0]])
    narrow, known = wide.int(), prefixes(codes.tolist())
    prefix = codes[0, :2].tolist()
    assert trie.next_tokens(trie.walk(prefix)).tolist() == known[tuple(prefix)]
    taken = compare(
        {
            name: repeated(call)
            for name, call in {
                "int64": lambda: rules.allowed(wide),
                "int32": lambda: rules.allowed(narrow),
                "next": lambda: trie.next_tokens(trie.walk(prefix)),
                "dictionary": lambda: known[tuple(prefix)],
                "build": lambda: TokenTrie.from_sequences(FEW, vocab_size=64, end_token_id=1),
                "build a dictionary": lambda: prefixes(FEW),
            }.items()
        },
        rounds=options.rounds,
    )
    ratios = [a / b for a, b in zip(taken["int32"].rounds, taken["int64"].rounds, strict=True)]

    def one(name: str, figure: str, goal: float | None = None) -> Figure:
        return Figure.of(figure, "us", taken[name], scale=1e6 / CALLS, goal=goal)

    return [
        Figure.of("history of 500 tokens, int32 over int64", "times", Spread.of(ratios), goal=1.2),
        one("next", "next tokens of a prefix given as a list", 0.7),
        one("dictionary", "dictionary of all prefixes: the same"),
        one("build", "build of four items", 30),
        one("build a dictionary", "dictionary of all prefixes: the same items"),
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
