"""Free text, items between a begin token and the catalog's end token, free text again: under ``generate``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BEGIN, END, TURN_END, VOCAB_SIZE, ScriptedModel, markov_logits, tiny_model

from gentrie import TokenTrie
from gentrie.generation import TrieLogitsProcessor

ROWS = [[20, 21, 22], [20, 21], [20, 23], [24], [25, 26, 27, 28], [24]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = torch.tensor([[30, 31, 32], [33, 34, 35], [36, 37, 38], [39, 40, 41]])
LENGTH = 60


def talkative(seed: int) -> ScriptedModel:
    """A model that likes to begin items and does not end its turn."""
    return ScriptedModel(
        markov_logits(seed, **{f"t{BEGIN}": 7.0, f"t{TURN_END}": -20.0, f"t{END}": -3.0}), VOCAB_SIZE, TURN_END
    )


def written(model: Any, processor: TrieLogitsProcessor | None, **options: Any) -> list[list[int]]:
    output = model.generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        logits_processor=[processor] if processor else [],
        max_new_tokens=LENGTH,
        **options,
    )
    return output[:, PROMPTS.shape[1] :].tolist()


def split_items(tokens: list[int]) -> list[list[int]]:
    """What stands behind each begin token, up to its end token or the text's end."""
    found: list[list[int]] = []
    inside = False
    for token in tokens:
        if token == BEGIN:
            found.append([])
            inside = True
        elif inside:
            found[-1].append(token)
            inside = token != END
    return found


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_beams": 3}], ids=["greedy", "sampled", "beams"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_but_items_between_begin_and_end(options: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    processor = TrieLogitsProcessor(TRIE, begin_token_id=BEGIN, eos_token_id=TURN_END)
    count = 0
    for tokens in written(talkative(seed), processor, **options):
        items = split_items(tokens)
        count += len(items)
        for item in items[:-1]:
            assert TRIE.resolve(item).size, tokens
        if items:  # the last may be cut off by the length
            assert TRIE.walk(items[-1]) >= 0, tokens
    assert count > 4


@pytest.mark.parametrize(("unique", "times"), [(True, 1), ("item", 2)])
@pytest.mark.parametrize("options", [{}, {"do_sample": True}], ids=["greedy", "sampled"])
def test_unique_gives_each_once_and_then_closes_the_begin_token(
    unique: Any, times: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    processor = TrieLogitsProcessor(TRIE, begin_token_id=BEGIN, eos_token_id=TURN_END, unique=unique)
    exhausted = 0
    for tokens in written(talkative(1), processor, **options):
        items = [tuple(item) for item in split_items(tokens)]
        assert max((items.count(item) for item in set(items)), default=0) <= times
        assert items.count((24, END)) <= times
        assert all(items.count(item) <= 1 for item in set(items) - {(24, END)})
        exhausted += len(items) == (5 if unique is True else 6)
    assert exhausted


def test_a_filter_for_each_row() -> None:
    allowed = [[0, 1], [3], np.array([False, False, False, False, True, False]), None]
    processor = TrieLogitsProcessor(TRIE, begin_token_id=BEGIN, eos_token_id=TURN_END, item_filter=allowed)
    for tokens, expected in zip(written(talkative(2), processor), [{0, 1}, {3, 5}, {4}, set(range(6))], strict=True):
        items = split_items(tokens)
        assert items
        assert {id_ for item in items[:-1] for id_ in TRIE.resolve(item).tolist()} <= expected


def test_a_row_whose_filter_leaves_nothing_writes_free_text_only() -> None:
    processor = TrieLogitsProcessor(
        TRIE, begin_token_id=BEGIN, eos_token_id=TURN_END, item_filter=[[99], [0], [1], [2]]
    )
    rows = written(talkative(2), processor)
    assert BEGIN not in rows[0]
    assert all(BEGIN in row for row in rows[1:])


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_free_text_is_bit_identical_to_unconstrained_generation(options: dict[str, Any]) -> None:
    never = ScriptedModel(markov_logits(3, **{f"t{BEGIN}": -1e4}), VOCAB_SIZE, TURN_END)
    processor = TrieLogitsProcessor(TRIE, begin_token_id=BEGIN, eos_token_id=TURN_END, unique=True)
    for model in (never, tiny_model("llama", 4)):
        settings = {"max_new_tokens": 20, "return_dict_in_generate": True, "output_scores": True, **options}
        if model is not never:
            settings["bad_words_ids"] = [[BEGIN]]
        inputs = {"input_ids": PROMPTS, "attention_mask": torch.ones_like(PROMPTS)}
        free = model.generate(**inputs, **settings)
        held = model.generate(**inputs, **settings, logits_processor=[processor])
        assert torch.equal(free.sequences, held.sequences)
        assert all(torch.equal(a, b) for a, b in zip(free.scores, held.scores, strict=True))


def test_several_turns_start_afresh() -> None:
    """The same item may come again after an end of turn, and an unfinished item does not outlive its turn."""
    processor = TrieLogitsProcessor(TRIE, begin_token_id=BEGIN, eos_token_id=TURN_END, unique=True)
    history = torch.tensor(
        [[BEGIN, 24, END, 30, BEGIN], [BEGIN, 24, END, TURN_END, BEGIN], [BEGIN, 20, TURN_END, 30, 31]]
    )
    masked = processor(history, torch.zeros(3, VOCAB_SIZE))
    allowed = [row.isfinite().nonzero().flatten().tolist() for row in masked]
    assert allowed == [[20, 25], [20, 24, 25], list(range(VOCAB_SIZE))]
