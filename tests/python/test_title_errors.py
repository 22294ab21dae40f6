"""Titles whose tokens are the same or that no trie can hold: named by row and title."""

from __future__ import annotations

import pytest
from small_tokenizers import fast_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers

from gentrie import TokenTrie


def lacking_braces() -> Tokenizer:
    known = ["<unk>", "</s>", "set", "1", "2", "red"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def test_collisions_can_be_refused() -> None:
    titles = ["red", "set {1}", "set <1>", "set [1]", "red 2", "red  2"]
    kept = TokenTrie.from_titles(titles, lacking_braces(), end_token_id=1)
    assert (kept.num_items, kept.num_sequences) == (6, 3)
    with pytest.raises(ValueError) as error:
        TokenTrie.from_titles(titles, lacking_braces(), end_token_id=1, on_collision="error")
    message = str(error.value)
    assert message.startswith("3 items have the tokens of an earlier one, such as titles[1]='set {1}' and titles[2]=")
    assert "the tokenizer lacks characters of theirs (2 such sequences); on_collision='keep'" in message
    ids = [60, 50, 40, 30, 20, 10]
    with pytest.raises(
        ValueError, match=r"such as titles\[5\]='red  2' and titles\[4\]='red 2', tokens \[5, 4, 1\] \(1 "
    ):
        TokenTrie.from_titles(
            [*titles[:2], "1", "2", *titles[4:]], lacking_braces(), item_ids=ids, on_collision="error", end_token_id=1
        )
    strict = TokenTrie.from_titles(titles[3:5], lacking_braces(), on_collision="error", end_token_id=1)
    assert strict.num_sequences == 2
    with pytest.raises(ValueError, match="on_collision='suffix' is not one of 'keep', 'error'"):
        TokenTrie.from_titles(titles, lacking_braces(), on_collision="suffix")  # type: ignore[arg-type]


def test_errors_of_the_builder_name_titles() -> None:
    titles = ["blue", "red</s>box", "red"]
    with pytest.raises(ValueError, match=r"titles\[1\]='red</s>box': end_token_id=0 stands inside"):
        TokenTrie.from_titles(titles, fast_tokenizer(), end_token_id=0)
    with pytest.raises(ValueError, match=r"titles\[2\]='red' \(1 tokens\) is a prefix of titles\[1\]='red</s>box'"):
        TokenTrie.from_titles(titles, fast_tokenizer())
    with pytest.raises(ValueError, match=r"titles\[0\]='xxxx.*\.\.\.: token \d+ at position 0 is outside"):
        TokenTrie.from_titles(["x" * 300], fast_tokenizer(), vocab_size=3)
