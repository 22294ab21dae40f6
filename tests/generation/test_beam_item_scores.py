"""Beam search with scores of items beside the model's: D3's shares and PAG's look-ahead."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from beam_reference import Path, complete, lock_step, scores, search
from catalog_strategies import catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import END, VOCAB_SIZE
from tree_models import logits_behind, tree_model

from gentrie import TokenTrie
from gentrie.generation import BeamStepper, TrieLogitsProcessor, beam_search

TITLES = [[4, 5], [4, 6], [4, 6, 7], [8, 9, 10], [8, 9, 11], [12]]
TRIE = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = torch.tensor([[30, 31], [32, 33]])


def below(rows: list[list[int]], values: np.ndarray, prefix: Path) -> list[float]:
    """Scores of the items whose sequences start with a prefix."""
    return [value for row, value in zip(rows, values.tolist(), strict=True) if (*row, END)[: len(prefix)] == prefix]


@given(
    rows=catalogs(max_items=16),
    seed=st.integers(0, 1000),
    width=st.sampled_from([1, 2, 4, 30]),
    scope=st.sampled_from(["trie", "vocab"]),
    length_penalty=st.sampled_from([0.0, 1.0]),
    alpha=st.sampled_from([0.2, 0.7, 1.0]),
    allowed=st.sets(st.integers(0, 15)),
)
@settings(max_examples=50)
def test_d3_in_lock_step(
    rows: list[list[int]], seed: int, width: int, scope: Any, length_penalty: float, alpha: float, allowed: set[int]
) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    values = np.exp(np.random.default_rng(seed).uniform(-20, 20, len(rows)))
    chosen = allowed & set(range(len(rows))) or set(range(len(rows)))

    def token_score(path: Path, token: int, valid: list[int], log_p: float) -> float:
        shares = {other: math.fsum(below(rows, values, (*path, other))) for other in valid}
        return alpha * log_p + (1 - alpha) * math.log(shares[token] / math.fsum(shares.values()))

    stepper = BeamStepper(trie, beam_width=width, scope=scope, length_penalty=length_penalty)
    stepper.add_request(seed, item_filter=sorted(chosen), item_scores=values, alpha=alpha)
    found = search(stepper, seed)
    expected = lock_step(
        {(*rows[item], END) for item in chosen},
        lambda path: scores(seed, path),
        width,
        scope,
        length_penalty,
        token_score=token_score,
    )
    assert [tuple(sequence) for sequence in found.sequences] == [path for _, path in expected]
    np.testing.assert_allclose(found.scores, [score for score, _ in expected], rtol=1e-5, atol=1e-5)
    for sequence, own, score in zip(found.sequences, found.token_scores, found.scores, strict=True):
        assert own.sum() / len(sequence) ** length_penalty == pytest.approx(score)


def test_the_item_term_keeps_its_digits_at_40_nats() -> None:
    """With ``alpha=0`` a score is the logarithm of a product of shares; those of an item's ancestors cancel."""
    draw = np.random.default_rng(0)
    rows = [[int(a), int(b), int(c)] for a, b, c in draw.integers(4, 24, (300, 3))]
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    values = np.exp(draw.uniform(-20, 20, len(rows)))
    stepper = BeamStepper(trie, beam_width=512, length_penalty=0.0)
    stepper.add_request(0, item_scores=values, alpha=0.0)
    found = search(stepper, 0)
    assert {tuple(sequence) for sequence in found.sequences} == complete(trie)
    total = math.fsum(values.tolist())
    for sequence, score in zip(found.sequences, found.scores.tolist(), strict=True):
        share = math.fsum(below(rows, values, tuple(sequence))) / total
        assert math.exp(score - math.log(share)) == pytest.approx(1, rel=1e-9)


@given(
    rows=catalogs(max_items=16),
    seed=st.integers(0, 1000),
    width=st.sampled_from([1, 2, 4, 30]),
    scope=st.sampled_from(["trie", "vocab"]),
    allowed=st.sets(st.integers(0, 15)),
)
@settings(max_examples=50)
def test_look_ahead_in_lock_step(rows: list[list[int]], seed: int, width: int, scope: Any, allowed: set[int]) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    values = np.random.default_rng(seed).normal(0, 5, len(rows))
    chosen = sorted(allowed & set(range(len(rows))) or set(range(len(rows))))
    left = [rows[item] for item in chosen]

    def best(path: Path) -> float:
        return max(below(left, values[chosen], path)) if path else 0.0

    stepper = BeamStepper(trie, beam_width=width, scope=scope, length_penalty=0.0)
    stepper.add_request(seed, item_filter=chosen, lookahead_scores=values)
    found = search(stepper, seed)
    expected = lock_step(
        {(*row, END) for row in left},
        lambda path: scores(seed, path),
        width,
        scope,
        0.0,
        token_score=lambda path, token, valid, log_p: log_p + best((*path, token)) - best(path),
    )
    assert [tuple(sequence) for sequence in found.sequences] == [path for _, path in expected]
    np.testing.assert_allclose(found.scores, [score for score, _ in expected], rtol=1e-5, atol=1e-5)
    for own, score in zip(found.token_scores, found.scores, strict=True):
        assert own.sum() == pytest.approx(score)


def test_look_ahead_finds_what_greedy_prefixes_miss() -> None:
    """One beam follows the item that the other scores put first, whatever the model thinks of its first token."""
    values = np.zeros((2, len(TITLES)))
    values[0, 4], values[1, 5] = 100.0, 100.0
    found = beam_search(tree_model("llama"), PROMPTS, TRIE, beam_width=1, lookahead_scores=values)
    assert [ids[0].tolist() for ids in found.item_ids] == [[4], [5]]


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_scores_of_each_prompt_with_a_model(kind: str, scope: Any) -> None:
    values = np.exp(np.random.default_rng(1).uniform(-20, 20, (2, len(TITLES))))
    model = tree_model(kind)
    shared = beam_search(model, PROMPTS, TRIE, scope=scope, item_scores=torch.tensor(values), alpha=0.5)
    ahead = beam_search(model, PROMPTS, TRIE, scope=scope, lookahead_scores=np.log(values))
    items = complete(TRIE)
    for prompt in range(2):
        behind = {
            path: logits_behind(model, [(PROMPTS[prompt].tolist(), list(path))])[0]
            for path in {item[:length] for item in items for length in range(len(item))}
        }
        own = values[prompt]

        def share(path: Path, token: int, valid: list[int], log_p: float, own: np.ndarray = own) -> float:
            sums = {other: sum(below(TITLES, own, (*path, other))) for other in valid}
            return 0.5 * log_p + 0.5 * math.log(sums[token] / sum(sums.values()))

        expected = lock_step(items, behind.__getitem__, 10, scope, 0.0, token_score=share)
        assert [tuple(sequence) for sequence in shared.sequences[prompt]] == [path for _, path in expected]
        np.testing.assert_allclose(shared.sequences_scores[prompt], [score for score, _ in expected], rtol=1e-4)

        def best(path: Path, own: np.ndarray = own) -> float:
            return math.log(max(below(TITLES, own, path))) if path else 0.0

        expected = lock_step(
            items,
            behind.__getitem__,
            10,
            scope,
            0.0,
            token_score=lambda path, token, valid, log_p, best=best: log_p + best((*path, token)) - best(path),
        )
        assert [tuple(sequence) for sequence in ahead.sequences[prompt]] == [path for _, path in expected]
        np.testing.assert_allclose(ahead.sequences_scores[prompt], [score for score, _ in expected], rtol=1e-4)


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_d3_of_equal_items_is_a_search_like_any_other(length_penalty: float) -> None:
    """``alpha=1`` is the search of ``generate``."""
    model: Any = tree_model("llama")
    found = beam_search(
        model,
        PROMPTS,
        TRIE,
        beam_width=4,
        item_scores=np.ones((2, len(TITLES))),
        alpha=1.0,
        length_penalty=length_penalty,
    )
    theirs = model.generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=2)],
        renormalize_logits=True,
        num_beams=4,
        num_return_sequences=4,
        length_penalty=length_penalty,
        max_new_tokens=TRIE.max_depth,
    )
    rows = [row[: row.index(END) + 1] for row in theirs[:, 2:].tolist()]
    assert [sequence for sequences in found.sequences for sequence in sequences] == rows


SCORES = [[1.0] * len(TITLES)] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"item_scores": SCORES}, "item_scores and alpha go together"),
        ({"alpha": 0.5}, "item_scores and alpha go together"),
        ({"item_scores": SCORES, "alpha": 1.5}, r"alpha=1.5 is outside \[0, 1\]"),
        ({"item_scores": SCORES, "alpha": 0.5, "lookahead_scores": SCORES}, "give one of the two"),
        ({"item_scores": SCORES[:1], "alpha": 0.5}, "item_scores has 1 rows for 2 prompts"),
        ({"lookahead_scores": [[0.0] * 6, [0.0] * 5 + [float("inf")]]}, r"lookahead_scores\[1\]\[5\]=inf"),
        ({"lookahead_scores": [[0.0] * 5] * 2}, "lookahead_scores has 5 columns"),
        (
            {"item_scores": [[1.0] * 6, [1.0] * 5 + [-1.0]], "alpha": 0.5},
            r"item_scores\[1\]\[5\]=-1.0 is not",
        ),
        ({"item_scores": [1.0] * 6, "alpha": 0.5}, r"expected real numbers \[prompts, items\]"),
    ],
)
def test_bad_scores_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(tree_model("llama"), PROMPTS, TRIE, **arguments)
