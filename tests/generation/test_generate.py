"""Whole responses: what ``generate`` returns over random models, catalogs, searches and paddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from catalog_strategies import catalogs, words
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Oracle, Rules
from tiny_models import END, FIRST_TOKEN, PAD, TURN_END, VOCAB_SIZE, ScriptedModel, markov_logits, tiny_model
from transformers import PreTrainedModel

import gentrie
from gentrie.generation import TrieLogitsProcessor

KINDS = ["llama", "gpt2", "t5"]

# Beam search gives beams that it could not fill a score near -1e9, before it divides by the length penalty.
FILLER = -1e8


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return {"input_ids": ids, "attention_mask": mask}


def response_start(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> int:
    """Where the response begins in what the processor sees and ``generate`` returns."""
    return 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]


def run(model: PreTrainedModel, inputs: dict[str, torch.Tensor], **options: Any) -> Any:
    torch.manual_seed(0)
    return model.generate(**inputs, return_dict_in_generate=True, output_scores=True, **options)


def up_to_end(row: torch.Tensor, start: int, end: int = END) -> tuple[int, ...] | None:
    """The response up to its first end token, or None where it has none."""
    response = row[start:].tolist()
    return tuple(response[: response.index(end) + 1]) if end in response else None


def unscaled_scores(output: Any, start: int, length_penalty: float) -> list[float]:
    """Each row's score before it was divided by its length to the power of the penalty."""
    lengths = [len(up_to_end(row, start) or row[start:]) for row in output.sequences]
    return [
        score * length**length_penalty for score, length in zip(output.sequences_scores.tolist(), lengths, strict=True)
    ]


prompt_batches = st.lists(words(), min_size=1, max_size=3)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 3),
    sequences=catalogs(),
    prompts=prompt_batches,
    sampling=st.sampled_from([{}, {"top_k": 0}, {"temperature": 3.0, "top_p": 0.9}, {"top_k": 2}]),
    renormalize=st.booleans(),
)
@settings(max_examples=60)
def test_greedy_and_sampled_responses_are_catalog_items(
    kind: str,
    seed: int,
    sequences: list[list[int]],
    prompts: list[list[int]],
    sampling: dict[str, Any],
    renormalize: bool,
) -> None:
    model, inputs = tiny_model(kind, seed), left_padded(prompts)
    trie = gentrie.TokenTrie.from_sequences(sequences, vocab_size=VOCAB_SIZE, end_token_id=END)
    start = response_start(model, inputs)
    output = run(
        model,
        inputs,
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=start)],
        max_new_tokens=trie.max_depth,
        do_sample=bool(sampling),
        renormalize_logits=renormalize,
        **sampling,
    )
    catalog = Oracle(sequences, END).items
    for row in output.sequences:
        title = up_to_end(row, start)
        assert title in catalog
        assert trie.resolve(title).tolist() == sorted(catalog[title])
    assert not any(scores.isnan().any() for scores in output.scores)


@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 3),
    sequences=catalogs(),
    prompts=prompt_batches,
    num_beams=st.integers(2, 20),
    data=st.data(),
    renormalize=st.booleans(),
    early_stopping=st.sampled_from([False, True, "never"]),
    length_penalty=st.sampled_from([0.0, 1.0, 2.0]),
    do_sample=st.booleans(),
)
@settings(max_examples=80)
def test_beams_that_ended_are_catalog_items(
    kind: str,
    seed: int,
    sequences: list[list[int]],
    prompts: list[list[int]],
    num_beams: int,
    data: st.DataObject,
    renormalize: bool,
    early_stopping: bool | str,
    length_penalty: float,
    do_sample: bool,
) -> None:
    model, inputs = tiny_model(kind, seed), left_padded(prompts)
    trie = gentrie.TokenTrie.from_sequences(sequences, vocab_size=VOCAB_SIZE, end_token_id=END)
    start = response_start(model, inputs)
    returned = data.draw(st.integers(1, num_beams), label="num_return_sequences")
    output = run(
        model,
        inputs,
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=start)],
        max_new_tokens=trie.max_depth,
        num_beams=num_beams,
        num_return_sequences=returned,
        renormalize_logits=renormalize,
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        do_sample=do_sample,
    )
    catalog = Oracle(sequences, END).items
    assert not any(scores.isnan().any() for scores in output.scores)
    assert not output.sequences_scores.isnan().any()
    assert len(output.sequences) == len(prompts) * returned
    for row, score in zip(output.sequences, output.sequences_scores.tolist(), strict=True):
        if score > FILLER:
            assert up_to_end(row, start) in catalog

    real = np.array(unscaled_scores(output, start, length_penalty)).reshape(len(prompts), returned) > FILLER
    titles = [up_to_end(row, start) for row in output.sequences]
    for prompt in range(len(prompts)):
        found = [titles[prompt * returned + i] for i in np.flatnonzero(real[prompt])]
        assert found
        assert len(set(found)) == len(found)


def log_probs_after(model: PreTrainedModel, prompt: list[int], response: list[int]) -> torch.Tensor:
    """log p of every next token, by one forward pass without cache or padding."""
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            logits = model(torch.tensor([prompt]), decoder_input_ids=torch.tensor([[PAD, *response]])).logits
        else:
            logits = model(torch.tensor([prompt + response])).logits
    return logits[0, -1].double().log_softmax(-1)


def score_of(
    model: PreTrainedModel, prompt: list[int], title: tuple[int, ...], rules: Rules, renormalize: bool
) -> float:
    """Sum of the title's log-probabilities, over the vocabulary or over what may follow."""
    total = 0.0
    for at, token in enumerate(title):
        log_probs = log_probs_after(model, prompt, list(title[:at]))
        if renormalize:
            allowed = sorted(rules.allowed(title[:at], VOCAB_SIZE))
            log_probs = log_probs - log_probs[allowed].logsumexp(-1)
        total += float(log_probs[token])
    return total


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_enough_beams_rank_the_whole_catalog(kind: str, renormalize: bool) -> None:
    model, random = tiny_model(kind, 1), np.random.default_rng(7)
    for _ in range(4):
        rows = [random.integers(FIRST_TOKEN, FIRST_TOKEN + 3, random.integers(1, 6)).tolist() for _ in range(10)]
        prompts = [random.integers(FIRST_TOKEN, VOCAB_SIZE, n).tolist() for n in (2, 5)]
        trie = gentrie.TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
        inputs = left_padded(prompts)
        start = response_start(model, inputs)
        count = trie.num_sequences
        output = run(
            model,
            inputs,
            logits_processor=[TrieLogitsProcessor(trie, prompt_length=start)],
            max_new_tokens=trie.max_depth,
            num_beams=count + int(random.integers(0, 4)),
            num_return_sequences=count,
            length_penalty=0.0,
            renormalize_logits=renormalize,
        )
        rules = Rules(Oracle(rows, END))
        for i, prompt in enumerate(prompts):
            expected = {title: score_of(model, prompt, title, rules, renormalize) for title in rules.oracle.items}
            found = [up_to_end(row, start) for row in output.sequences[i * count : (i + 1) * count]]
            scores = output.sequences_scores[i * count : (i + 1) * count].tolist()
            assert set(found) == set(expected)
            assert scores == pytest.approx([expected[title] for title in found], abs=1e-3)
            assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_takes_the_likeliest_allowed_token(kind: str) -> None:
    model, random = tiny_model(kind, 2), np.random.default_rng(11)
    rows = [random.integers(FIRST_TOKEN, FIRST_TOKEN + 4, random.integers(2, 7)).tolist() for _ in range(30)]
    rules = Rules(Oracle(rows, END))
    trie = gentrie.TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    for _ in range(8):
        prompts = [random.integers(FIRST_TOKEN, VOCAB_SIZE, n).tolist() for n in (1, 4, 6)]
        inputs = left_padded(prompts)
        start = response_start(model, inputs)
        processor = TrieLogitsProcessor(trie, prompt_length=start)
        output = run(model, inputs, logits_processor=[processor], max_new_tokens=trie.max_depth)
        for prompt, row in zip(prompts, output.sequences, strict=True):
            expected: list[int] = []
            while END not in expected:
                allowed = sorted(rules.allowed(expected, VOCAB_SIZE))
                log_probs = log_probs_after(model, prompt, expected)
                expected.append(allowed[int(log_probs[allowed].argmax())])
            assert up_to_end(row, start) == tuple(expected)


@given(
    kind=st.sampled_from(KINDS),
    sequences=catalogs(),
    prompts=prompt_batches,
    num_beams=st.sampled_from([1, 2, 3, 8, 15]),
    do_sample=st.booleans(),
    renormalize=st.booleans(),
)
@settings(max_examples=50)
def test_equals_the_prefix_processor_of_transformers_over_a_set_of_tuples(
    kind: str,
    sequences: list[list[int]],
    prompts: list[list[int]],
    num_beams: int,
    do_sample: bool,
    renormalize: bool,
) -> None:
    model, inputs = tiny_model(kind, 3), left_padded(prompts)
    trie = gentrie.TokenTrie.from_sequences(sequences, vocab_size=VOCAB_SIZE, end_token_id=END)
    start = response_start(model, inputs)
    options: dict[str, Any] = {
        "max_new_tokens": trie.max_depth,
        "num_beams": num_beams,
        "num_return_sequences": num_beams,
        "do_sample": do_sample or None,
        "renormalize_logits": renormalize,
    }
    if num_beams == 1:
        del options["num_return_sequences"]
    ours = run(model, inputs, logits_processor=[TrieLogitsProcessor(trie, prompt_length=start)], **options)
    rules = Rules(Oracle(sequences, END))

    def prefix_fn(_: int, ids: torch.Tensor) -> list[int]:
        return sorted(rules.allowed(ids.tolist()[start:], VOCAB_SIZE))

    theirs = run(model, inputs, prefix_allowed_tokens_fn=prefix_fn, **options)
    assert torch.equal(ours.sequences, theirs.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.scores, theirs.scores, strict=True))
    if num_beams > 1:
        assert torch.equal(ours.sequences_scores, theirs.sequences_scores)


def test_one_processor_serves_many_generate_calls() -> None:
    """``after`` finds each response by itself, so prompts of any width, padding and search share a processor."""
    model, random = tiny_model("llama", 4), np.random.default_rng(3)
    rows = [random.integers(FIRST_TOKEN, FIRST_TOKEN + 3, random.integers(1, 6)).tolist() for _ in range(12)]
    trie = gentrie.TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    catalog, marker = Oracle(rows, END).items, [VOCAB_SIZE - 2, VOCAB_SIZE - 1]
    shared = TrieLogitsProcessor(trie, after=marker)
    for call in range(12):
        # The marker in an earlier place of the prompt must not matter.
        prompts = [
            [*random.integers(FIRST_TOKEN, VOCAB_SIZE, n).tolist(), *marker, FIRST_TOKEN, *marker]
            for n in random.integers(1, 9, 3)
        ]
        inputs = left_padded(prompts)
        start = inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"max_new_tokens": trie.max_depth}
        if call % 3:
            options |= {"num_beams": 1 + call, "num_return_sequences": 2}
        ours = run(model, inputs, logits_processor=[shared], **options)
        fresh = run(model, inputs, logits_processor=[TrieLogitsProcessor(trie, prompt_length=start)], **options)
        assert torch.equal(ours.sequences, fresh.sequences)
        assert all(up_to_end(row, start) in catalog for row in ours.sequences[:: 2 if call % 3 else 1])


@pytest.mark.parametrize("num_beams", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_several_eos_tokens(kind: str, num_beams: int) -> None:
    """The catalog's end token ends the item, whatever other tokens end a response of this model."""
    model, inputs = tiny_model(kind, 5), left_padded([[30, 31], [32, 33, 34]])
    rows = [[5, 6, 7], [5, 6], [8], [9, 9, 9, 9]]
    trie = gentrie.TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    start, eos = response_start(model, inputs), [END, TURN_END]
    output = run(
        model,
        inputs,
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=start, eos_token_id=eos)],
        eos_token_id=eos,
        num_beams=num_beams,
        max_new_tokens=trie.max_depth,
    )
    assert all(up_to_end(row, start) in Oracle(rows, END).items for row in output.sequences)
    assert not (output.sequences[:, start:] == TURN_END).any() or num_beams > 1


@pytest.mark.parametrize("num_beams", [1, 3, 12])
@pytest.mark.parametrize("eos", [TURN_END, [TURN_END, END]])
def test_semantic_ids_end_with_the_models_own_token(num_beams: int, eos: int | list[int]) -> None:
    """Sequences of one length without end token; the model says eos behind them."""
    model, inputs = tiny_model("llama", 6), left_padded([[40, 41], [42, 43, 44]])
    codes = np.array([[0, 1, 2], [0, 1, 0], [2, 2, 2], [1, 0, 2], [0, 1, 2]])
    trie = gentrie.TokenTrie.from_semantic_ids(codes, token_ids=(10, 3), vocab_size=VOCAB_SIZE)
    start = inputs["input_ids"].shape[1]
    output = run(
        model,
        inputs,
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=start, eos_token_id=eos)],
        eos_token_id=eos,
        num_beams=num_beams,
        num_return_sequences=min(num_beams, 4),
        max_new_tokens=trie.max_depth + 1,
    )
    scores = output.sequences_scores if num_beams > 1 else torch.zeros(len(output.sequences))
    for row, score in zip(output.sequences, scores.tolist(), strict=True):
        if score > FILLER:
            items = trie.resolve(row[start : start + 3])
            assert items.size == (2 if tuple(row[start : start + 3].tolist()) == (10, 14, 18) else 1)
            assert int(row[start + 3]) in (eos if isinstance(eos, list) else [eos])


def test_without_any_end_token_a_response_stops_at_its_length() -> None:
    model, inputs = tiny_model("gpt2", 7), left_padded([[40, 41], [42, 43, 44]])
    trie = gentrie.TokenTrie.from_sequences([[5, 6, 7], [5, 8, 9], [6, 6, 6]], vocab_size=VOCAB_SIZE)
    start = inputs["input_ids"].shape[1]
    processor = TrieLogitsProcessor(trie, prompt_length=start)
    output = run(model, inputs, logits_processor=[processor], max_new_tokens=trie.max_depth, num_beams=3)
    assert all(trie.resolve(row[start:]).size == 1 for row in output.sequences)
    with pytest.raises(ValueError, match=rf"no token says how to end .*max_new_tokens={trie.max_depth}"):
        run(model, inputs, logits_processor=[processor], max_new_tokens=trie.max_depth + 1)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_prompt_has_its_own_start_and_filter(num_beams: int) -> None:
    """Entries of ``prompt_length`` and ``item_filter`` serve the adjacent beams of a prompt."""
    model, random = tiny_model("llama", 8), np.random.default_rng(5)
    rows = [random.integers(FIRST_TOKEN, FIRST_TOKEN + 3, 4).tolist() for _ in range(40)]
    trie = gentrie.TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    # The second and the fourth prompt already hold the first two tokens of an item.
    prompts = [[30, 31, 32, 33], [40, 41, *rows[7][:2]], [34, 35, 36, 37], [42, 43, *rows[9][:2]]]
    starts = [4, 2, 4, 2]
    even, odd = list(range(0, 40, 2)), np.arange(40) % 2 == 1
    output = run(
        model,
        left_padded(prompts),
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=starts, item_filter=[even, None, odd, odd])],
        max_new_tokens=trie.max_depth,
        num_beams=num_beams,
        num_return_sequences=num_beams,
    )
    for i, row in enumerate(output.sequences):
        prompt = i // num_beams
        if num_beams > 1 and output.sequences_scores[i] < FILLER:
            continue
        title = up_to_end(row, starts[prompt])
        assert title is not None
        items = trie.resolve(title)
        assert items.size > 0
        assert prompt != 0 or any(item % 2 == 0 for item in items)
        assert prompt < 2 or any(item % 2 == 1 for item in items)


def test_a_filter_that_leaves_nothing_ends_the_response_at_once() -> None:
    model, inputs = tiny_model("llama", 9), left_padded([[30, 31]])
    trie = gentrie.TokenTrie.from_sequences([[5, 6], [7]], vocab_size=VOCAB_SIZE, end_token_id=END)
    for nothing in ([], [99], np.zeros(2, dtype=bool)):
        processor = TrieLogitsProcessor(trie, prompt_length=2, item_filter=nothing)
        output = run(model, inputs, logits_processor=[processor], max_new_tokens=3)
        assert output.sequences[0, 2:].tolist() == [END]


def test_output_logits_stay_the_models_own() -> None:
    model, inputs = tiny_model("llama", 10), left_padded([[30, 31], [32]])
    trie = gentrie.TokenTrie.from_sequences([[5, 6, 7], [8, 9]], vocab_size=VOCAB_SIZE, end_token_id=END)
    processor = TrieLogitsProcessor(trie, prompt_length=2)
    output = run(model, inputs, logits_processor=[processor], max_new_tokens=4, output_logits=True)
    for logits, scores in zip(output.logits, output.scores, strict=True):
        assert logits.isfinite().all()
        assert scores.isneginf().any()
        kept = scores.isfinite()
        assert torch.equal(scores[kept], logits[kept])


def test_smoke_on_each_device(device: str) -> None:
    rows = [[5, 6, 7], [5, 6], [8], [9, 9, 9, 9], [5, 6, 8]]
    trie = gentrie.TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    model = ScriptedModel(markov_logits(0), VOCAB_SIZE, eos_token_id=END).to(device)
    inputs = {name: tensor.to(device) for name, tensor in left_padded([[30, 31], [32, 33, 34]]).items()}
    processor = TrieLogitsProcessor(trie, prompt_length=3)
    for options in ({}, {"do_sample": True}, {"num_beams": 3}, {"num_beams": 9, "renormalize_logits": True}):
        output = run(model, inputs, logits_processor=[processor], max_new_tokens=5, **options)
        assert output.sequences.device.type == device
        assert all(up_to_end(row, 3) in Oracle(rows, END).items for row in output.sequences)
