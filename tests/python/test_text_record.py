"""The tokenizer check against added tokens, which a fingerprint of the used tokens cannot see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_tokenizers import HARD_TITLES, byte_level_bpe
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from gentrie import TokenTrie
from gentrie._text_record import RECORD_KEY, tokenizers_agree

TITLES = ["Big Bag of Tools", "Bag of Blocks [Red]", "little red easel", *HARD_TITLES]


def fast() -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), eos_token="</s>")
    tokenizer.add_tokens(["<SOI>", "magnetic easel"])
    return tokenizer


def backend() -> Tokenizer:
    tokenizer = byte_level_bpe()
    tokenizer.add_tokens(["<SOI>", "magnetic easel"])
    return tokenizer


def slow() -> ByT5Tokenizer:
    tokenizer = ByT5Tokenizer()
    tokenizer.add_tokens(["<SOI>", "magnetic easel"])
    return tokenizer


def words() -> Tokenizer:
    """Lower-cased words of a vocabulary, which loses case, spaces and unknown words."""
    known = ["[UNK]", "big", "bag", "of", "tools", "blocks", "red", "little", "easel"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def built(tokenizer: Any, context: str = "x\n") -> TokenTrie:
    options = {"end_token_id": len(tokenizer) - 1} if isinstance(tokenizer, PreTrainedTokenizerFast) else {}
    options = options or {"end_token_id": 300, "vocab_size": 1000}
    return TokenTrie.from_titles(TITLES, tokenizer, context=context, template='"{title}"\n', **options)


@pytest.mark.parametrize("make", [fast, backend, slow])
def test_added_tokens_pass_only_where_no_title_holds_one(make: Any) -> None:
    trie = built(make())
    trie.check_tokenizer(make())
    for token in ("<pad>", "[PAD]", "Red Bag of Tools", "TOOLS"):
        tokenizer = make()
        tokenizer.add_tokens([token])
        trie.check_tokenizer(tokenizer)
    # "Bag " is one token then; the other two stand across the ends of the title.
    for token in ("Bag ", "of T", 'Tools"', 's"\n', AddedToken("ea", special=True)):
        tokenizer = make()
        tokenizer.add_tokens([token])
        with pytest.raises(ValueError, match=r"has the added tokens .*, unlike the one at build: .* gets other tokens"):
            trie.check_tokenizer(tokenizer)


@pytest.mark.parametrize("make", [fast, backend])
def test_matching_rules_and_normalisers_are_followed(make: Any) -> None:
    def lower() -> Any:
        tokenizer = make()
        getattr(tokenizer, "backend_tokenizer", tokenizer).normalizer = normalizers.Lowercase()
        return tokenizer

    trie = built(lower())
    for token in (
        AddedToken("<PAD>", normalized=True),
        AddedToken("BAG OF", normalized=False, special=True),
        AddedToken("Tools Bag", normalized=True),
    ):
        tokenizer = lower()
        tokenizer.add_tokens([token])
        if token.content == "<PAD>":
            trie.check_tokenizer(tokenizer)
            continue
        # "bag of" is in the normalised texts. Case is lost, so that the tokens cannot be tried on the titles.
        with pytest.raises(ValueError, match=r"has the added tokens .* cannot be ruled out"):
            trie.check_tokenizer(tokenizer)


def test_where_titles_cannot_be_read_back_what_is_not_ruled_out_is_refused() -> None:
    trie = built(words())
    trie.check_tokenizer(words())
    for token in ("<pad>", "<SOI>", "[PAD]"):
        tokenizer = words()
        tokenizer.add_special_tokens([token])
        trie.check_tokenizer(tokenizer)
    for token in ("Bag ", "bag"):
        tokenizer = words()
        tokenizer.add_special_tokens([token])
        with pytest.raises(ValueError, match=f"{token}.* cannot be ruled out|in: tokens"):
            trie.check_tokenizer(tokenizer)


def test_added_tokens_of_the_context_are_compared() -> None:
    trie = built(fast(), context="<SOI>")
    trie.check_tokenizer(fast())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level_bpe(), eos_token="</s>")
    tokenizer.add_tokens(["magnetic easel", "<SOI>"])  # another id
    with pytest.raises(ValueError, match=r"encodes the context '<SOI>' differently|in: tokens"):
        trie.check_tokenizer(tokenizer)


def test_special_tokens_that_are_split_as_text() -> None:
    def make() -> Tokenizer:
        tokenizer = byte_level_bpe()
        tokenizer.add_special_tokens(["Bag"])
        return tokenizer

    trie = built(make())
    trie.check_tokenizer(make())
    split = make()
    split.encode_special_tokens = True
    with pytest.raises(ValueError, match=r"does not match the added tokens 'Bag'.*gets other tokens"):
        trie.check_tokenizer(split)


def test_a_record_survives_the_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    trie = built(fast())
    trie.save(tmp_path / "trie")
    loaded = TokenTrie.load(tmp_path / "trie")
    loaded.check_tokenizer(fast())
    assert loaded.metadata[RECORD_KEY] == trie.metadata[RECORD_KEY]
    for damaged in ("", "[]", "{}", json.dumps({**json.loads(trie.metadata[RECORD_KEY]), "pairs": "eJw="})):
        trie.save(tmp_path / "trie", metadata={RECORD_KEY: damaged})
        with pytest.raises(ValueError, match="metadata 'tokenizer_texts' is damaged"):
            TokenTrie.load(tmp_path / "trie").check_tokenizer(fast())


def test_a_file_without_a_record_is_compared_by_its_fingerprint() -> None:
    trie = built(fast())
    del trie._metadata[RECORD_KEY]
    trie.check_tokenizer(fast())
    with pytest.raises(ValueError, match="tokenizer differs"):
        trie.check_tokenizer(words())


def test_tokenizers_of_two_catalogs_are_compared_by_what_both_depend_on() -> None:
    def side(tokenizer: Any, titles: list[str]) -> tuple[dict[str, str], Any]:
        trie = TokenTrie.from_titles(titles, tokenizer, end_token_id=0)
        return trie.metadata, trie.vocabulary

    padded, bagged, other = fast(), fast(), fast()
    padded.add_tokens(["<pad>"])
    bagged.add_tokens(["Bag "])
    other.backend_tokenizer.normalizer = normalizers.NFC()
    old = side(fast(), TITLES[:2])
    for titles in (TITLES[:2], TITLES[1:4], HARD_TITLES):
        assert tokenizers_agree(old, side(fast(), titles))
        assert tokenizers_agree(old, side(padded, titles))
        assert not tokenizers_agree(old, side(other, titles))
    # A token that no title of either catalog holds does not part them; one of the old titles holds "Bag ".
    assert not tokenizers_agree(old, side(bagged, TITLES[1:4]))
    assert tokenizers_agree(side(fast(), HARD_TITLES), side(bagged, HARD_TITLES))
