"""A ten-item response over the Toys-shaped catalog, as the histories that generation goes through."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from _figures import VOCAB_SIZE

from gentrie import TokenTrie
from gentrie.bench.catalogs import TokenisedCatalog, tokenised_catalogs

PROMPT_LENGTH, NUM_ITEMS, OUTER_TOKENS = 300, 10, 4


@dataclass(frozen=True)
class Step:
    """One history [1, length], the number of the item it is in or behind (from 1), and whether it is inside it."""

    ids: torch.Tensor
    item: int
    inside: bool


@dataclass(frozen=True)
class Setting:
    catalog: TokenisedCatalog
    trie: TokenTrie
    begin: int
    end: int
    eos: int
    outer: list[int]  # tokens that no title uses


def setting(name: str = "toys") -> Setting:
    catalog = tokenised_catalogs([name], VOCAB_SIZE)[0]
    begin, end = VOCAB_SIZE - 2, VOCAB_SIZE - 1
    unused = np.setdiff1d(np.arange(VOCAB_SIZE - 2), catalog.values)
    trie = TokenTrie.from_sequences((catalog.values, catalog.indptr), vocab_size=VOCAB_SIZE, end_token_id=end)
    return Setting(catalog, trie, begin, end, int(unused[0]), unused[1:200].tolist())


def steps(where: Setting, seed: int = 0) -> list[Step]:
    """Every history of the response, from the first begin token on."""
    rng = np.random.default_rng(seed)
    titles = where.catalog.titles()
    history = rng.choice(where.outer, PROMPT_LENGTH).tolist()
    found = []
    for item in range(1, NUM_ITEMS + 1):
        title = [where.begin, *titles[rng.integers(len(titles))], where.end]
        outer = rng.choice(where.outer, OUTER_TOKENS).tolist()
        for position, token in enumerate([*title, *outer]):
            history.append(token)
            found.append(Step(torch.tensor([history]), item, position < len(title) - 1))
    return found
