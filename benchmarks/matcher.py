"""Accept a token and fill the next bitmask, token after token, at 131,072 tokens of vocabulary.

Both walk the same titles of the Steam-shaped catalog with the same tokenizer. llguidance gets one regular expression of
all titles; its cache is warm after the first round, which is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterable

import numpy as np
from _figures import VOCAB_SIZE, Figure, main

import gentrie
from gentrie import TokenTrie, TrieMatcher, datasets
from gentrie.bench.harness import Spread, compare

TITLES = 200
BATCH, CALLS = 64, 100


def llguidance_walk(tokenizer: object, titles: list[str], walks: list[list[int]]) -> Callable[[], None]:
    import llguidance
    import llguidance.hf
    import llguidance.torch

    vocabulary = llguidance.hf.from_tokenizer(tokenizer, n_vocab=VOCAB_SIZE)
    grammar = llguidance.LLMatcher.grammar_from_regex("|".join(re.escape(title) for title in sorted(set(titles))))
    mask = llguidance.torch.allocate_token_bitmask(1, VOCAB_SIZE)
    fresh = llguidance.LLMatcher(vocabulary, grammar)

    def walk() -> None:
        for tokens in walks:
            matcher = fresh.deep_copy()
            for token in tokens:
                if not matcher.consume_token(token):
                    raise RuntimeError(f"llguidance refused token {token}")
                llguidance.torch.fill_next_token_bitmask(matcher, mask, 0)

    return walk


def measure(options: argparse.Namespace) -> list[Figure]:
    catalog = datasets.load("steam")
    tokenizer = catalog.train_tokenizer()
    end = len(tokenizer)
    trie = TokenTrie.from_titles(catalog.titles, tokenizer, end_token_id=end, vocab_size=VOCAB_SIZE)
    chosen = catalog.titles[:: len(catalog.titles) // TITLES][:TITLES]
    walks = [tokenizer.encode(title, add_special_tokens=False) for title in chosen]
    mask = gentrie.allocate_token_bitmask(1, VOCAB_SIZE)
    matcher = TrieMatcher(trie)

    def ours() -> None:
        for tokens in walks:
            matcher.reset()
            for token in tokens:
                if not matcher.accept_token(token):
                    raise RuntimeError(f"token {token} was refused")
                matcher.fill_next_token_bitmask(mask)

    functions = {"gentrie": ours}
    with contextlib.suppress(ImportError):
        functions["llguidance"] = llguidance_walk(tokenizer, catalog.titles, walks)
    count = sum(map(len, walks))
    taken = compare(functions, rounds=options.rounds)
    per_token = {name: Spread.of([seconds / count for seconds in spread.rounds]) for name, spread in taken.items()}
    figures = [Figure.of("matcher: accept and fill a bitmask", "us", per_token["gentrie"], scale=1e6, goal=3)]
    if "llguidance" in per_token:
        figures.append(Figure.of("llguidance, warm: the same", "us", per_token["llguidance"], scale=1e6))
    return [*figures, *batches(trie, walks, options.rounds)]


def batches(trie: TokenTrie, walks: list[list[int]], rounds: int) -> list[Figure]:
    """One call for many rows, each in the middle of a title."""
    matchers = [TrieMatcher(trie) for _ in range(BATCH)]
    for matcher, tokens in zip(matchers, walks, strict=False):
        matcher.accept_tokens(tokens[: len(tokens) // 2])
    following = np.array([matcher.get_allowed_tokens()[0] for matcher in matchers])
    mask = gentrie.allocate_token_bitmask(BATCH, VOCAB_SIZE)
    first, first_mask = matchers[:1], mask[:1]

    def accept() -> None:
        for _ in range(CALLS):
            gentrie.batch_accept_token(matchers, following)
            for matcher in matchers:
                matcher.rollback(1)

    def roll_back() -> None:
        for _ in range(CALLS):
            for matcher in matchers:
                matcher.rollback(0)

    taken = compare(
        {
            "fill": lambda: [gentrie.batch_fill_next_token_bitmask(matchers, mask) for _ in range(CALLS)],
            "accept": accept,
            "roll back": roll_back,
            "fill one": lambda: [gentrie.batch_fill_next_token_bitmask(first, first_mask) for _ in range(CALLS)],
            "single": lambda: [first[0].fill_next_token_bitmask(first_mask) for _ in range(CALLS)],
        },
        rounds=rounds,
    )

    def row(seconds: Iterable[float]) -> Spread:
        return Spread.of([each / (CALLS * BATCH) for each in seconds])

    accepts = row(a - b for a, b in zip(taken["accept"].rounds, taken["roll back"].rounds, strict=True))
    ratios = [a / b for a, b in zip(taken["fill one"].rounds, taken["single"].rounds, strict=True)]
    name = f"matcher: batch of {BATCH}"
    return [
        Figure.of(f"{name}, fill, a row", "us", row(taken["fill"].rounds), scale=1e6, goal=0.4),
        Figure.of(f"{name}, accept, a row", "us", accepts, scale=1e6, goal=0.4),
        Figure.of("matcher: fill of a batch of 1 over a single fill", "times", Spread.of(ratios), goal=1.2),
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
