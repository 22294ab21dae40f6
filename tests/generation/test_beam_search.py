"""Beam search against ``generate`` with a TrieLogitsProcessor, and against the scores of every item."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from catalog_strategies import catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import END, FIRST_TOKEN, PAD, VOCAB_SIZE, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM
from tree_models import logits_behind, tree_model

from gentrie import TokenTrie
from gentrie.generation import TrieLogitsProcessor, beam_search

PROMPTS = [[30, 31, 32, 33], [34], [35, 36, 37]]
TOLERANCE = 1e-4
Scored = list[tuple[tuple[int, ...], float]]


def padded(prompts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask


def by_generate(model: Any, trie: TokenTrie, width: int, scope: str, **arguments: Any) -> list[Scored]:
    """What transformers finds for each prompt: complete items, best first, filler beams left out."""
    ids, mask = padded(PROMPTS)
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    item_filter = arguments.pop("item_filter", None)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=start, item_filter=item_filter)],
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=trie.max_depth,
        renormalize_logits=scope == "trie",
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
        **arguments,
    )
    found: list[Scored] = [[] for _ in PROMPTS]
    for at, (row, score) in enumerate(
        zip(output.sequences[:, start:].tolist(), output.sequences_scores.tolist(), strict=True)
    ):
        if score > -1e6 and END in row:
            found[at // width].append((tuple(row[: row.index(END) + 1]), score))
    return found


def exhaustive(model: Any, prompt: list[int], rows: set[tuple[int, ...]], scope: str, penalty: float) -> Scored:
    """Every sequence with its score, best first, by the plain model on every prefix."""
    prefixes = sorted({row[:length] for row in rows for length in range(len(row))})
    logits = dict(
        zip(prefixes, logits_behind(model, [(prompt, list(prefix)) for prefix in prefixes]).double(), strict=True)
    )
    scores = {row: 0.0 for row in rows}
    for row in rows:
        for length, token in enumerate(row):
            every = range(VOCAB_SIZE)
            valid = sorted({other[length] for other in rows if other[:length] == row[:length]})
            valid = list(every) if scope == "vocab" else valid
            scores[row] += float(logits[row[:length]][valid].log_softmax(-1)[valid.index(token)])
        scores[row] /= len(row) ** penalty
    return sorted(scores.items(), key=lambda entry: -entry[1])


def same(result: Any, number: int, expected: Scored) -> None:
    """The same scores, and the same items wherever a score is not shared."""
    scores = result.sequences_scores[number]
    np.testing.assert_allclose(scores, [score for _, score in expected], rtol=TOLERANCE, atol=TOLERANCE)
    for at, (sequence, score) in enumerate(expected):
        others = [other for row, (_, other) in enumerate(expected) if row != at]
        if all(abs(score - other) > 10 * TOLERANCE for other in others):
            assert tuple(result.sequences[number][at]) == sequence


@given(
    kind=st.sampled_from(["llama", "gpt2", "Qwen3", "t5"]),
    rows=catalogs(max_items=20),
    width=st.integers(2, 24),
    scope=st.sampled_from(["trie", "vocab"]),
    length_penalty=st.sampled_from([0.0, 1.0, 2.0, -0.5]),
    early_stopping=st.sampled_from([False, "never"]),
    filters=st.sampled_from(["none", "one", "each"]),
)
@settings(max_examples=60)
def test_items_order_and_scores_of_generate(
    kind: str,
    rows: list[list[int]],
    width: int,
    scope: Any,
    length_penalty: float,
    early_stopping: Any,
    filters: str,
) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    allowed: Any = {
        "none": None,
        "one": list(range(0, len(rows), 2)),
        "each": [list(range(first % len(rows), len(rows), first + 1)) for first in range(len(PROMPTS))],
    }[filters]
    arguments: dict[str, Any] = {
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        "item_filter": allowed,
    }
    model = tree_model(kind)
    result = beam_search(model, ids, trie, attention_mask=mask, beam_width=width, scope=scope, **arguments)
    for number, expected in enumerate(by_generate(model, trie, width, scope, **arguments)):
        same(result, number, expected)
        for at, sequence in enumerate(result.sequences[number]):
            tokens = result.token_scores[number][at]
            assert len(tokens) == len(sequence)
            total = result.sequences_scores[number][at]
            assert tokens.sum() / len(sequence) ** length_penalty == pytest.approx(total)
            given = allowed[number] if filters == "each" else allowed if filters == "one" else range(len(rows))
            stand = [item for item in given if [*rows[item], END] == sequence]
            assert result.item_ids[number][at].tolist() == stand
        assert len({tuple(sequence) for sequence in result.sequences[number]}) == result.num_found[number]


@given(rows=catalogs(max_items=12), scope=st.sampled_from(["trie", "vocab"]), penalty=st.sampled_from([0.0, 1.0]))
@settings(max_examples=25)
def test_beams_wider_than_the_catalog_find_all_of_it(rows: list[list[int]], scope: Any, penalty: float) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    result = beam_search(
        tree_model("llama"), ids, trie, attention_mask=mask, beam_width=20, scope=scope, length_penalty=penalty
    )
    items = {(*row, END) for row in rows}
    for number, prompt in enumerate(PROMPTS):
        same(result, number, exhaustive(tree_model("llama"), prompt, items, scope, penalty))


TITLES = [[a, b, c, 20, 21, 22] for a in range(4, 9) for b in range(9, 13) for c in range(13, 17)]


@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_early_stopping_with_beams_that_are_all_real(scope: Any) -> None:
    """Of one length, so that filler beams never finish before the others."""
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    result = beam_search(
        tiny_model("llama"), ids, trie, attention_mask=mask, beam_width=4, scope=scope, early_stopping=True
    )
    for number, expected in enumerate(by_generate(tiny_model("llama"), trie, 4, scope, early_stopping=True)):
        same(result, number, expected)


def test_the_model_is_called_only_where_a_beam_branches() -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    trie_stats = beam_search(tiny_model("llama"), ids, trie, attention_mask=mask, beam_width=4).stats
    assert trie_stats.model_calls == 3
    assert trie_stats.rows == 3 * (1 + 4 + 4)
    assert trie_stats.tokens_computed == 3 * (4 + 4)
    assert trie_stats.tokens_forced == 3 * 4 * 4
    assert trie_stats.padded_slots == 0
    vocab_stats = beam_search(tiny_model("llama"), ids, trie, attention_mask=mask, beam_width=4, scope="vocab").stats
    assert vocab_stats.model_calls == 4  # the last branch's four runs at once
    assert vocab_stats.tokens_computed == 3 * (4 + 4 + 4 * 4)


def test_fewer_returned_than_searched_and_width_one() -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    arguments: dict[str, Any] = {"attention_mask": mask, "beam_width": 8}
    whole = beam_search(tiny_model("llama"), ids, trie, **arguments)
    part = beam_search(tiny_model("llama"), ids, trie, num_return_sequences=3, **arguments)
    assert part.sequences == [found[:3] for found in whole.sequences]
    greedy = beam_search(tiny_model("llama"), ids, trie, attention_mask=mask, beam_width=1)
    for number, prompt in enumerate(PROMPTS):
        path: list[int] = []
        while not path or path[-1] != END:
            valid = trie.next_tokens(trie.walk(path)).tolist()
            path.append(valid[int(logits_behind(tiny_model("llama"), [(prompt, path)])[0, valid].argmax())])
        assert greedy.sequences[number] == [path]


def test_embedded_prompts_and_filters_one_a_prompt() -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    model: Any = tiny_model("llama")
    by_ids = beam_search(model, ids, trie, attention_mask=mask)
    embedded = beam_search(model, None, trie, attention_mask=mask, inputs_embeds=model.get_input_embeddings()(ids))
    assert embedded.sequences == by_ids.sequences
    result = beam_search(model, ids, trie, attention_mask=mask, item_filter=[[3], [1, 2, 40], [999]])
    found = [{int(item) for items in prompt for item in items} for prompt in result.item_ids]
    assert found == [{3}, {1, 2, 40}, set()]


def test_items_that_share_a_title_are_filtered_one_by_one() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [5, 7], [5, 6], [8]], vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    result = beam_search(tiny_model("llama"), ids, trie, attention_mask=mask, item_filter=[[2, 3], None, {0}])
    found = [sorted(tuple(items.tolist()) for items in prompt) for prompt in result.item_ids]
    assert found == [[(2,), (3,)], [(0, 2), (1,), (3,)], [(0,)]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scope": "items"}, "scope"),
        ({"beam_width": 0}, "beam_width=0"),
        ({"beam_width": 513}, "beam_width=513"),
        ({"num_return_sequences": 11}, "num_return_sequences=11"),
        ({"length_penalty": float("nan")}, "length_penalty=nan"),
        ({"early_stopping": "soon"}, "early_stopping='soon'"),
        ({"max_length": 0}, "max_length=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"item_filter": [[1], [2]]}, "item_filter has 2 entries for 3 prompts"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = padded(PROMPTS)
    with pytest.raises(ValueError, match=message):
        beam_search(tiny_model("llama"), ids, trie, attention_mask=mask, **arguments)


def llama_with_large_keys() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        head_dim=64,
        max_position_embeddings=512,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).eval()


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that tensors held at a time while something ran, of what was allocated by it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    kineto: Any = profile.profiler
    changes = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes]).max())


def test_keys_and_values_of_a_prompt_are_held_once() -> None:
    trie = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
    model: Any = llama_with_large_keys()
    ids = torch.randint(FIRST_TOKEN, VOCAB_SIZE, (2, 400), generator=torch.Generator().manual_seed(0))
    whole = 2 * 4 * 4 * 64 * 400 * 2 * 4  # keys and values, layers, heads, head size, tokens, prompts, float32

    def ours(width: int) -> int:
        return peak_bytes(lambda: beam_search(model, ids, trie, beam_width=width))

    def theirs(width: int) -> int:
        return peak_bytes(
            lambda: model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=[TrieLogitsProcessor(trie, prompt_length=400)],
                num_beams=width,
                max_new_tokens=trie.max_depth,
            )
        )

    ours(2)  # what is made once
    assert whole <= ours(16) < 3 * whole
    assert ours(16) - ours(2) < whole / 2
    assert theirs(16) > 16 * whole  # the measure sees what it should
