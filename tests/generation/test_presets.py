"""Presets are arguments that builder and ``generate`` take, and mean what the papers' code does."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import transformers

from gentrie import TokenTrie, datasets, presets
from gentrie.generation import (
    TrieLogitsProcessor,
    add_item_tokens,
    beam_search,
    generate_with_items,
    trie_beam_search,
)

CATALOG = datasets.load("steam", num_items=40)


def model_of(size: int) -> transformers.PreTrainedModel:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config).eval()


def trimmed(row: torch.Tensor, prompt: torch.Tensor, tokenizer: Any) -> list[int]:
    """What was written, end token included."""
    written = row[prompt.shape[1] :].tolist()
    return written[: written.index(tokenizer.eos_token_id) + 1]


def semantic_ids(tokenizer: Any, num_items: int) -> list[str]:
    """Distinct ids of three codes, each of them one new token of the tokenizer."""
    codes = [[f"<{level}_{code}>" for code in range(5)] for level in "abc"]
    tokenizer.add_tokens([token for level in codes for token in level])
    return ["".join(row) for row in itertools.islice(itertools.product(*codes), num_items)]


@pytest.mark.parametrize("name", ["bear", "msl", "d3", "minionerec"])
def test_titles_and_search_go_together(name: str) -> None:
    preset = getattr(presets, name)
    tokenizer = CATALOG.train_tokenizer(500)
    titles = semantic_ids(tokenizer, 70) if name == "minionerec" else CATALOG.titles
    trie = TokenTrie.from_titles(titles, tokenizer, end_token_id=tokenizer.eos_token_id, **preset.titles)
    prompt = torch.tensor([tokenizer("A game\n" + preset.context, add_special_tokens=False)["input_ids"]])
    arguments = {
        "attention_mask": torch.ones_like(prompt),
        "max_new_tokens": trie.max_depth,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **preset.search,
    }
    model = model_of(len(tokenizer))
    processor = TrieLogitsProcessor(trie, prompt_length=prompt.shape[1])
    output = model.generate(prompt, logits_processor=[processor], **arguments)
    searched = model.generate(prompt, custom_generate=trie_beam_search, trie=trie, **arguments)
    assert [trie.resolve(trimmed(row, prompt, tokenizer)).tolist() for row in searched] == [
        trie.resolve(trimmed(row, prompt, tokenizer)).tolist() for row in output
    ]
    result = beam_search(model, prompt, trie, **preset.beam_search)
    assert result.sequences[0] == [trimmed(row, prompt, tokenizer) for row in output]
    assert output.shape[0] == preset.num_beams
    found = set()
    for row in output:
        items = trie.resolve(trimmed(row, prompt, tokenizer))
        assert items.size
        found |= set(items.tolist())
        title = preset.template.replace("{title}", titles[int(items[0])])
        assert tokenizer.decode(trimmed(row, prompt, tokenizer)[:-1]) == title
    assert len(found) >= preset.num_beams


def test_reclm_cgen_writes_items_between_its_tokens() -> None:
    tokenizer = CATALOG.train_tokenizer(500)
    model = model_of(len(tokenizer) + 8)
    begin, end = add_item_tokens(tokenizer, model)
    trie = TokenTrie.from_titles(CATALOG.titles, tokenizer, end_token_id=end, **presets.reclm_cgen.titles)
    prompt = torch.tensor([[*tokenizer("games", add_special_tokens=False)["input_ids"], begin]])
    output = generate_with_items(
        model,
        prompt,
        trie=trie,
        begin_token_id=begin,
        max_new_tokens=trie.max_depth,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **presets.reclm_cgen.search,
    )
    assert len(output.items[0]) >= 1


def test_length_penalties_beams_and_scopes_of_the_papers() -> None:
    table = {
        name: (preset.length_penalty, preset.num_beams, preset.scope, preset.early_stopping)
        for name in ("bear", "msl", "d3", "minionerec", "reclm_cgen")
        for preset in [getattr(presets, name)]
    }
    assert table == {
        "bear": (1.0, 10, "trie", False),
        "msl": (1.0, 10, "vocab", False),
        "d3": (0.0, 10, "vocab", False),
        "minionerec": (0.0, 50, "vocab", False),
        "reclm_cgen": (1.0, 1, "vocab", False),
    }
    assert presets.minionerec.search["renormalize_logits"] is False
