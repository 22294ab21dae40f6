"""Other processors may forbid every token that the catalog allows; what is written stays in the catalog."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import END, VOCAB_SIZE, tiny_model

from gentrie import TokenTrie
from gentrie.generation import TrieLogitsProcessor
from gentrie.generation.logits_processor import mask_with_torch

TRIE = TokenTrie.from_sequences([[5, 6, 7], [5, 6, *[8, 9, 10, 11] * 4], [12]], vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = torch.tensor([[30, 31, 32], [33, 34, 35]])


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"num_beams": 3, "renormalize_logits": True}])
@pytest.mark.parametrize(
    "forbidden", [{"no_repeat_ngram_size": 2, "bad_words_ids": [[12], [7]]}, {"min_new_tokens": 12}]
)
def test_the_catalog_prevails(search: dict[str, Any], forbidden: dict[str, Any]) -> None:
    output = tiny_model("llama").generate(
        PROMPTS,
        attention_mask=torch.ones_like(PROMPTS),
        logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=3)],
        max_new_tokens=TRIE.max_depth,
        return_dict_in_generate=True,
        output_scores=True,
        **search,
        **forbidden,
    )
    for row in output.sequences[:, 3:].tolist():
        assert TRIE.resolve(row[: row.index(END) + 1]).size, row
    assert not any(scores.isnan().any() for scores in output.scores)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_forbidden_tokens_get_a_finite_score(dtype: torch.dtype) -> None:
    processor = TrieLogitsProcessor(TRIE, prompt_length=1)
    ids = torch.tensor([[30], [31]])
    scores = torch.zeros(2, VOCAB_SIZE, dtype=dtype)
    scores[0, [5, 12]] = -torch.inf
    scores[1, 5] = -torch.inf
    masked = processor(ids, scores)
    resort = torch.tensor(-32768.0 if dtype == torch.float16 else -1e9, dtype=dtype)
    assert masked[0].isfinite().nonzero().flatten().tolist() == [5, 12]
    assert masked[0, [5, 12]].eq(resort).all()
    assert masked[1].isfinite().nonzero().flatten().tolist() == [12]
    assert torch.equal(mask_with_torch(processor._rules.allowed(ids), -1, scores), masked)
