"""Other processors may forbid every token that the catalog allows; what is written stays in the catalog."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny_models import END, VOCAB_SIZE, ScriptedModel, markov_logits, tiny_model
from transformers import LogitsProcessor

from gentrie import TokenTrie
from gentrie.generation import TrieLogitsProcessor
from gentrie.generation.logits_processor import mask_with_torch

TRIE = TokenTrie.from_sequences([[5, 6, 7], [5, 6, *[8, 9, 10, 11] * 4], [12]], vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = torch.tensor([[30, 31, 32], [33, 34, 35]])


MODES = {
    "greedy": {},
    "sampled": {"do_sample": True},
    "beams": {"num_beams": 3},
    "many beams": {"num_beams": 9, "num_return_sequences": 2},
    "sampled beams": {"num_beams": 3, "do_sample": True, "top_k": 0},
    "static cache": {"num_beams": 3, "cache_implementation": "static"},
}


def best_responses(output: Any, num_prompts: int = 2) -> list[list[int]]:
    """What stands behind the prompt in the first row of each."""
    rows = output.sequences[:, 3:].tolist()
    return rows[:: len(rows) // num_prompts]


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "forbidden",
    [
        {"no_repeat_ngram_size": 2, "bad_words_ids": [[12], [7]]},
        {"min_new_tokens": 18},
        {"suppress_tokens": list(range(VOCAB_SIZE))},
        {"bad_words_ids": [[5], [12]]},
        {"forced_bos_token_id": 40, "suppress_tokens": [5, 12]},
        {"sequence_bias": {(5,): -1e9, (12,): -2e9, (8,): 1e9}},
    ],
    ids=lambda forbidden: "-".join(forbidden),
)
def test_the_catalog_prevails(mode: str, renormalize: bool, forbidden: dict[str, Any]) -> None:
    torch.manual_seed(0)
    output = tiny_model("llama").generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=3)],
        max_new_tokens=TRIE.max_depth,
        return_dict_in_generate=True,
        output_scores=True,
        renormalize_logits=renormalize,
        **MODES[mode],
        **forbidden,
    )
    for row in best_responses(output):
        assert TRIE.resolve(row[: row.index(END) + 1]).size, row
    if "num_beams" in MODES[mode]:
        assert output.sequences_scores[:: len(output.sequences) // 2].min() > -1e8
    assert not any(scores.isnan().any() for scores in output.scores)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "static cache"])
def test_a_forced_first_token_that_no_item_begins_with(mode: str, renormalize: bool) -> None:
    torch.manual_seed(0)
    output = tiny_model("t5").generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=1)],
        max_new_tokens=TRIE.max_depth,
        forced_bos_token_id=40,
        renormalize_logits=renormalize,
        **MODES[mode],
    )
    for row in output[:: len(output) // 2, 1:].tolist():
        assert TRIE.resolve(row[: row.index(END) + 1]).size, row


class OneRow(LogitsProcessor):
    """Changes the scores of the first prompt's rows alone."""

    def __init__(self, num_rows: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._num_rows, self._change = num_rows, change

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._change(scores[: self._num_rows]), scores[self._num_rows :]])


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("change", [-torch.inf, torch.inf, 1e9, -1e9, 1e38, -1e38])
def test_one_prompt_among_others(mode: str, renormalize: bool, change: float) -> None:
    torch.manual_seed(0)
    own = OneRow(MODES[mode].get("num_beams", 1), lambda scores: scores + change)
    output = tiny_model("llama").generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        logits_processor=[own, TrieLogitsProcessor(TRIE, prompt_length=3)],
        max_new_tokens=TRIE.max_depth,
        return_dict_in_generate=True,
        output_scores=True,
        renormalize_logits=renormalize,
        **MODES[mode],
    )
    for row in best_responses(output):
        assert TRIE.resolve(row[: row.index(END) + 1]).size, row
    assert not any(scores.isnan().any() for scores in output.scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_stay_finite_numbers(dtype: torch.dtype) -> None:
    """Forbidden tokens get a score that can be added up, and so do those above any that a model gives."""
    processor = TrieLogitsProcessor(TRIE, prompt_length=1)
    highest, lowest = (65504.0, -65504.0) if dtype == torch.float16 else (2.0**20, -(2.0**20))
    inf, nothing, huge = torch.inf, -torch.inf, 1e38 if dtype != torch.float16 else 65504.0
    ids = torch.full((6, 1), 30)
    scores = torch.zeros(6, VOCAB_SIZE, dtype=dtype)
    scores[:, [5, 12]] = torch.tensor(
        [[-inf, -inf], [-inf, -3], [lowest, -inf], [-huge, lowest], [inf, 7], [huge, -huge]], dtype=dtype
    )
    expected = torch.tensor(
        [[-8192, -8192], [nothing, -3], [-8192, nothing], [nothing, -8192], [highest, 7], [highest, -huge]], dtype=dtype
    )
    if dtype == torch.float16:
        expected[3] = -8192  # both are the lowest number there is
    masked = processor(ids, scores)
    assert torch.equal(masked[:, [5, 12]], expected)
    masked[:, [5, 12]] = -torch.inf
    assert masked.isneginf().all()
    again = mask_with_torch(processor._rules.allowed(ids), -1, scores)
    assert torch.equal(again[:, [5, 12]], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_scores_that_are_not_numbers_are_refused(dtype: torch.dtype) -> None:
    """But only where they would decide: inside an item, of tokens that it may go on with."""
    processor = TrieLogitsProcessor(TRIE, prompt_length=1)
    ids = torch.tensor([[30, 5], [30, 12], [30, 40]])
    scores = torch.zeros(3, VOCAB_SIZE, dtype=dtype)
    scores[:, [7, 12, 40]] = torch.nan
    masked = processor(ids, scores)
    assert masked[0].isfinite().nonzero().flatten().tolist() == [6]
    assert masked[2].isfinite().nonzero().flatten().tolist() == [END]
    scores[2] = torch.nan
    assert processor(ids, scores)[2].isfinite().nonzero().flatten().tolist() == [END]
    for row, token in ((1, END), (0, 6)):
        scores[row, token] = torch.nan
        with pytest.raises(ValueError, match=rf"scores\[{row}\]: .* not a number"):
            processor(ids, scores)
        with pytest.raises(ValueError, match=rf"scores\[{row}\]: .* not a number"):
            mask_with_torch(processor._rules.allowed(ids), -1, scores)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_gives_no_numbers_is_refused(mode: str, renormalize: bool) -> None:
    """And not, for a row whose item ended before, the numbers behind it."""
    for bad_from, refused in ((4, True), (3 + TRIE.max_depth, False)):

        def logits(ids: torch.Tensor, bad_from: int = bad_from) -> torch.Tensor:
            values = markov_logits(0)(ids)
            return values * torch.nan if ids.shape[1] >= bad_from else values

        with pytest.raises(ValueError, match="not a number") if refused else nullcontext():
            ScriptedModel(logits, VOCAB_SIZE, END).generate(
                PROMPTS,
                attention_mask=torch.ones_like(PROMPTS),
                logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=3)],
                max_new_tokens=TRIE.max_depth + 2,
                renormalize_logits=renormalize,
                **{name: value for name, value in MODES[mode].items() if name != "cache_implementation"},
            )
