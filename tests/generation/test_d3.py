"""D3: outside item scores, summed below each branch, beside the model's probabilities."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from catalog_strategies import catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import END, VOCAB_SIZE
from tree_models import logits_behind, tree_model

from gentrie import TokenTrie
from gentrie.generation import best_first_search
from gentrie.search.item_scores import ItemScores

PROMPT = [33, 34]


@given(size=st.integers(2, 3000), seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([1.0, 20.0]))
@settings(max_examples=15)
def test_shares_at_spreads_of_40_nats(size: int, seed: int, spread: float) -> None:
    """Below 50 first tokens, each with its own second one; sums as fractions."""
    draw = np.random.default_rng(seed)
    values = np.exp(draw.uniform(-spread, spread, size))
    rows = [[int(first), 50 + item] for item, first in enumerate(draw.integers(0, 50, size))]
    trie = TokenTrie.from_sequences(rows, vocab_size=50 + size)
    if trie.next_tokens(0).size == 1:
        return
    shares, leaves = ItemScores(trie, values[None]).log_shares(0, 0, 0, trie.next_tokens(0))
    below: dict[int, Fraction] = {}
    for (first, _), value in zip(rows, values.tolist(), strict=True):
        below[first] = below.get(first, Fraction(0)) + Fraction(value)
    total = sum(below.values())
    assert sorted(below) == trie.next_tokens(0).tolist()
    np.testing.assert_allclose(np.exp(shares), [float(below[first] / total) for first in sorted(below)], rtol=1e-11)
    counts = [sum(row[0] < first for row in rows) for first in sorted(below)]
    assert leaves.tolist() == counts


def test_a_small_range_behind_a_huge_one_keeps_its_share() -> None:
    values = np.concatenate([np.full(5000, math.exp(20)), np.full(200, math.exp(-20)), np.full(5000, math.exp(20))])
    rows = [[(item >= 5000) + (item >= 5200), 3 + item] for item in range(len(values))]
    trie = TokenTrie.from_sequences(rows, vocab_size=3 + len(values))
    shares, _ = ItemScores(trie, values[None]).log_shares(0, 0, 0, trie.next_tokens(0))
    assert shares[1] == pytest.approx(math.log(200 * math.exp(-20) / (10000 * math.exp(20))), abs=1e-11)


def expected(
    rows: list[list[int]], scores: np.ndarray, allowed: set[int], alpha: float, scope: str
) -> dict[Any, float]:
    """D3's score of every allowed sequence, token by token from the definitions."""
    left = {(*rows[item], END) for item in allowed}
    prefixes = sorted({row[:length] for row in left for length in range(len(row))})
    logits = logits_behind(tree_model("llama"), [(PROMPT, list(prefix)) for prefix in prefixes]).double()
    behind = dict(zip(prefixes, logits, strict=True))

    def below(prefix: tuple[int, ...]) -> float:
        return sum(score for row, score in zip(rows, scores, strict=True) if (*row, END)[: len(prefix)] == prefix)

    found = {}
    for row in left:
        total = 0.0
        for length, token in enumerate(row):
            valid = sorted({other[length] for other in left if other[:length] == row[:length]})
            among = valid if scope == "trie" else list(range(VOCAB_SIZE))
            log_p = float(behind[row[:length]][among].log_softmax(-1)[among.index(token)])
            shares = [below((*row[:length], other)) for other in valid]
            total += alpha * log_p + (1 - alpha) * math.log(below(row[: length + 1]) / sum(shares))
        found[row] = total
    return found


@given(
    rows=catalogs(max_items=10),
    seed=st.integers(0, 1000),
    alpha=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    scope=st.sampled_from(["trie", "vocab"]),
    half=st.booleans(),
)
@settings(max_examples=25)
def test_the_best_by_both_scores(rows: list[list[int]], seed: int, alpha: float, scope: Any, half: bool) -> None:
    scores = np.exp(np.random.default_rng(seed).uniform(-20, 20, len(rows)))
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    allowed = {item for item in range(len(rows)) if not half or item % 2 == 0}
    result = best_first_search(
        tree_model("llama"),
        torch.tensor([PROMPT]),
        trie,
        num_results=4,
        scope=scope,
        item_scores=scores[None],
        alpha=alpha,
        item_filter=sorted(allowed),
    )
    every = expected(rows, scores, allowed, alpha, scope)
    assert result.certified.all()
    best = sorted(every.values(), reverse=True)[:4]
    np.testing.assert_allclose(result.sequences_scores[0], best, rtol=1e-4, atol=1e-4)
    for sequence, score in zip(result.sequences[0], result.sequences_scores[0], strict=True):
        assert score == pytest.approx(every[tuple(sequence)], rel=1e-4, abs=1e-4)


def test_scores_of_nothing_stay_finite() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [5, 7], [8]], vocab_size=VOCAB_SIZE, end_token_id=END)
    for scores in ([[0.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]):
        result = best_first_search(
            tree_model("llama"),
            torch.tensor([PROMPT]),
            trie,
            num_results=3,
            item_scores=torch.tensor(scores),
            alpha=0.5,
        )
        assert result.num_found.tolist() == [3]
        assert np.isfinite(result.sequences_scores[0]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"item_scores": [[1.0, 2.0]]}, "go together"),
        ({"item_scores": [[1.0, 2.0, 3.0]], "alpha": 1.5}, "alpha=1.5"),
        ({"item_scores": [[1.0, -2.0, 3.0]], "alpha": 0.5}, r"item_scores\[0\]\[1\]=-2.0"),
        ({"item_scores": [[1.0, float("nan"), 3.0]], "alpha": 0.5}, r"item_scores\[0\]\[1\]=nan"),
        ({"item_scores": [[1.0, 2.0]], "alpha": 0.5}, r"2 columns, the catalog's item ids lie in \[0, 2\]"),
        ({"item_scores": [[1.0, 2.0, 3.0]] * 2, "alpha": 0.5}, "2 rows for 1 prompts"),
        ({"item_scores": [1.0, 2.0, 3.0], "alpha": 0.5}, r"shape \(3,\)"),
    ],
)
def test_bad_scores_are_refused(arguments: dict[str, Any], message: str) -> None:
    trie = TokenTrie.from_sequences([[5, 6], [5, 7], [8]], vocab_size=VOCAB_SIZE, end_token_id=END)
    with pytest.raises(ValueError, match=message):
        best_first_search(tree_model("llama"), torch.tensor([PROMPT]), trie, **arguments)


def test_items_that_share_a_title_add_up() -> None:
    trie = TokenTrie.from_sequences([[5], [6], [5]], vocab_size=VOCAB_SIZE, end_token_id=END)
    shares, leaves = ItemScores(trie, [[1.0, 2.0, 5.0]]).log_shares(0, 0, 0, trie.next_tokens(0))
    np.testing.assert_allclose(np.exp(shares), [0.75, 0.25])
    assert leaves.tolist() == [0, 1]
