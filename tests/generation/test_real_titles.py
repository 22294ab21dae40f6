"""Every real title comes back item for item, through the matcher, the processor and generate; nothing else does."""

from __future__ import annotations

import importlib.util
import json
import os
import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import ScriptedModel

from gentrie import TokenTrie, TrieMatcher
from gentrie.datasets import Catalog
from gentrie.generation import TrieLogitsProcessor

DATA = Path(os.environ.get("GENTRIE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
AWKWARD = [
    'He said "no"',
    '"quoted"',
    "'",
    "two\nlines",
    "\n",
    " leading",
    "trailing ",
    "  both  ",
    "tab\there",
    "🧩 Puzzle 🧩",
    "👩‍👩‍👧 family",
    "Lego",
    "Lego ",
    "Lego City",
    "Lego City",
    "R&amp;D &quot;Kit&quot; &#39;s",
    "naïve café ﬁ",
    "漢字",
    "a" * 300,
]
MODEL_TOKENS = {"begin": 0, "end": 1, "eos": 2}


@cache
def titles(name: str) -> list[str]:
    path = DATA / name / "catalog.jsonl"
    if name == "awkward":
        return AWKWARD
    if not path.is_file():
        pytest.skip(f"{path} is absent; GENTRIE_DATA names the folder of real catalogs")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["title"] for line in lines] + AWKWARD


@cache
def tokenizer(kind: str, name: str) -> Any:
    if kind == "bpe":
        return Catalog(name, titles(name)).train_tokenizer(4096)
    if importlib.util.find_spec("mistral_common") is None:
        pytest.skip("mistral-common is not installed")
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    return MistralTokenizer.v3(is_tekken=True)


@cache
def built(kind: str, name: str) -> tuple[TokenTrie, list[list[int]]]:
    """The trie and each title's tokens, end token included. Titles do not use the control tokens 0 to 2."""
    trie = TokenTrie.from_titles(titles(name), tokenizer(kind, name), end_token_id=MODEL_TOKENS["end"])
    values, indptr, items, item_indptr = trie.to_sequences()
    rows: dict[int, list[int]] = {}
    for i in range(trie.num_sequences):
        for item in items[item_indptr[i] : item_indptr[i + 1]].tolist():
            rows[item] = values[indptr[i] : indptr[i + 1]].tolist()
    return trie, [rows[item] for item in range(trie.num_items)]


CATALOGS = [(kind, name) for kind in ("bpe", "tekken") for name in ("awkward", "office", "toy")]


@pytest.mark.parametrize(("kind", "name"), CATALOGS)
def test_matcher_and_resolve(kind: str, name: str) -> None:
    trie, rows = built(kind, name)
    same: dict[tuple[int, ...], set[int]] = {}
    for item, row in enumerate(rows):
        same.setdefault(tuple(row), set()).add(item)
    # Titles that differ must differ in tokens too, and equal ones must not.
    assert len(same) == len(set(titles(name)))
    matcher = TrieMatcher(trie)
    rng = random.Random(0)
    for row in rows:
        assert trie.resolve(row).tolist() == trie.resolve(row[:-1]).tolist() == sorted(same[tuple(row)])
        matcher.reset()
        assert matcher.accept_tokens(row)
        assert matcher.is_terminated()
        wrong = list(row)
        wrong[rng.randrange(len(wrong))] = rng.randrange(trie.vocab_size)
        assert (tuple(wrong) in same) is (trie.resolve(wrong).size > 0)
        matcher.reset()
        assert matcher.accept_tokens(wrong) is (tuple(wrong) in same)


@pytest.mark.parametrize(("kind", "name"), CATALOGS)
def test_processor_allows_each_titles_tokens(kind: str, name: str) -> None:
    """Teacher-forced, all titles at every position; scores narrow enough to fit: the tokens in use, renumbered."""
    trie, rows = built(kind, name)
    small = np.unique(np.concatenate([*rows, np.arange(3)]))
    renumbered = [np.searchsorted(small, row).tolist() for row in rows]
    trie = TokenTrie.from_sequences([row[:-1] for row in renumbered], vocab_size=len(small), end_token_id=1)
    chosen = random.Random(0).sample(renumbered, min(len(renumbered), 4000))
    whole = TrieLogitsProcessor(trie, prompt_length=1)
    triggered = TrieLogitsProcessor(trie, begin_token_id=0, eos_token_id=2, unique=True)
    for position in range(max(map(len, chosen))):
        at = [row for row in chosen if len(row) > position]
        for begin in range(0, len(at), 500):
            part = at[begin : begin + 500]
            ids = torch.tensor([[0, *row[:position]] for row in part])
            scores = torch.zeros(len(part), len(small))
            wanted = torch.tensor([row[position] for row in part])
            masked = whole(ids, scores)
            assert masked[torch.arange(len(part)), wanted].eq(0).all()
            assert torch.equal(triggered(ids, scores), masked)
            expected = [trie.next_tokens(trie.walk(row[:position])).size for row in part]
            assert masked.isfinite().sum(1).tolist() == expected


@pytest.mark.parametrize(("kind", "name"), CATALOGS)
def test_generate_returns_the_title_the_model_prefers(kind: str, name: str) -> None:
    """A scripted model that would write one title wrongly now and then; the catalog has the last word."""
    trie, rows = built(kind, name)
    rng = random.Random(1)
    # Rows of logits over 131,072 tokens take their time.
    items = rng.sample(range(len(rows)), min(len(rows), 150 if trie.vocab_size < 10_000 else 30))
    width = max(len(rows[item]) for item in items)
    script = torch.tensor([rows[item] + [MODEL_TOKENS["eos"]] * (width - len(rows[item])) for item in items])
    outsider = int(np.setdiff1d(np.arange(3, trie.vocab_size), trie.vocabulary)[0])

    def logits(ids: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(items), trie.vocab_size)
        scores[torch.arange(len(items)), script[:, min(ids.shape[1] - 1, width - 1)]] = 5
        scores[:, outsider] = 9
        return scores

    model = ScriptedModel(logits, trie.vocab_size, eos_token_id=MODEL_TOKENS["end"], pad_token_id=MODEL_TOKENS["eos"])
    output = model.generate(
        torch.zeros(len(items), 1, dtype=torch.long),
        attention_mask=torch.ones(len(items), 1, dtype=torch.long),
        logits_processor=[TrieLogitsProcessor(trie, prompt_length=1)],
        max_new_tokens=trie.max_depth,
        do_sample=False,
    )
    for item, sequence in zip(items, output[:, 1:].tolist(), strict=True):
        row = rows[item]
        assert sequence[: len(row)] == row
        assert item in trie.resolve(sequence[: len(row)])


@pytest.mark.parametrize(("kind", "name"), CATALOGS)
def test_random_walks_end_in_the_catalog(kind: str, name: str) -> None:
    trie, rows = built(kind, name)
    known = set(map(tuple, rows))
    rng = random.Random(2)
    for _ in range(500):
        walk: list[int] = []
        matcher = TrieMatcher(trie)
        while not matcher.is_terminated():
            walk.append(rng.choice(matcher.get_allowed_tokens().tolist()))
            assert matcher.accept_token(walk[-1])
        assert tuple(walk) in known
