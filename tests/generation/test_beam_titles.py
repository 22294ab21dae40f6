"""Beam search over catalogs of titles against ``generate``, real ones where they are at hand."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import tiny_model

from gentrie import TokenTrie, datasets
from gentrie.generation import TrieLogitsProcessor, beam_search, best_first_search

DATA = Path(os.environ.get("GENTRIE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
VOCAB = 2048
PROMPT = 24
BEAMS = 10


@cache
def catalog(name: str) -> TokenTrie:
    if name == "synthetic":
        titles = datasets.load("toys", num_items=1500).titles
    else:
        path = DATA / name / "catalog.jsonl"
        if not path.is_file():
            pytest.skip(f"{path} is absent; GENTRIE_DATA names the folder of real catalogs")
        with path.open(encoding="utf-8") as lines:
            titles = [json.loads(line)["title"] for line in lines]
    tokenizer = datasets.Catalog(name, titles).train_tokenizer(VOCAB)
    return TokenTrie.from_titles(titles, tokenizer, end_token_id=1, template='"{title}"')


@pytest.mark.parametrize("scope", ["trie", "vocab"])
@pytest.mark.parametrize("name", ["synthetic", "toy", "office"])
def test_titles_of_generate(name: str, scope: Any) -> None:
    trie = catalog(name)
    model: Any = tiny_model("llama", vocab_size=VOCAB)
    ids = torch.randint(3, VOCAB, (3, PROMPT), generator=torch.Generator().manual_seed(0))
    result = beam_search(model, ids, trie, beam_width=BEAMS, scope=scope)
    limit = max(len(sequence) for found in result.sequences for sequence in found) + 16
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=PROMPT)],
        renormalize_logits=scope == "trie",
        num_beams=BEAMS,
        num_return_sequences=BEAMS,
        max_new_tokens=min(trie.max_depth, limit),
        return_dict_in_generate=True,
        output_scores=True,
    )
    theirs = [row[: row.index(1) + 1] for row in output.sequences[:, PROMPT:].tolist()]
    assert [sequence for found in result.sequences for sequence in found] == theirs
    np.testing.assert_allclose(np.concatenate(result.sequences_scores), output.sequences_scores, rtol=1e-4)
    assert result.stats.rows < BEAMS * 3 * max(map(len, theirs)) / (4 if scope == "trie" else 1)


@pytest.mark.parametrize("name", ["synthetic", "toy", "office"])
def test_wide_beams_find_the_exact_best(name: str) -> None:
    trie = catalog(name)
    ids = torch.randint(3, VOCAB, (2, PROMPT), generator=torch.Generator().manual_seed(1))
    exact = best_first_search(tiny_model("llama", vocab_size=VOCAB), ids, trie, num_results=5)
    wide = beam_search(
        tiny_model("llama", vocab_size=VOCAB), ids, trie, beam_width=512, num_return_sequences=5, length_penalty=0.0
    )
    assert exact.certified.all()
    assert wide.sequences == exact.sequences
