"""``ItemCollator`` and ``RecommendationCallback`` by themselves."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level_bpe
from tiny_models import BEGIN, END, PAD, VOCAB_SIZE, tiny_model

from gentrie import TokenTrie, presets
from gentrie.evaluation import catalog_logprobs, hit_rate
from gentrie.generation import beam_search
from gentrie.training import ItemCollator, RecommendationCallback
from gentrie.training.recommendation_callback import beam_recommend

ITEMS = [[10, 11, 12], [10, 11, 13], [10, 14], [15], [16, 17, 18, 19]]
TRIE = TokenTrie.from_sequences(ITEMS, vocab_size=VOCAB_SIZE, end_token_id=END)
ids = st.lists(st.integers(4, VOCAB_SIZE - 1), max_size=6)


@given(
    st.lists(st.tuples(ids, st.sampled_from(ITEMS)), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
    st.sampled_from([None, 4]),
    st.sampled_from([None, 7]),
)
@settings(max_examples=50)
def test_rows_say_what_was_given(rows: Any, side: Any, multiple: int | None, max_length: int | None) -> None:
    features = [{"prompt_ids": prompt, "response_ids": [*item, END], "user": 3} for prompt, item in rows]
    collator = ItemCollator(TRIE, PAD, padding_side=side, pad_to_multiple_of=multiple, max_length=max_length)
    if max_length is not None and any(prompt and len(item) + 1 >= max_length for prompt, item in rows):
        with pytest.raises(ValueError, match="leave no room for the prompt"):
            collator(features)
        return
    batch = collator(features)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "states"}
    width = batch["input_ids"].shape[1]
    assert width % (multiple or 1) == 0
    for row, (prompt, item) in enumerate(rows):
        kept = prompt if max_length is None else prompt[max(0, len(prompt) + len(item) + 1 - max_length) :]
        whole = [*kept, *item, END]
        used = batch["attention_mask"][row].bool()
        place = slice(width - len(whole), width) if side == "left" else slice(0, len(whole))
        assert used.tolist() == [place.start <= i < place.stop for i in range(width)]
        assert batch["input_ids"][row, used].tolist() == whole
        assert batch["labels"][row, used].tolist() == [-100] * len(kept) + [*item, END]
        states = [TRIE.walk(item[:i]) for i in range(len(item) + 1)]
        assert batch["states"][row, used].tolist() == [-2] * len(kept) + states
        assert batch["states"][row, ~used].eq(-2).all()


def test_items_inside_a_response() -> None:
    response = [30, BEGIN, *ITEMS[2], END, 31, BEGIN, *ITEMS[3], END]
    batch = ItemCollator(TRIE, PAD, begin_token_id=BEGIN)([{"prompt_ids": [BEGIN, 10], "response_ids": response}])
    first, second = ([TRIE.walk(item[:i]) for i in range(len(item) + 1)] for item in (ITEMS[2], ITEMS[3]))
    assert batch["states"].tolist() == [[-2, -2, -2, -2, *first, -2, -2, *second]]


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"prompt_ids": [1]}, r"features\[0\] lacks response_ids; it holds \['prompt_ids'\]"),
        ({"prompt_ids": [1], "response_ids": []}, r"features\[0\]\['response_ids'\] is empty"),
        ({"prompt_ids": [-4], "response_ids": [15]}, r"features\[0\]\['prompt_ids'\]\[0\]=-4 is negative"),
        (
            {"prompt_ids": [30], "response_ids": [10, 15]},
            r"features\[0\]: token 15 at position 1 of response_ids leaves the catalog",
        ),
        (
            {"prompt_ids": [30], "response_ids": [10, 14]},
            rf"features\[0\]: response_ids end in token 14 inside an item, which goes on with its end token {END}",
        ),
        (
            {"prompt_ids": [30], "response_ids": [10, 11]},
            r"features\[0\]: response_ids end in token 11 inside an item, which goes on with one of \[12, 13\]",
        ),
    ],
)
def test_bad_features(feature: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ItemCollator(TRIE, PAD)([feature])


def test_text_that_stops_inside_an_item() -> None:
    collator = ItemCollator(TRIE, PAD, begin_token_id=BEGIN)
    whole = {"prompt_ids": [30], "response_ids": [30, BEGIN, 15, END, 31]}
    collator([whole])
    for response in ([30, BEGIN], [BEGIN, 15, END, BEGIN, 15]):
        with pytest.raises(ValueError, match=r"features\[1\]: response_ids end in token .* inside an item"):
            collator([whole, {"prompt_ids": [30], "response_ids": response}])


def test_prompts_that_end_otherwise_than_the_context_warn_once() -> None:
    tokenizer = byte_level_bpe()
    titles, context = ["red box", "blue tool"], "Response:\n"
    trie = TokenTrie.from_titles(titles, tokenizer, context=context, end_token_id=0)
    right, wrong = tokenizer.encode(f"Tell me. {context}").ids, tokenizer.encode("Tell me. Response: ").ids
    sequences, indptr, _, _ = trie.to_sequences()
    response = sequences[: indptr[1]].tolist()
    features = [{"prompt_ids": prompt, "response_ids": response} for prompt in (right, wrong, wrong)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ItemCollator(trie, 0)(features[:1])
        begin = tokenizer.token_to_id("!")
        ItemCollator(trie, 0, begin_token_id=begin)([{**features[1], "response_ids": [begin, *response]}])
        RecommendationCallback(trie, [right], [0], pad_token_id=0)
    collator = ItemCollator(trie, 0)
    says = r"features\[1\]\['prompt_ids'\] ends in token \d+ \(as 1 others of 3 do\), the catalog's context 'Response:"
    with pytest.warns(UserWarning, match=says):
        collator(features)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collator(features)
    with pytest.warns(UserWarning, match=r"prompts\[1\] ends in token"):
        RecommendationCallback(trie, [right, wrong], [0, 1], pad_token_id=0)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="padding_side"):
        ItemCollator(TRIE, PAD, padding_side="both")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a TokenTrie"):
        ItemCollator(None, PAD)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="features is empty"):
        ItemCollator(TRIE, PAD)([])
    with pytest.raises(ValueError, match="prompts are of 1 users, targets of 2"):
        RecommendationCallback(TRIE, [[1]], [0, 1], pad_token_id=PAD)


@pytest.mark.parametrize("end", [END, None])
def test_recommendations_are_the_best_items(end: int | None) -> None:
    """All of a small catalog, in the order of their whole probabilities, prompts of different lengths."""
    items = ITEMS if end is not None else [[10, 11, 12], [10, 14, 12], [15, 16, 17]]
    trie = TokenTrie.from_sequences(items, vocab_size=VOCAB_SIZE, end_token_id=end)
    model = tiny_model("llama").eval()
    prompts = [[30, 31, 32], [33], [30, 35]]
    expected = []
    for prompt in prompts:
        scores = []
        for item in items:
            tokens = item if end is None else [*item, end]
            logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
            states = [trie.walk(tokens[:i]) for i in range(len(tokens))]
            valid = [torch.from_numpy(trie.next_tokens(state)).long() for state in states]
            scores.append(
                sum(
                    (row[token] - row[v].logsumexp(0)).item()
                    for row, token, v in zip(logits, tokens, valid, strict=True)
                )
            )
        expected.append(np.argsort(-np.array(scores), kind="stable").tolist())
    found = beam_recommend(model, prompts, len(items) + 2, trie=trie, pad_token_id=PAD, batch_size=2)
    assert found[:, : len(items)].tolist() == expected
    assert (found[:, len(items) :] == -1).all()
    targets = [row[0] for row in expected]
    assert hit_rate(found, targets, 1) == 1.0


def test_closed_items_are_never_recommended() -> None:
    """With a filter for all users and with one a user, which goes with its prompt through the sorting by length."""
    items = [[10, 11, 12], [10, 11, 13], [10, 14], [15], [16, 17, 18, 19], [16, 17, 18, 20]]
    trie = TokenTrie.from_sequences(items, vocab_size=VOCAB_SIZE, end_token_id=END)
    model = tiny_model("llama").eval()
    prompts = [[30, 31, 32, 33], [33], [30, 35], [36, 37, 38]]
    own = [[0, 3, 4], None, np.array([i != 5 for i in range(6)]), {1, 2}]
    every = set(range(6))
    for item_filter, allowed in ((own, [{0, 3, 4}, every, every - {5}, {1, 2}]), ([0, 2, 5], [{0, 2, 5}] * 4)):
        found = beam_recommend(model, prompts, 6, trie=trie, pad_token_id=PAD, batch_size=2, item_filter=item_filter)
        for row, (prompt, few) in enumerate(zip(prompts, allowed, strict=True)):
            result = beam_search(
                model, torch.tensor([prompt]), trie, beam_width=6, length_penalty=0.0, item_filter=sorted(few)
            )
            expected = [int(same.min()) for same in result.item_ids[0]]
            assert set(expected) == few
            assert found[row].tolist() == expected + [-1] * (6 - len(few))
        callback = RecommendationCallback(
            trie, prompts, [0, 0, 0, 0], pad_token_id=PAD, ks=(6,), item_filter=item_filter
        )
        assert callback.recommend(model).tolist() == found.tolist()
    with pytest.raises(ValueError, match="item_filter has 3 entries for 4 prompts"):
        beam_recommend(model, prompts, 6, trie=trie, pad_token_id=PAD, item_filter=[[1], [2], [3]])
    with pytest.raises(ValueError, match="item_filter is given to a recommend of one's own"):
        RecommendationCallback(trie, prompts, [0] * 4, pad_token_id=PAD, recommend=lambda *_: found, item_filter=[1])


@pytest.mark.parametrize("preset", [presets.msl, presets.bear, presets.d3], ids=["msl", "bear", "d3"])
def test_recommendations_in_the_order_of_a_preset(preset: presets.Preset) -> None:
    """Its scope and length penalty, or others that are given; all of a catalog that the beams hold."""
    items = [[10, 11, 12], [10, 11, 13], [10, 14], [15], [16, 17, 18, 19], [16, 17, 18, 20]]
    trie = TokenTrie.from_sequences(items, vocab_size=VOCAB_SIZE, end_token_id=END)
    model = tiny_model("llama").eval()
    prompts = [[30, 31, 32], [33, 34, 35], [36, 37, 38]]
    every = catalog_logprobs(model, torch.tensor(prompts), trie, scope=preset.scope)
    lengths = np.array([len(item) + 1 for item in items])
    expected = np.argsort(-every / lengths**preset.length_penalty, axis=1, kind="stable").tolist()
    common = {"trie": trie, "pad_token_id": PAD}
    assert beam_recommend(model, prompts, 6, preset=preset, **common).tolist() == expected
    plain = beam_recommend(model, prompts, 6, **common).tolist()
    assert plain != expected
    named = {"scope": preset.scope, "length_penalty": preset.length_penalty}
    for other in (None, presets.bear, presets.d3):
        assert beam_recommend(model, prompts, 6, preset=other, **named, **common).tolist() == expected
    callback = RecommendationCallback(trie, prompts, [0] * 3, pad_token_id=PAD, ks=(6,), preset=preset)
    assert callback.recommend(model).tolist() == expected
    if preset.length_penalty == 0:
        assert beam_recommend(model, prompts, 6, preset=preset, search="best_first", **common).tolist() == expected


def test_searches_that_do_not_fit() -> None:
    common = {"pad_token_id": PAD, "ks": (3,)}
    with pytest.raises(TypeError, match="preset is a str, expected one of"):
        RecommendationCallback(TRIE, [[1]], [0], preset="bear", **common)
    with pytest.raises(ValueError, match="search='greedy'"):
        RecommendationCallback(TRIE, [[1]], [0], search="greedy", **common)
    with pytest.raises(ValueError, match=r"search=.best_first. with length_penalty=1\.0"):
        RecommendationCallback(TRIE, [[1]], [0], search="best_first", preset=presets.bear, **common)
    with pytest.raises(ValueError, match="scope='all'"):
        RecommendationCallback(TRIE, [[1]], [0], scope="all", **common)
    with pytest.raises(ValueError, match="preset is given to a recommend of one's own"):
        RecommendationCallback(TRIE, [[1]], [0], preset=presets.bear, recommend=lambda *_: np.zeros((1, 3)), **common)
