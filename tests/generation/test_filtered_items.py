"""Of items that share a title only those come back that the filter allows, whichever search found it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BEGIN, END, PAD, TURN_END, VOCAB_SIZE, tiny_model
from transformers import LogitsProcessorList, SequenceBiasLogitsProcessor

from gentrie import TokenTrie
from gentrie.generation import beam_rollouts, beam_search, best_first_search, generate_with_items, sample_items

ROWS = [[20, 21], [20, 21], [20, 22], [23], [23]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
ALLOWED = [[0, 2, 4], [1, 3, 4]]
PROMPTS = torch.tensor([[30, 31], [32, 33]])


def search(name: str) -> Any:
    model: Any = tiny_model("llama")
    if name == "beam_search":
        return beam_search(model, PROMPTS, TRIE, beam_width=3, item_filter=ALLOWED)
    if name == "best_first_search":
        return best_first_search(model, PROMPTS, TRIE, num_results=3, item_filter=ALLOWED)
    if name == "sample_items":
        return sample_items(model, PROMPTS, TRIE, num_samples=3, item_filter=ALLOWED)
    return beam_rollouts(model, PROMPTS, TRIE, num_samples=3, item_filter=ALLOWED)


@pytest.mark.parametrize("name", ["beam_search", "best_first_search", "sample_items", "beam_rollouts"])
def test_searches(name: str) -> None:
    for found, allowed in zip(search(name).item_ids, ALLOWED, strict=True):
        assert sorted(int(item) for same in found for item in same) == allowed


def test_text_with_items() -> None:
    text = generate_with_items(
        tiny_model("llama"),
        PROMPTS,
        trie=TRIE,
        begin_token_id=BEGIN,
        logits_processor=LogitsProcessorList([SequenceBiasLogitsProcessor({(BEGIN,): 9.0})]),
        item_filter=ALLOWED,
        max_new_tokens=40,
        eos_token_id=TURN_END,
        pad_token_id=PAD,
        do_sample=False,
        return_dict_in_generate=True,
    )
    for found, allowed in zip(text.items, ALLOWED, strict=True):
        given = {int(item) for same in found for item in same}
        assert given
        assert given <= set(allowed)
