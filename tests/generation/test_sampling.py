"""Items drawn without replacement, against the exact probabilities of every ordered draw."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from test_best_first import exhaustive
from tiny_models import END, VOCAB_SIZE, tiny_model

from gentrie import TokenTrie
from gentrie.generation import sample_items

ROWS = [[20, 21, 22], [20, 21, 30, 31], [20, 23], [24], [25, 26], [25, 27]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPT = [33, 34]


def probabilities(kind: str, seed: int) -> dict[tuple[int, ...], float]:
    scores = exhaustive(tiny_model(kind, seed), PROMPT, {(*row, END) for row in ROWS}, "trie")
    return {row: math.exp(score) for row, score in scores.items()}


@pytest.mark.parametrize("seed", range(3))
def test_ordered_draws_have_the_probabilities_of_drawing_one_after_the_other(seed: int) -> None:
    exact, draws = probabilities("llama", seed), 3000
    result = sample_items(tiny_model("llama", seed), torch.tensor([PROMPT] * draws), TRIE, num_samples=2, seed=seed)
    counts: dict[tuple[Any, ...], int] = {}
    for sequences, log_probs in zip(result.sequences, result.log_probs, strict=True):
        pair = tuple(map(tuple, sequences))
        assert len(set(pair)) == 2
        counts[pair] = counts.get(pair, 0) + 1
        np.testing.assert_allclose(np.exp(log_probs), [exact[row] for row in pair], rtol=1e-4)
    statistic, freedom, rare, seldom = 0.0, 0, 0.0, 0
    for first, second in itertools.permutations(exact, 2):
        mean = draws * exact[first] * exact[second] / (1 - exact[first])
        if mean >= 8:
            statistic += (counts.get((first, second), 0) - mean) ** 2 / mean
            freedom += 1
        else:
            rare, seldom = rare + mean, seldom + counts.get((first, second), 0)
    statistic += (seldom - rare) ** 2 / max(rare, 1)
    assert freedom >= 4
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_log_probabilities_at_a_temperature_and_the_whole_catalog() -> None:
    """All items drawn: their probabilities sum to one, and each token's are a softmax of the divided logits."""
    result = sample_items(tiny_model("gpt2"), torch.tensor([PROMPT]), TRIE, num_samples=50, temperature=2.5, seed=0)
    assert sorted(map(tuple, result.sequences[0])) == sorted((*row, END) for row in ROWS)
    assert np.exp(result.log_probs[0]).sum() == pytest.approx(1)
    for tokens, total in zip(result.token_log_probs[0], result.log_probs[0], strict=True):
        assert tokens.sum() == pytest.approx(total)
    logits = tiny_model("gpt2")(torch.tensor([PROMPT])).logits[0, -1, [20, 24, 25]].double()
    expected = (logits / 2.5).log_softmax(-1).tolist()
    for sequence, tokens in zip(result.sequences[0], result.token_log_probs[0], strict=True):
        assert tokens[0] == pytest.approx(expected[[20, 24, 25].index(sequence[0])], rel=1e-5)
    assert result.stats.rows == 4  # the branches: root, 20, 20 21, 25


def test_seeds_and_filters() -> None:
    ids = torch.tensor([PROMPT, PROMPT])
    model = tiny_model("llama")
    first, second = (sample_items(model, ids, TRIE, num_samples=3, seed=7) for _ in range(2))
    assert first.sequences == second.sequences
    torch.manual_seed(1)
    third = sample_items(model, ids, TRIE, num_samples=3)
    torch.manual_seed(1)
    assert third.sequences == sample_items(model, ids, TRIE, num_samples=3).sequences
    held = sample_items(model, ids, TRIE, num_samples=3, item_filter=[[1, 4], [99]])
    assert [{int(item) for items in prompt for item in items} for prompt in held.item_ids] == [{1, 4}, set()]
    with pytest.raises(ValueError, match="temperature=0"):
        sample_items(model, ids, TRIE, num_samples=3, temperature=0)
    with pytest.raises(ValueError, match="num_samples=0"):
        sample_items(model, ids, TRIE, num_samples=0)


def test_one_item_needs_no_draw() -> None:
    trie = TokenTrie.from_sequences([[20, 21, 22]], vocab_size=VOCAB_SIZE, end_token_id=END)
    result = sample_items(tiny_model("llama"), torch.tensor([PROMPT]), trie, num_samples=4)
    assert result.sequences == [[[20, 21, 22, END]]]
    assert result.log_probs[0].tolist() == [0.0]
    assert result.stats.tokens_computed == 0
    assert result.stats.tokens_forced == 4
