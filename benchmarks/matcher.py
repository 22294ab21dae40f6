"""Accept a token and fill the next bitmask, token after token, at 131,072 tokens of vocabulary.

Both walk the same titles of the Steam-shaped catalog with the same tokenizer. llguidance gets one regular expression of
all titles; its cache is warm after the first round, which is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable

from _figures import VOCAB_SIZE, Figure, main

import gentrie
from gentrie import TokenTrie, TrieMatcher, datasets
from gentrie.bench.harness import Spread, compare

TITLES = 200


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
    return figures


if __name__ == "__main__":
    main(measure, __doc__ or "")
