"""Bad input of the trie's builders and lookups is refused by argument, row, value and limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gentrie import ItemFilter, TokenTrie

MASKED = np.ma.masked_array([1, 2], mask=[False, True])
VALUES = np.array([1, 2, 3, 4])


def build(sequences: Any = ((1, 2), (3,)), vocab_size: Any = 10, **options: Any) -> TokenTrie:
    return TokenTrie.from_sequences(sequences, vocab_size=vocab_size, **options)


def refused(kind: type[Exception], parts: list[str], call: Any, *args: Any, **options: Any) -> None:
    with pytest.raises(kind) as error:
        call(*args, **options)
    for part in parts:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("sequences", "options", "kind", "parts"),
    [
        ([], {}, ValueError, []),
        (np.zeros((0, 3), dtype=np.int64), {}, ValueError, []),
        (np.zeros((3, 0), dtype=np.int64), {}, ValueError, ["0"]),
        ([[1], [], [2]], {}, ValueError, ["1"]),
        ([[1], [2.0]], {}, TypeError, ["sequences[1][0]", "2.0"]),
        ([[1], [2, "3"]], {}, TypeError, ["sequences[1][1]", "'3'"]),
        ([[1], [2, None]], {}, TypeError, ["sequences[1][1]", "None"]),
        ([[1], [2, True]], {}, TypeError, ["sequences[1][1]", "True"]),
        ([[1], [[2, 3], [4]]], {}, TypeError, ["sequences[1][0]"]),
        ([[1], 5], {}, TypeError, ["sequences[1]", "int"]),
        ([[1], None], {}, TypeError, ["sequences[1]", "NoneType"]),
        (["ab"], {}, TypeError, ["sequences[0][0]", "'a'"]),
        ("abc", {}, TypeError, ["sequences", "str"]),
        ({1: [2]}, {}, TypeError, ["sequences", "dict"]),
        (7, {}, TypeError, ["sequences", "int"]),
        (np.ones((2, 2)), {}, TypeError, ["sequences", "float64"]),
        (np.ones((2, 2), dtype=bool), {}, TypeError, ["sequences", "bool"]),
        (np.ones(3, dtype=np.int64), {}, ValueError, ["sequences", "(3,)"]),
        (np.ones((1, 1, 1), dtype=np.int64), {}, ValueError, ["sequences", "(1, 1, 1)"]),
        (np.array([[1], [2**63]], dtype=np.uint64), {}, ValueError, ["sequences[1]", str(2**63)]),
        ([[1, 2], [3, 10]], {}, ValueError, ["1", "10"]),
        ([[1, 2], [3, -1]], {}, ValueError, ["1", "-1", "10"]),
        ([[1, 2], [3, 2**40]], {}, ValueError, ["1", str(2**40), "10"]),
        ([[1, 2], [3, 9, 4]], {"end_token_id": 9}, ValueError, ["1", "9"]),
        ([[1, 2, 3], [4], [1, 2]], {}, ValueError, ["0", "2", "prefix"]),
        ((VALUES, np.array([0, 3, 2, 4])), {}, ValueError, ["indptr"]),
        ((VALUES, np.array([1, 4])), {}, ValueError, ["indptr"]),
        ((VALUES, np.array([0, 3])), {}, ValueError, ["indptr"]),
        ((VALUES, np.array([0, 5])), {}, ValueError, ["indptr"]),
        ((VALUES, np.array([0.0, 4.0])), {}, TypeError, ["indptr", "float64"]),
        ((VALUES, np.array([], dtype=np.int64)), {}, ValueError, ["indptr"]),
        ((VALUES, np.array([[0, 4]])), {}, ValueError, ["indptr", "(1, 2)"]),
        ((VALUES.reshape(2, 2), np.array([0, 4])), {}, ValueError, ["values", "(2, 2)"]),
        ([[1], [2]], {"item_ids": [1]}, ValueError, ["item_ids", "1", "2"]),
        ([[1], [2]], {"item_ids": ["a", 2]}, TypeError, ["item_ids[1]=2", "strings"]),
        ([[1], [2]], {"item_ids": [1.0, 2.0]}, TypeError, ["item_ids", "float64"]),
        ([[1], [2]], {"item_ids": np.zeros((2, 1), dtype=np.int64)}, ValueError, ["item_ids", "(2, 1)"]),
        ([[1]], {"item_ids": np.array([2**63], dtype=np.uint64)}, ValueError, ["item_ids", str(2**63)]),
        ([[1], [2]], {"item_ids": [True, 5]}, TypeError, ["item_ids[0]=True", "bool"]),
        ([[1], [2]], {"item_ids": MASKED}, TypeError, ["item_ids", "masked array", "1 entries"]),
        (np.ma.masked_array([[1], [2]], mask=[[0], [1]]), {}, TypeError, ["sequences", "masked array"]),
        ([[1]], {"metadata": {"n": 3}}, TypeError, ["metadata['n']=3"]),
        ([[1]], {"metadata": {"gentrie.x": "3"}}, ValueError, ["metadata['gentrie.x']"]),
        ([[1]], {"metadata": {"n": "\ud800"}}, ValueError, ["metadata['n']", "surrogate"]),
        ([[1]], {"num_threads": 0}, ValueError, ["num_threads=0", "1"]),
        ([[1]], {"num_threads": 1.0}, TypeError, ["num_threads=1.0"]),
        ([[1]], {"vocab_size": 0}, ValueError, ["vocab_size=0"]),
        ([[1]], {"vocab_size": 2**31}, ValueError, [f"vocab_size={2**31}"]),
        ([[1]], {"vocab_size": True}, TypeError, ["vocab_size=True"]),
        ([[1]], {"end_token_id": 10}, ValueError, ["end_token_id=10", "9"]),
        ([[1]], {"end_token_id": -1}, ValueError, ["end_token_id=-1"]),
    ],
)
def test_builds_refused(sequences: Any, options: dict[str, Any], kind: type[Exception], parts: list[str]):
    refused(kind, parts, build, sequences, **options)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("bad", ["outside", "empty", "end"])
def test_the_first_bad_row_is_named_whatever_the_threads(bad: str, num_threads: int):
    rows = [[i % 90 + 1, i // 90 + 1] for i in range(8000)]
    for row in (3071, 3072, 5555, 7999):
        rows[row] = {"outside": [5, 1000], "empty": [], "end": [5, 99]}[bad]
    with pytest.raises(ValueError, match=r"\b3071\b"):
        build(rows, vocab_size=100, end_token_id=99, num_threads=num_threads)


@pytest.mark.parametrize(
    ("codes", "token_ids", "kind", "parts"),
    [
        ([[0, 1], [1, 3]], (2, 3), ValueError, ["codes[1", "1", "3"]),
        ([[0, 1], [-1, 2]], (2, 3), ValueError, ["codes[1", "0", "-1", "3"]),
        ([[0, 1], [0, 2]], [[1, 2], [3, 4]], ValueError, ["codes[1", "1", "2"]),
        ([0, 1], (2, 3), ValueError, ["codes", "(2,)"]),
        ([[0.5, 1.0]], (2, 3), TypeError, ["codes", "float64"]),
        ([[0, 1]], [[1, 2]], ValueError, ["token_ids", "(1, 2)"]),
        ([[0, 1]], [[1.0], [2.0]], TypeError, ["token_ids", "float64"]),
        ([[True, 1]], (2, 3), TypeError, ["codes[0][0]=True"]),
        (np.ma.masked_array([[0, 1]], mask=[[0, 1]]), (2, 3), TypeError, ["codes", "masked array"]),
        ([[0, 1]], (-1, 3), ValueError, ["token_ids[0]=-1"]),
        ([[0, 1]], (2, 0), ValueError, ["token_ids[1]=0"]),
        ([[0, 1]], (8, 3), ValueError, ["12", "10"]),
    ],
)
def test_semantic_ids_refused(codes: Any, token_ids: Any, kind: type[Exception], parts: list[str]):
    refused(kind, parts, TokenTrie.from_semantic_ids, codes, token_ids=token_ids, vocab_size=10)


@pytest.mark.parametrize("wrong", [[[1]], "items.safetensors", None])
def test_the_constructor_names_the_builders(wrong: Any):
    refused(TypeError, ["from_sequences", "TokenTrie.load", type(wrong).__name__], TokenTrie, wrong)


def test_filters_refused():
    trie = build()
    refused(TypeError, ["item_ids", "masked array"], ItemFilter.from_item_ids, trie, MASKED)
    refused(TypeError, ["item_ids[1]=True"], ItemFilter.from_item_ids, trie, [0, True])
    refused(TypeError, ["mask", "masked array"], ItemFilter.from_mask, trie, MASKED.astype(bool))
    for make in (ItemFilter.from_item_ids, ItemFilter.from_mask, ItemFilter.from_leaf_order):
        refused(TypeError, ["trie is a str", "TokenTrie.load"], make, "items.safetensors", [0])
    refused(TypeError, ["trie is a str", "TokenTrie.load"], ItemFilter.all_items, "items.safetensors")


@pytest.mark.parametrize(
    ("titles", "kind", "parts"),
    [
        (["a", ""], ValueError, ["1"]),
        (["a", None], ValueError, ["1", "NoneType"]),
        (["a", 3], ValueError, ["1", "int"]),
        ([], ValueError, []),
    ],
)
def test_titles_refused(titles: Any, kind: type[Exception], parts: list[str]):
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    refused(kind, parts, TokenTrie.from_titles, titles, tokenizer)


@pytest.mark.parametrize(
    ("verb", "arguments", "kind", "parts"),
    [
        ("resolve", ([1.5],), TypeError, ["float64"]),
        ("resolve", ([[1, 2]],), ValueError, ["(1, 2)"]),
        ("resolve", (["a"],), TypeError, ["integers"]),
        ("advance_batch", ([0, 0], [1]), ValueError, ["states", "tokens"]),
        ("advance_batch", ([0, 10**6], [1, 1]), ValueError, ["states[1]", "1000000"]),
        ("advance_batch", ([0, -3], [1, 1]), ValueError, ["states[1]", "-3"]),
        ("advance_batch", ([0.0], [1]), TypeError, ["states", "float64"]),
        ("advance_batch", ([0], [1.0]), TypeError, ["tokens", "float64"]),
        ("next_tokens_batch", ([0, 10**6],), ValueError, ["states[1]", "1000000"]),
        ("advance", (0, 1.0), TypeError, ["token=1.0"]),
        ("advance", (True, 1), TypeError, ["state=True"]),
        ("advance", (10**6, 1), ValueError, ["1000000"]),
        ("token_states", ([[1.0]],), TypeError, ["token_ids", "float64"]),
        ("token_states", (3,), ValueError, ["token_ids", "()"]),
    ],
)
def test_lookups_refused(verb: str, arguments: tuple[Any, ...], kind: type[Exception], parts: list[str]):
    refused(kind, parts, getattr(build(), verb), *arguments)
