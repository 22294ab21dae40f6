"""Random catalogs for hypothesis, and how many of them to try."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from oracle import Oracle

from gentrie import TokenTrie

EFFORT = float(os.environ.get("GENTRIE_TEST_EFFORT", "1"))
"""Multiplies the number of random examples."""

BEGIN, EOS, OTHER_EOS, OUTSIDER = 0, 1, 2, 3
"""Control tokens and a token that no catalog below uses."""
FIRST_TOKEN = 4


def examples(count: int) -> settings:
    return settings(max_examples=max(1, int(count * EFFORT)))


@dataclass(frozen=True)
class Catalog:
    """The arguments of a build, and what it must give."""

    rows: list[list[int]]
    vocab_size: int
    end: int | None
    item_ids: list[int] | None

    def build(self, num_threads: int = 1) -> TokenTrie:
        return TokenTrie.from_sequences(
            self.rows,
            vocab_size=self.vocab_size,
            end_token_id=self.end,
            item_ids=self.item_ids,
            num_threads=num_threads,
        )

    def oracle(self) -> Oracle:
        return Oracle(self.rows, self.end, self.item_ids)

    def __repr__(self) -> str:
        return f"Catalog({self.rows}, {self.vocab_size}, {self.end}, {self.item_ids})"


def without_prefixes(rows: list[list[int]]) -> list[list[int]]:
    """Drops rows that are proper prefixes of others."""
    kept = {tuple(row) for row in rows}
    inner = {row[:length] for row in kept for length in range(1, len(row))}
    return [row for row in rows if tuple(row) not in inner]


@st.composite
def catalogs(draw: st.DrawFn, min_item_id: int = -(2**40)) -> Catalog:
    """Few or many tokens, stems that rows share, rows that are prefixes of others, repeats, one row or one token."""
    num_tokens = draw(st.sampled_from([1, 2, 3, 8, 70]))
    vocab_size = FIRST_TOKEN + num_tokens + 1 + draw(st.integers(0, 40))
    tokens = st.integers(FIRST_TOKEN, FIRST_TOKEN + num_tokens - 1)
    stems = draw(st.lists(st.lists(tokens, max_size=12), min_size=1, max_size=4))
    row = st.builds(
        lambda stem, cut, tail: stem[: len(stem) - cut] + tail,
        st.sampled_from(stems),
        st.integers(0, 3),
        st.lists(tokens, max_size=4),
    )
    rows = draw(st.lists(row.filter(len), min_size=1, max_size=25))
    end = draw(st.sampled_from([None, FIRST_TOKEN + num_tokens]))
    if end is None:
        rows = without_prefixes(rows)
    item_ids = None
    if draw(st.booleans()):
        ids = st.integers(min_item_id, 40) if draw(st.booleans()) else st.integers(max(min_item_id, -3), 3)
        item_ids = draw(st.lists(ids, min_size=len(rows), max_size=len(rows)))
    return Catalog(rows, vocab_size, end, item_ids)
