"""What ``generate`` returns, read as items: beams that only fill up, rows that were cut, items that share tokens."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import END, PAD, VOCAB_SIZE, tiny_model

from gentrie import ItemFilter, TokenTrie
from gentrie.generation import (
    TrieLogitsProcessor,
    beam_search,
    merge_names,
    read_items,
    read_text_items,
    recommend,
    trie_beam_search,
)

ROWS = [[20, 21, 22], [20, 21, 30, 31], [20, 23], [24], [25, 26], [24]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
IDS = torch.tensor([[30, 31, 32, 33], [PAD, PAD, PAD, 34]])
MASK = (IDS != PAD).long()


def generate(kind: str, **arguments: Any) -> Any:
    model: Any = tiny_model(kind)
    settings = {"num_beams": 7, "num_return_sequences": 7, "renormalize_logits": True, "do_sample": False}
    settings |= {"max_new_tokens": TRIE.max_depth, "return_dict_in_generate": True, "output_scores": False}
    return model.generate(IDS, attention_mask=MASK, **{**settings, **arguments})


def as_lists(item_ids: list[list[Any]]) -> list[list[list[int]]]:
    return [[items.tolist() for items in own] for own in item_ids]


@pytest.mark.parametrize("item_filter", [None, [1, 2, 3], [[0, 5], [2]]])
@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("way", ["processor", "custom_generate"])
def test_fewer_items_than_beams(kind: str, way: str, item_filter: Any) -> None:
    start = 1 if kind == "t5" else IDS.shape[1]
    if way == "processor":
        chosen = TrieLogitsProcessor(TRIE, prompt_length=start, item_filter=item_filter)
        own: dict[str, Any] = {"logits_processor": [chosen], "output_scores": True}
    else:
        own = {"custom_generate": trie_beam_search, "trie": TRIE, "item_filter": item_filter}
    output = generate(kind, **own)
    expected = beam_search(tiny_model(kind), IDS, TRIE, attention_mask=MASK, beam_width=7, item_filter=item_filter)
    read = functools.partial(read_items, TRIE, prompt_length=start, num_return_sequences=7, item_filter=item_filter)
    found = read(output)
    assert found.sequences == expected.sequences
    assert as_lists(found.item_ids) == as_lists(expected.item_ids)
    assert found.num_found.tolist() == expected.num_found.tolist()
    assert found.sequences_scores is not None
    for scores, theirs in zip(found.sequences_scores, expected.sequences_scores, strict=True):
        np.testing.assert_allclose(scores, theirs, rtol=1e-4, atol=1e-4)
    bare = read(output.sequences)
    assert (bare.sequences, bare.sequences_scores) == (found.sequences, None)


def test_prompts_without_any_item() -> None:
    for wanted in (1, 3):
        closed = {"custom_generate": trie_beam_search, "trie": TRIE, "item_filter": []}
        output = generate("llama", num_return_sequences=wanted, **closed)
        assert output.sequences.tolist() == IDS.repeat_interleave(wanted, dim=0).tolist()
        assert torch.isneginf(output.sequences_scores).all()
        found = read_items(TRIE, output, prompt_length=4, num_return_sequences=wanted)
        assert (found.sequences, found.item_ids, found.num_found.tolist()) == ([[], []], [[], []], [0, 0])


def test_rows_of_any_kind() -> None:
    rows = [
        [9, 20, 23, END, END, END],  # padded with the end token
        [9, 20, 21, 30, PAD, PAD],  # cut
        [9, 20, 23, END, PAD, PAD],  # again
        [9, 40, 23, END, 24, END],  # not of the catalog
        [9, 24, END, 25, 26, END],  # something follows
        [9, PAD, PAD, PAD, PAD, PAD],
    ]
    found = read_items(TRIE, rows, prompt_length=1, num_return_sequences=3)
    assert as_lists(found.item_ids) == [[[2]], [[3, 5]]]
    assert found.sequences == [[[20, 23, END]], [[24, END]]]
    scored = SimpleNamespace(sequences=torch.tensor(rows), sequences_scores=[-1.0, -2.0, -3.0, -4.0, -np.inf, -6.0])
    found = read_items(TRIE, scored, prompt_length=1, num_return_sequences=6, item_filter=[2, 5])
    assert as_lists(found.item_ids) == [[[2]]]
    assert found.sequences_scores is not None
    assert found.sequences_scores[0].tolist() == [-1.0]
    without_end = TokenTrie.from_sequences([[4, 5], [6]], vocab_size=8)
    found = read_items(without_end, [[4, 5], [6, 0], [4, 0]], prompt_length=0)
    assert found.sequences == [[[4, 5]], [[6]], []]


def test_a_search_for_recommend() -> None:
    def search(ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        rows = torch.cat([ids, torch.tensor([[24, END]] * len(ids))], dim=1)
        return read_items(TRIE, rows, prompt_length=ids.shape[1])

    (one,) = recommend([[5, 6]], search, progress=False)
    assert (one.item_ids, one.scores, one.sequences) == ([[3, 5]], [], [[24, END]])


@pytest.mark.parametrize(
    ("output", "arguments", "message"),
    [
        ([[4, 5]] * 3, {"num_return_sequences": 2}, r"output has shape \(3, 2\), expected \[prompts \* 2, length\]"),
        ([4, 5], {}, r"output has shape \(2,\)"),
        ([[4, 5]], {"prompt_length": 3}, r"prompt_length=3 is outside \[0, 2\]"),
        ([[4, 5]], {"num_return_sequences": 0}, "num_return_sequences=0"),
        ([[4, 5]], {"item_filter": [[0], [1]]}, "item_filter has 2 entries for 1 prompts"),
        (SimpleNamespace(sequences=[[4, 5]], sequences_scores=[1.0, 2.0]), {}, "sequences_scores has shape"),
    ],
)
def test_what_does_not_fit_is_refused(output: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_items(TRIE, output, **{"prompt_length": 0, **arguments})


def test_what_is_no_output_is_refused() -> None:
    with pytest.raises(TypeError, match="output has dtype"):
        read_items(TRIE, object(), prompt_length=0)


@pytest.mark.parametrize("ids", [[7, 5, 7, 8, 5, 9], ["a", "bb", "a", "ccc", "bb", "dddd"]])
def test_names_of_one_item_are_added_up(ids: list[Any]) -> None:
    trie = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END, item_ids=ids)
    found = beam_search(tiny_model("llama"), IDS, trie, attention_mask=MASK, beam_width=7, length_penalty=1.0)
    item_ids, log_probs = merge_names(found)
    for prompt in range(2):
        probability = dict.fromkeys(ids, 0.0)
        for tokens, scores in zip(found.sequences[prompt], found.token_scores[prompt], strict=True):
            for row, item in enumerate(ids):
                if [*ROWS[row], END] == tokens:
                    probability[item] += float(np.exp(scores).prod())
        assert item_ids[prompt].tolist() == sorted(probability, key=lambda item: -probability[item])
        expected = np.log([probability[item] for item in item_ids[prompt].tolist()])
        np.testing.assert_allclose(log_probs[prompt], expected, rtol=1e-9)


def test_prompts_without_items_have_none_to_add_up() -> None:
    found = beam_search(tiny_model("llama"), IDS, TRIE, attention_mask=MASK, item_filter=[])
    assert [own.tolist() for part in merge_names(found) for own in part] == [[]] * 4


def test_items_of_a_conversation() -> None:
    soi = 40
    text = [33, soi, 24, END, 31, soi, 20, 23, END, 2, soi, 20, 23, END, soi, 20, 31, soi, soi, 20]
    items = read_text_items(TRIE, torch.tensor(text), begin_token_id=soi)
    assert [own.tolist() for own in items] == [[3, 5], [2], [2]]
    assert read_text_items(TRIE, [33, 20, 23, END], begin_token_id=soi) == []
    left = ItemFilter.all_items(TRIE).deny(np.concatenate(items))
    assert sorted(left.items_below(TRIE.root).tolist()) == [0, 1, 4]
    with pytest.raises(ValueError, match=r"token_ids has shape \(2, 4\)"):
        read_text_items(TRIE, IDS, begin_token_id=soi)
