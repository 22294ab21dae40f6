"""Statistics of a catalog against counting by hand over every prefix."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentrie.statistics import CatalogStatistics, Level, catalog_statistics, common_prefix_lengths

END = 0
titles = st.lists(st.lists(st.integers(1, 4), max_size=6).map(lambda s: (*s, END)), min_size=1, max_size=40)


def flat(sequences: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
    indptr = np.concatenate([[0], np.cumsum([len(s) for s in sequences])])
    return np.array([t for s in sequences for t in s], dtype=np.int32), indptr.astype(np.int64)


def statistics_of(items: list[tuple[int, ...]]) -> CatalogStatistics:
    count = Counter(items)
    sequences = sorted(count)
    return catalog_statistics(*flat(sequences), np.array([count[s] for s in sequences], dtype=np.int64))


@given(titles)
def test_against_counting(items: list[tuple[int, ...]]) -> None:
    children: dict[tuple[int, ...], set[int]] = {}
    for item in items:
        for depth, token in enumerate(item):
            children.setdefault(item[:depth], set()).add(token)
    choices = [len(children[item[:depth]]) for item in items for depth in range(len(item))]
    count = Counter(items)
    branching = [len(c) for c in children.values() if len(c) > 1]

    found = statistics_of(items)
    assert found.items == len(items)
    assert found.sequences == len(count)
    assert found.tokens_per_item == pytest.approx(len(choices) / len(items))
    assert found.branching_tokens_per_item == pytest.approx(sum(c > 1 for c in choices) / len(items))
    assert found.forced_share == pytest.approx(choices.count(1) / len(choices))
    assert found.mean_valid_tokens == pytest.approx(sum(choices) / len(choices))
    assert found.distinct_tokens == len({t for item in items for t in item})
    assert found.nodes == len(children)
    assert found.branching_nodes == len(branching)
    assert found.unary_nodes == len(children) - len(branching)
    assert found.max_depth == max(map(len, items))
    assert found.max_branching == max(map(len, children.values()))
    assert found.shared_sequences == sum(c > 1 for c in count.values())
    assert found.items_sharing == sum(c for c in count.values() if c > 1)
    assert found.max_items_per_sequence == max(count.values())
    assert found.collision_rate == pytest.approx(1 - len(count) / len(items))
    assert found.length_histogram == Counter(map(len, items))
    assert found.branching_histogram == Counter(branching)


@given(titles)
def test_common_prefixes_of_neighbours(items: list[tuple[int, ...]]) -> None:
    sequences = sorted(set(items))
    expected = []
    for a, b in itertools.pairwise(sequences):
        expected.append(next(d for d in range(len(a)) if a[d] != b[d]))
    assert common_prefix_lengths(*flat(sequences)).tolist() == expected


def test_levels_of_semantic_ids() -> None:
    found = statistics_of([(1, 5, 7), (1, 5, 8), (1, 6, 7), (2, 5, 7), (2, 5, 7)])
    assert found.levels == (Level(2, 2), Level(2, 3), Level(2, 4))
    assert found.collision_rate == pytest.approx(0.2)
    assert statistics_of([(1, END), (2, 3, END)]).levels == ()


def test_one_item() -> None:
    found = statistics_of([(3, 4, END)])
    assert found.forced_share == 1
    assert found.branching_histogram == {}
    assert found.max_branching == 1
    assert found.nodes == found.unary_nodes == 3
