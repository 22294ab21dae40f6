"""Exact top-B against the scores of every item of a small catalog."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from catalog_strategies import catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import END, PAD, VOCAB_SIZE, tiny_model
from transformers import TemperatureLogitsWarper
from tree_models import logits_behind, tree_model

from gentrie import TokenTrie
from gentrie.generation import best_first_search

PROMPTS = [[30, 31, 32, 33], [34], [35, 36, 37]]


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def exhaustive(model: Any, prompt: list[int], rows: set[tuple[int, ...]], scope: str) -> dict[tuple[int, ...], float]:
    """The score of every sequence, by the plain model on every prefix."""
    prefixes = sorted({row[:length] for row in rows for length in range(len(row))})
    logits = logits_behind(model, [(prompt, list(prefix)) for prefix in prefixes]).double()
    behind = dict(zip(prefixes, logits, strict=True))
    scores = {}
    for row in rows:
        score = 0.0
        for length, token in enumerate(row):
            if scope == "vocab":
                valid = list(range(logits.shape[1]))
            else:
                valid = sorted({other[length] for other in rows if other[:length] == row[:length]})
            score += float(behind[row[:length]][valid].log_softmax(-1)[valid.index(token)])
        scores[row] = score
    return scores


@given(
    kind=st.sampled_from(["llama", "gpt2", "Qwen3", "t5"]),
    rows=catalogs(max_items=14),
    wanted=st.integers(1, 16),
    scope=st.sampled_from(["trie", "vocab"]),
    with_filter=st.booleans(),
    width=st.sampled_from([1, 3, 256]),
    speculation=st.sampled_from([0.0, 0.2, 50.0]),
)
@settings(max_examples=40)
def test_the_best_items_of_the_whole_catalog(
    kind: str, rows: list[list[int]], wanted: int, scope: Any, with_filter: bool, width: int, speculation: float
) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    allowed = [row for row in range(len(rows)) if row % 2 == 0] if with_filter else None
    ids, mask = padded(PROMPTS)
    result = best_first_search(
        tree_model(kind),
        ids,
        trie,
        attention_mask=mask,
        num_results=wanted,
        scope=scope,
        item_filter=allowed,
        max_rows_per_call=width,
        speculation=speculation,
    )
    choice = range(len(rows)) if allowed is None else allowed
    left = {(*rows[row], END) for row in choice}
    for number, prompt in enumerate(PROMPTS):
        expected = exhaustive(tree_model(kind), prompt, left, scope)
        best = sorted(expected.values(), reverse=True)[:wanted]
        scores = result.sequences_scores[number]
        assert result.num_found[number] == len(best)
        np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-4)
        assert (np.diff(scores) <= 0).all()
        sequences = [tuple(sequence) for sequence in result.sequences[number]]
        assert len(set(sequences)) == len(sequences)
        for at, sequence in enumerate(sequences):
            assert scores[at] == pytest.approx(expected[sequence], rel=1e-4, abs=1e-4)
            tokens = result.token_scores[number][at]
            assert len(tokens) == len(sequence)
            assert tokens.sum() == pytest.approx(scores[at])
            assert result.item_ids[number][at].tolist() == [row for row in choice if (*rows[row], END) == sequence]
        assert result.certified[number]
        assert result.gap[number] == 0


TITLES = [[a, b, c, 20, 21, 22] for a in range(4, 9) for b in range(9, 13) for c in range(13, 17)]


@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_a_budget_leaves_a_gap_that_shrinks_to_nothing(scope: Any) -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    arguments: dict[str, Any] = {"attention_mask": mask, "num_results": 3, "scope": scope, "max_rows_per_call": 6}
    whole = best_first_search(tree_model("llama"), ids, trie, **arguments)
    assert whole.certified.all()
    seen = []
    most = whole.stats.model_calls
    for calls in sorted({*range(0, most, max(1, most // 10)), most}):
        part = best_first_search(tree_model("llama"), ids, trie, max_calls=calls, **arguments)
        assert part.stats.model_calls <= calls + 1
        for number in range(len(PROMPTS)):
            assert part.certified[number] == (part.gap[number] == 0)
            scores = part.sequences_scores[number]
            if len(scores) == 3:  # no item that was not seen scores above the last by more than the gap
                assert whole.sequences_scores[number][0] <= max(scores[0], scores[-1] + part.gap[number]) + 1e-6
            else:
                assert part.gap[number] == np.inf
        seen.append(part.gap.max())
    assert seen[0] == np.inf
    assert seen[-1] == 0


def test_forced_runs_cost_nothing_and_rows_stay_near_the_fewest() -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    for seed in range(5):
        model, prompt = tiny_model("llama", seed), [30 + seed, 31]
        result = best_first_search(model, torch.tensor([prompt]), trie, num_results=5)
        rows = {(*row, END) for row in TITLES}
        last = result.sequences_scores[0][-1]
        branching = needed(model, prompt, rows, last - 1e-6)
        assert branching <= result.stats.rows <= max(1.25 * branching, branching + 1)
        assert result.stats.tokens_computed <= 3 * result.stats.rows
        assert result.stats.tokens_forced == 5 * 4


def needed(model: Any, prompt: list[int], rows: set[tuple[int, ...]], last: float) -> int:
    """Branching prefixes whose log-probability reaches ``last``."""
    count, level = 0, {(): 0.0}
    while level:
        following = {}
        for prefix, score in level.items():
            tokens = sorted(
                {row[len(prefix)] for row in rows if row[: len(prefix)] == prefix and len(row) > len(prefix)}
            )
            if len(tokens) == 1:
                following[(*prefix, tokens[0])] = score
            elif tokens and score >= last:
                count += 1
                logits = logits_behind(model, [(prompt, list(prefix))])[0, tokens].double().log_softmax(-1)
                following |= {(*prefix, token): score + float(lp) for token, lp in zip(tokens, logits, strict=True)}
        level = following
    return count


def test_filters_one_a_prompt_and_one_that_leaves_nothing() -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    result = best_first_search(
        tree_model("llama"), ids, trie, attention_mask=mask, num_results=10, item_filter=[[3], [1, 2, 40], [999]]
    )
    found = [{int(item) for items in prompt for item in items} for prompt in result.item_ids]
    assert found == [{3}, {1, 2, 40}, set()]
    assert result.num_found.tolist() == [1, 3, 0]
    assert result.certified.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length_penalty": 1.0}, "length_penalty=1.0"),
        ({"logits_processor": [TemperatureLogitsWarper(0.5)]}, "logits_processor=TemperatureLogitsWarper"),
        ({"scope": "items"}, "scope"),
        ({"num_results": 0}, "num_results=0"),
        ({"max_calls": -1}, "max_calls=-1"),
        ({"speculation": -0.5}, "speculation=-0.5"),
        ({"item_filter": [[1], [2]]}, "item_filter has 2 entries for 3 prompts"),
    ],
)
def test_what_no_prefix_bounds_is_refused(arguments: dict[str, Any], message: str) -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    with pytest.raises(ValueError, match=message):
        best_first_search(tree_model("llama"), ids, trie, attention_mask=mask, **arguments)
