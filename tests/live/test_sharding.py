"""Shards by first token hold every sequence once, and the best of their best is the best."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from gentrie import TokenTrie
from gentrie.sharding import first_token_ranges, merge_top, shard_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "ray_shards.py"


@pytest.fixture(scope="module")
def example() -> Any:
    if not EXAMPLE.is_file():
        pytest.skip("the examples are not part of an installed package")
    spec = importlib.util.spec_from_file_location("ray_shards", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(st.lists(st.integers(0, 30) | st.just(7), min_size=1, max_size=80), st.data())
@settings(max_examples=150)
def test_ranges_are_balanced_and_none_is_empty(tokens: list[int], data: st.DataObject):
    num_shards = data.draw(st.integers(1, len(set(tokens))))
    ranges = first_token_ranges(tokens, num_shards)
    assert ranges[0] == 0
    assert ranges.tolist() == sorted(set(ranges.tolist()))
    shards = shard_of(tokens, ranges)
    sizes = np.bincount(shards, minlength=num_shards)
    assert sizes.size == num_shards
    assert sizes.min() > 0
    for token, shard in zip(tokens, shards, strict=True):
        assert ranges[shard] <= token < ranges[shard + 1]
    largest = max(tokens.count(token) for token in tokens)
    if len(set(tokens)) == len(tokens):
        assert sizes.max() - sizes.min() <= 1
    assert sizes.max() <= len(tokens) / num_shards + largest


def logsumexp(values: np.ndarray) -> float:
    return float(np.log(np.exp(values).sum()))


@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 12), st.booleans())
@settings(max_examples=60)
def test_merged_is_the_best_of_all(seed: int, num_shards: int, count: int, over_valid_tokens: bool):
    """Scores over the vocabulary, or over the valid tokens with the first step's share put back."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 8, (40, 3))
    rows[:num_shards, 0] = np.arange(num_shards)
    logits = rng.normal(0, 2, (3, 8))

    def results(trie: TokenTrie) -> tuple[np.ndarray, np.ndarray]:
        """All items of a trie, best first."""
        scored = []
        for row in np.unique(rows, axis=0):
            if trie.resolve(row).size == 0:
                continue
            score, state = 0.0, trie.root
            for position, token in enumerate(row):
                scope = trie.next_tokens(state) if over_valid_tokens else np.arange(8)
                score += logits[position, token] - logsumexp(logits[position, scope])
                state = trie.advance(state, int(token))
            scored += [(score, int(item)) for item in trie.resolve(row)]
        scored.sort(key=lambda entry: -entry[0])
        return np.array([s for s, _ in scored]), np.array([i for _, i in scored])

    shards = shard_of(rows[:, 0], first_token_ranges(rows[:, 0], num_shards))
    tries = [
        TokenTrie.from_sequences(rows[shards == i], vocab_size=8, item_ids=np.flatnonzero(shards == i))
        for i in range(num_shards)
    ]
    whole = TokenTrie.from_sequences(rows, vocab_size=8)
    offsets = None
    if over_valid_tokens:
        every = logsumexp(logits[0, whole.next_tokens(0)])
        offsets = [logsumexp(logits[0, trie.next_tokens(0)]) - every for trie in tries]
    best = [tuple(part[:count] for part in results(trie)) for trie in tries]
    scores, items, origin = merge_top(best, count, offsets=offsets)
    expected = results(whole)
    np.testing.assert_allclose(scores, expected[0][:count], atol=1e-9)
    assert len(set(items.tolist())) == min(count, 40)
    score_of = dict(zip(expected[1].tolist(), expected[0], strict=True))
    np.testing.assert_allclose(scores, [score_of[item] for item in items.tolist()], atol=1e-9)
    assert origin.tolist() == shards[items].tolist()


@pytest.mark.parametrize(
    ("call", "error", "parts"),
    [
        (lambda: first_token_ranges([1, 1, 2], 3), ValueError, ["num_shards=3", "2 distinct"]),
        (lambda: first_token_ranges([], 1), ValueError, ["num_shards=1", "0 distinct"]),
        (lambda: first_token_ranges([-1, 2], 1), ValueError, ["-1"]),
        (lambda: first_token_ranges([0.5], 1), TypeError, ["first_tokens"]),
        (lambda: shard_of([1], np.array([0, 5, 5])), ValueError, ["[0, 5, 5]"]),
        (lambda: merge_top([(np.zeros(2), np.zeros(1))], 3), ValueError, ["results[0]", "2 scores", "1 items"]),
        (lambda: merge_top([(np.zeros(1), np.zeros(1))], 3, offsets=[0, 0]), ValueError, ["offsets", "(2,)"]),
        (lambda: merge_top([], 0), ValueError, ["count=0"]),
    ],
)
def test_bad_arguments_are_named(call: Any, error: type[Exception], parts: list[str]):
    with pytest.raises(error) as raised:
        call()
    assert all(part in str(raised.value) for part in parts), raised.value


def test_nothing_found_anywhere():
    scores, items, shards = merge_top([(np.empty(0), np.empty(0, dtype=np.int64))] * 2, 5)
    assert scores.size == items.size == shards.size == 0


def exact(example: Any, rows: np.ndarray, count: int) -> np.ndarray:
    table = example.model_table()
    return np.sort(table[np.arange(example.LENGTH), rows].sum(axis=1))[::-1][:count]


def test_the_examples_search_and_merge(example: Any):
    rows, table = example.catalog(20_000), example.model_table()
    parts = example.split(rows, 10)
    sizes = [len(items) for _, items in parts]
    assert sum(sizes) == len(rows)
    assert max(sizes) < 1.2 * len(rows) / 10
    found = [example.top(example.build_shard(*part), table, 8) for part in parts]
    scores, items, _ = merge_top(found, 8)
    np.testing.assert_allclose(scores, exact(example, rows, 8))
    np.testing.assert_allclose(table[np.arange(example.LENGTH), rows[items]].sum(axis=1), scores)


def test_the_example_on_ray(example: Any, capsys: pytest.CaptureFixture[str]):
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        scores, _ = example.main(20_000, 10, 8)
    finally:
        ray.shutdown()
    np.testing.assert_allclose(scores, exact(example, example.catalog(20_000), 8))
    assert "shard 9" in capsys.readouterr().out
