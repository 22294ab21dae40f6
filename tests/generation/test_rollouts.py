"""Rollouts for reinforcement learning: beam search's against exhaustive scoring, and their scores with gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from catalog_strategies import catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from test_beam_search import PROMPTS, padded
from test_best_first import exhaustive
from tiny_models import END, VOCAB_SIZE
from tree_models import logits_behind, tree_model

from gentrie import TokenTrie
from gentrie.generation import ItemSamples, beam_rollouts, sample_items
from gentrie.generation.beam_search import beam_search
from gentrie.training import sequence_logprobs

ROWS = [[20, 21, 22], [20, 21, 30, 31], [20, 23], [24], [25, 26], [25, 27], [25, 27, 28]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)


@given(
    kind=st.sampled_from(["llama", "gpt2", "Qwen3", "t5"]),
    rows=catalogs(max_items=16),
    wanted=st.integers(1, 20),
    with_filter=st.booleans(),
)
@settings(max_examples=40)
def test_as_many_distinct_items_as_there_are_with_their_exact_log_probabilities(
    kind: str, rows: list[list[int]], wanted: int, with_filter: bool
) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    model = tree_model(kind)
    allowed = rows[::2] if with_filter else rows
    items = {(*row, END) for row in allowed}
    ids, mask = padded(PROMPTS)
    item_filter = list(range(0, len(rows), 2)) if with_filter else None
    found = beam_rollouts(model, ids, trie, num_samples=wanted, attention_mask=mask, item_filter=item_filter)
    for number, prompt in enumerate(PROMPTS):
        exact = exhaustive(model, prompt, items, "trie")
        sequences = [tuple(sequence) for sequence in found.sequences[number]]
        assert set(sequences) <= items
        assert len(set(sequences)) == len(sequences) == min(wanted, len(items))
        np.testing.assert_allclose(found.log_probs[number], [exact[row] for row in sequences], rtol=1e-4, atol=1e-4)
        assert (np.diff(found.log_probs[number]) <= 0).all()
        for at, sequence in enumerate(sequences):
            assert found.token_log_probs[number][at].sum() == pytest.approx(found.log_probs[number][at])
            given = [item for item, row in enumerate(rows) if (*row, END) == sequence]
            assert found.item_ids[number][at].tolist() == [item for item in given if not with_filter or item % 2 == 0]


def logits_of(model: Any, prompt: list[int], sequence: list[int]) -> torch.Tensor:
    """[tokens, V] that each token of an item was chosen from, with gradients."""
    whole = model(torch.tensor([[*prompt, *sequence]]), use_cache=False).logits[0]
    return whole[len(prompt) - 1 : -1]


@pytest.mark.parametrize("find", [beam_rollouts, sample_items])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_scored_again_with_gradients_they_have_the_same_log_probabilities(find: Any, temperature: float) -> None:
    model: Any = tree_model("llama")
    ids, mask = padded(PROMPTS)
    found: ItemSamples = find(model, ids, TRIE, num_samples=4, attention_mask=mask, temperature=temperature)
    for number, prompt in enumerate(PROMPTS):
        for sequence, expected in zip(found.sequences[number], found.log_probs[number], strict=True):
            logits = logits_of(model, prompt, sequence)
            again = sequence_logprobs(logits, torch.tensor(sequence), trie=TRIE, tau=temperature)
            assert again.item() == pytest.approx(expected, abs=1e-5)
            (gradient,) = torch.autograd.grad(again, logits)
            assert gradient.isfinite().all()
            # Moves exactly the tokens that were a choice.
            chosen = found.token_log_probs[number][found.sequences[number].index(sequence)] < 0
            assert (gradient.abs().sum(-1) > 0).tolist() == chosen.tolist()


def test_the_items_and_the_cost_of_the_beam_search_without_length_penalty() -> None:
    model = tree_model("gpt2")
    ids, mask = padded(PROMPTS)
    search = beam_search(model, ids, TRIE, attention_mask=mask, beam_width=3, length_penalty=0.0, temperature=2.0)
    found = beam_rollouts(model, ids, TRIE, num_samples=3, attention_mask=mask, temperature=2.0)
    assert found.sequences == search.sequences
    assert (found.stats.model_calls, found.stats.rows) == (search.stats.model_calls, search.stats.rows)
    assert found.stats.tokens_forced == search.stats.tokens_forced > 0
    first = logits_behind(model, [(PROMPTS[0], [])])[0, [20, 24, 25]].double()
    one = found.token_log_probs[0][0][0]
    at = [20, 24, 25].index(found.sequences[0][0][0])
    assert one == pytest.approx(float((first / 2.0).log_softmax(-1)[at]), abs=1e-5)


@pytest.mark.parametrize("wanted", [0, 513, 1.5])
def test_bad_numbers_are_refused(wanted: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="num_samples"):
        beam_rollouts(tree_model("llama"), torch.tensor([[30]]), TRIE, num_samples=wanted)
