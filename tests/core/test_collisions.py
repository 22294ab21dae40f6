"""Items with the same semantic ids: kept, listed, refused, or told apart by a suffix."""

from __future__ import annotations

import itertools
import tracemalloc
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from gentrie import TokenTrie

CODES = st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=20)


def by_codes(codes: list[list[int]], item_ids: list[int]) -> dict[tuple[int, ...], list[int]]:
    groups: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for row, item in zip(codes, item_ids, strict=True):
        groups[tuple(row)].add(item)
    return {row: sorted(items) for row, items in sorted(groups.items())}


@given(CODES, st.data())
@examples(80)
def test_kept_listed_and_suffixed(codes: list[list[int]], data: Any):
    ids = data.draw(st.lists(st.integers(-5, 5), min_size=len(codes), max_size=len(codes)))
    groups = by_codes(codes, ids)
    table = np.random.default_rng(0).permutation(60).reshape(3, 20)
    options: dict[str, Any] = {"vocab_size": 60, "item_ids": ids}

    trie = TokenTrie.from_semantic_ids(np.array(codes), token_ids=(0, 20), **options)
    values, indptr, items, item_indptr = trie.collisions()
    shared = {row: members for row, members in groups.items() if len(members) > 1}
    assert (values.reshape(-1, 2) - [0, 20]).tolist() == list(map(list, shared))
    assert indptr.tolist() == list(range(0, 2 * len(shared) + 1, 2))
    assert [items[a:b].tolist() for a, b in itertools.pairwise(item_indptr)] == list(shared.values())

    for token_ids in (table, (0, 20)):
        trie = TokenTrie.from_semantic_ids(np.array(codes), token_ids=token_ids, on_collision="suffix", **options)
        assert trie.num_items == trie.num_sequences == sum(map(len, groups.values()))
        assert trie.max_depth == 3
        tokens = table if token_ids is table else np.arange(60).reshape(3, 20)
        for row, members in groups.items():
            for rank, item in enumerate(members):
                assert trie.resolve(tokens[range(3), [*row, rank]]).tolist() == [item]

    if shared:
        with pytest.raises(ValueError) as error:
            TokenTrie.from_semantic_ids(np.array(codes), token_ids=(0, 20), on_collision="error", **options)
        first = next(iter(shared.values()))
        assert f"items {first[0]} and {first[1]}" in str(error.value)
        assert f"({len(shared)} such sequences)" in str(error.value)
    else:
        strict = TokenTrie.from_semantic_ids(np.array(codes), token_ids=(0, 20), on_collision="error", **options)
        assert strict.num_items == len(groups)


def test_more_collisions_than_suffixes():
    codes = np.array([[0, 1], *[[2, 0]] * 4])
    with pytest.raises(ValueError, match=r"4 items, such as item 1,.*the 3 codes"):
        TokenTrie.from_semantic_ids(codes, token_ids=(0, 3), vocab_size=9, on_collision="suffix")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"on_collision": "drop"}, ValueError, "on_collision='drop'"),
        (
            {"on_collision": "suffix", "token_ids": np.zeros((2, 3), dtype=int)},
            ValueError,
            r"\(2, 3\), expected \[3, K\]",
        ),
        ({"on_collision": "suffix", "vocab_size": 6}, ValueError, "6.*vocab_size=6"),
        ({"memory_limit": 1}, MemoryError, "memory_limit=1"),
    ],
)
def test_refused(options: dict[str, Any], kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        TokenTrie.from_semantic_ids(np.array([[0, 1]]), **{"token_ids": (0, 3), "vocab_size": 9, **options})


@pytest.mark.parametrize("token_ids", [(5, 4), [[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]])
def test_semantic_ids_with_an_end_token(token_ids: Any):
    codes = np.array([[0, 1], [2, 3], [0, 1]])
    options = {"vocab_size": 40, "end_token_id": 1, "metadata": {"codebook": "v7"}}
    kept = TokenTrie.from_semantic_ids(codes, token_ids=(5, 4), **options)
    rows = [[5, 10], [7, 12], [5, 10]]
    assert kept.fingerprint == TokenTrie.from_sequences(rows, vocab_size=40, end_token_id=1).fingerprint
    suffixed = TokenTrie.from_semantic_ids(codes, token_ids=token_ids, on_collision="suffix", **options)
    rows = [[5, 10, 13], [7, 12, 13], [5, 10, 14]]
    assert suffixed.fingerprint == TokenTrie.from_sequences(rows, vocab_size=40, end_token_id=1).fingerprint
    assert suffixed.metadata == kept.metadata == {"codebook": "v7"}


def test_the_stride_takes_no_memory():
    """``(base, stride)`` is arithmetic: a list of 2**27 suffixes would take a gigabyte."""
    codes, options = np.zeros((2, 1), dtype=np.int64), {"token_ids": (0, 2**27), "vocab_size": 2**28 + 1}
    tracemalloc.start()
    for on_collision in ("keep", "suffix"):
        TokenTrie.from_semantic_ids(codes, on_collision=on_collision, **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
