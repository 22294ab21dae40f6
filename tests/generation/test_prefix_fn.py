"""The old hook gives ``generate`` the same tokens and scores as the processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BEGIN, END, PAD, TURN_END, VOCAB_SIZE, ScriptedModel, markov_logits

import gentrie
from gentrie.generation import TrieLogitsProcessor

ROWS = [[5, 6, 7], [5, 6], [8], [9, 9, 9, 9], [5, 6, 8]]
TRIE = gentrie.TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = torch.tensor([[PAD, 30, 31], [32, 33, 34]])


@pytest.mark.parametrize(
    "rules",
    [
        {"prompt_length": 3},
        {"prompt_length": [3, 3], "item_filter": [[0, 2], None]},
        {"begin_token_id": BEGIN, "eos_token_id": TURN_END, "unique": True},
    ],
    ids=["whole", "a-prompt-each", "triggered"],
)
@pytest.mark.parametrize(
    "search",
    [{}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 9}, {"num_beams": 9, "do_sample": True}],
    ids=["greedy", "sampled", "beams", "spare-beams", "sampled-beams"],
)
def test_equals_the_processor(rules: dict[str, Any], search: dict[str, Any]) -> None:
    eos = rules.get("eos_token_id", END)
    model = ScriptedModel(markov_logits(1, t2=4.0), VOCAB_SIZE, eos_token_id=eos)
    results = []
    for hook in (
        {"logits_processor": [TrieLogitsProcessor(TRIE, **rules)]},
        {"prefix_allowed_tokens_fn": gentrie.prefix_allowed_tokens_fn(TRIE, **rules)},
    ):
        torch.manual_seed(0)
        results.append(
            model.generate(
                PROMPTS, max_new_tokens=16, return_dict_in_generate=True, output_scores=True, **hook, **search
            )
        )
    ours, theirs = results
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.scores, theirs.scores, strict=True))


def test_free_text_lists_every_token_of_a_wider_model() -> None:
    rules = {"begin_token_id": BEGIN, "eos_token_id": TURN_END}
    history = torch.tensor([30, VOCAB_SIZE + 3])
    assert gentrie.prefix_allowed_tokens_fn(TRIE, **rules)(0, history) == list(range(VOCAB_SIZE))
    wider = gentrie.prefix_allowed_tokens_fn(TRIE, **rules, vocab_size=VOCAB_SIZE + 5)
    assert wider(0, history) == list(range(VOCAB_SIZE + 5))
    with pytest.raises(ValueError, match="vocab_size=3 is less"):
        gentrie.prefix_allowed_tokens_fn(TRIE, **rules, vocab_size=3)


@pytest.mark.parametrize("history", [torch.tensor([1.9]), torch.tensor([[1], [2]]), [1]], ids=["float", "2d", "list"])
def test_what_is_no_history_is_refused(history: Any) -> None:
    with pytest.raises(TypeError, match=r"input_ids (is|has)"):
        gentrie.prefix_allowed_tokens_fn(TRIE, prompt_length=0)(0, history)
