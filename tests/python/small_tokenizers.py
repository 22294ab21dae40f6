"""Tokenizers trained in a moment, and titles that are hard on them."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

HARD_TITLES = [
    'The "Big" Book of "Quotes"',
    '"Quoted from end to end"',
    "Two\nlines",
    "Ends in a line break\n",
    " leading space",
    "trailing space ",
    "  both  ",
    " ",
    "Tabs\tand\r\nreturns",
    "Rubik&#39;s Cube &amp; Friends",
    "{title} {0} {} %s",
    "Puzzle \U0001f9e9\U0001f600 for all \u2764\ufe0f",
    "\u6f22\u5b57 \u0440\u0443\u0441\u0441\u043a\u0438\u0439 caf\u00e9 cafe\u0301",
    "A",
    "Ab",
    "Ab c",
    "Ab",
]

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@functools.cache
def real_titles(name: str) -> list[str]:
    """Titles of one of the real catalogs; skips the test where the data is absent."""
    path = REAL_DATA / name / "catalog.jsonl"
    if not path.is_file():
        pytest.skip(f"the real catalog {name} is not beside this checkout")
    return [json.loads(line)["title"] for line in path.read_text(encoding="utf-8").splitlines()]


def training_texts() -> list[str]:
    words = ["red", "blue", "little", "big", "tool", "box", "magnetic", "wooden", "easel", "puzzle", "game"]
    pairs = [f"{a} {b}" for a in words for b in words]
    return [*pairs, *HARD_TITLES, "start of an item", "end of an item"]


def byte_level_bpe(
    vocab_size: int = 500,
    *,
    merges_from: list[str] | None = None,
    normalizer: normalizers.Normalizer | None = None,
    pre_tokenizer: pre_tokenizers.PreTokenizer | None = None,
) -> Tokenizer:
    """A lossless byte-level BPE tokenizer; the end-of-sequence token ``</s>`` has id 0."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(merges_from or training_texts(), trainer)
    return tokenizer


def fast_tokenizer(vocab_size: int = 500) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(vocab_size), eos_token="</s>")
