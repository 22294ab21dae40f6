"""Item ids that are strings: lookups, filters, files, live catalogs and searches take and give them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gentrie import ItemFilter, LiveCatalog, TokenTrie, TrieMatcher
from gentrie._item_names import ItemNames

ROWS = [[5, 6], [5, 7], [8], [8], [9, 5]]
ASINS = ["B07", "a1", "Ü-9", "B01", "B07"]


def build(item_ids: Any = ASINS, rows: Any = ROWS, **options: Any) -> TokenTrie:
    return TokenTrie.from_sequences(rows, vocab_size=40, end_token_id=4, item_ids=item_ids, **options)


def test_lookups_give_them_back():
    trie = build()
    assert trie.resolve([5, 6]).tolist() == ["B07"]
    assert trie.resolve([8, 4]).tolist() == ["B01", "Ü-9"]
    assert trie.resolve([5]).tolist() == []
    assert sorted(trie.items_below(trie.walk([5]))) == ["B07", "a1"]
    assert trie.to_sequences()[2].tolist() == ["B07", "a1", "B01", "Ü-9", "B07"]
    assert trie.collisions()[2].tolist() == ["B01", "Ü-9"]
    assert trie.num_items == 5
    assert trie.nbytes_by_array["item_names"] > 0


@pytest.mark.parametrize("form", [tuple, np.array, lambda ids: np.array(ids, dtype=object), iter])
def test_any_column_of_strings(form: Any):
    assert build(form(ASINS)).fingerprint == build().fingerprint


def test_the_fingerprint_names_them_and_not_their_order():
    rows, ids = ROWS[::-1], ASINS[::-1]
    assert build(ids, rows).fingerprint == build().fingerprint
    others = [build([name.lower() for name in ASINS]), build(range(5)), build([2, 3, 4, 1, 2])]
    assert len({trie.fingerprint for trie in [build(), *others]}) == 4
    with pytest.raises(ValueError, match="belongs to the trie"):
        TrieMatcher(build(), item_filter=ItemFilter.all_items(others[0]))


def test_files_and_pickles_hold_them(tmp_path: Path):
    trie = build(metadata={"codebook": "v7"})
    trie.save(tmp_path / "x")
    loaded = TokenTrie.load(tmp_path / "x")
    loaded.verify()
    for other in (loaded, pickle.loads(pickle.dumps(loaded)), pickle.loads(pickle.dumps(build()))):
        assert other.fingerprint == trie.fingerprint
        assert other.resolve([8]).tolist() == ["B01", "Ü-9"]
    assert loaded.metadata == {"codebook": "v7"}
    with pytest.raises(ValueError, match="string_item_ids"):
        trie.save(tmp_path / "y", {"string_item_ids": "a"})


@pytest.mark.parametrize(
    ("table", "part"), [("B07\nB01\na1\nÜ-9", "not ascending at 0"), ("B01\nB07", "the table has 2")]
)
def test_a_table_that_does_not_fit(table: str, part: str):
    trie = build()
    trie._item_names = ItemNames(table)
    with pytest.raises(ValueError, match=part):
        trie.verify()
    if "B01" in table[:3]:
        with pytest.raises(ValueError, match="outside the table of 2 item ids"):
            trie.items_below(0)


def test_filters():
    trie = build()
    some = ItemFilter.from_item_ids(trie, {"B07", "Ü-9", "unknown", "zz"})
    assert sorted(some.items_below(0)) == ["B07", "B07", "Ü-9"]
    assert some.resolve([8]).tolist() == ["Ü-9"]
    assert sorted(some.deny(["Ü-9", "none"]).items_below(0)) == ["B07", "B07"]
    assert sorted((~some).items_below(0)) == ["B01", "a1"]
    assert ItemFilter.from_item_ids(trie, []).num_items == 0
    matcher = TrieMatcher(trie, item_filter=["B01", "a1"])
    assert matcher.get_allowed_tokens().tolist() == [5, 8]
    many = [f"item {number:05}" for number in range(2500)]
    wide = build(many, [[5 + number // 50 % 30, 5 + number % 30, 5 + number // 1500] for number in range(2500)])
    for ids in (many[7::2], many[7:900:2]):
        assert ItemFilter.from_item_ids(wide, [*ids, "absent"]).num_items == len(ids)


def test_a_live_catalog():
    catalog = LiveCatalog(build(), filters={"some": ["B07", "a1"]})
    catalog.remove(["B07", "later"])
    assert catalog.current.filters["some"].items_below(0).tolist() == ["a1"]
    catalog.swap(build([*ASINS, "later"], [*ROWS, [20]]))  # other numbers, the same strings
    assert sorted(catalog.current.allowed.items_below(0)) == ["B01", "a1", "Ü-9"]
    catalog.restore(["later"])
    assert sorted(catalog.current.allowed.items_below(0)) == ["B01", "a1", "later", "Ü-9"]
    with pytest.raises(TypeError, match=r"item_ids\[0\]=3 is a int"):
        catalog.remove([3])
    with pytest.raises(TypeError, match="dtype"):
        catalog.swap(build(range(5)))
    assert catalog.stats().num_removed == 1


@pytest.mark.parametrize(
    ("item_ids", "kind", "part"),
    [
        (["a", 1, "b", "c", "d"], TypeError, r"item_ids\[1\]=1 is a int"),
        (["a", None, "b", "c", "d"], TypeError, r"item_ids\[1\]=None"),
        (["a", "", "b", "c", "d"], ValueError, r"item_ids\[1\]='' is empty"),
        (["a", "b\n", "b", "c", "d"], ValueError, r"item_ids\[1\]='b\\n'"),
        (["a", "\ud800", "b", "c", "d"], ValueError, r"item_ids\[1\].*surrogate"),
        (["a", "b"], ValueError, "item_ids has 2 entries, sequences has 5 rows"),
        ("abcde", TypeError, "item_ids is a str"),
    ],
)
def test_bad_ids_are_named(item_ids: Any, kind: type[Exception], part: str):
    with pytest.raises(kind, match=part):
        build(item_ids)


def test_what_needs_integers_says_so():
    trie = build()
    for wrong in ([0, 1], "B07"):
        with pytest.raises(TypeError, match="item_ids"):
            ItemFilter.from_item_ids(trie, wrong)
    for wrong in (np.ones(5, dtype=bool), [True] * 5):
        with pytest.raises(TypeError, match=r"a mask by item id.*are strings"):
            TrieMatcher(trie, item_filter=wrong)
    with pytest.raises(TypeError, match="integers"):
        ItemFilter.from_item_ids(build(range(5)), ["B07"])
    with pytest.raises(TypeError, match="integers here"):
        TokenTrie.from_chunks([(ROWS, ASINS)], vocab_size=40, end_token_id=4, with_item_ids=True)


def test_semantic_ids_with_suffixes():
    codes, ids = np.array([[0, 1], [2, 3], [0, 1]]), ["z", "b", "a"]
    trie = TokenTrie.from_semantic_ids(codes, token_ids=(5, 4), vocab_size=40, item_ids=ids, on_collision="suffix")
    assert trie.resolve([5, 10, 13]).tolist() == ["a"]
    assert trie.resolve([5, 10, 14]).tolist() == ["z"]
    with pytest.raises(ValueError, match="items a and z"):
        TokenTrie.from_semantic_ids(codes, token_ids=(5, 4), vocab_size=40, item_ids=ids, on_collision="error")


def test_titles_with_metadata():
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"a": 0, "b": 1, "c": 2}, unk_token="c")
    tokenizer, options = tokenizers.Tokenizer(model), {"item_ids": ["z", "y", "x"], "metadata": {"codebook": "v7"}}
    trie = TokenTrie.from_titles(["a", "b", "c"], tokenizer, **options)
    assert trie.resolve([1]).tolist() == ["y"]
    assert trie.metadata["codebook"] == "v7"
    assert trie.metadata["template"] == "{title}"
    with pytest.raises(ValueError, match=r"metadata\['template'\]: this key is set by gentrie"):
        TokenTrie.from_titles(["a"], tokenizer, metadata={"template": "x"})
    with pytest.raises(ValueError, match=r"titles\[1\]='d' and titles\[0\]='c'"):
        TokenTrie.from_titles(["c", "d", "a"], tokenizer, on_collision="error", **options)


def test_searches_return_them():
    torch = pytest.importorskip("torch")
    from gentrie.generation import BeamStepper

    trie = build()
    for item_filter, expected in ((None, {"B07", "a1", "B01", "Ü-9"}), (["a1", "Ü-9"], {"a1", "Ü-9"})):
        stepper = BeamStepper(trie, beam_width=4)
        stepper.add_request(0, item_filter=item_filter)
        while len(rows := stepper.rows()):
            stepper.step(torch.zeros(int(rows.logit_counts.sum()), 40))
        assert {item for items in stepper.pop_result(0).item_ids for item in items.tolist()} == expected
