"""Synthetic catalogs, their tokenizers and users, and catalogs read from files."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from gentrie import TokenTrie, datasets
from gentrie.datasets import Catalog, HistorySplit
from gentrie.datasets import tokenizer as tokenizer_module
from gentrie.statistics import CatalogStatistics, common_prefix_lengths

REAL_TOY = Path(__file__).resolve().parents[3] / "shared" / "data" / "toy" / "catalog.jsonl"


class Shape(NamedTuple):
    """What titles look like as a trie, tokens counted with the end token."""

    items: int
    tokens: float
    forced: float
    branching: float
    valid: float


# Items and tokens of RecLM-cgen's Table A2, and the shape of real titles of these lengths: of the Amazon Toys
# titles (11,758) the shortest, or for toys the longest, that have this mean, in 4,096 tokens trained on all of
# them; the rows "real, whole" of `python benchmarks/catalog_shapes.py --real CATALOG.jsonl`.
PAPER = {"steam": (11_726, 6.0), "movies": (34_452, 10.1), "toys": (49_985, 16.3)}
REAL = {
    "steam": Shape(2_326, 6.0, 0.586, 2.48, 58),
    "movies": Shape(9_763, 10.1, 0.667, 3.36, 49),
    "toys": Shape(6_389, 16.3, 0.792, 3.40, 30),
}
# The same with mistral-common's tekken (131,072 tokens), where the synthetic titles have 7.2, 11.4 and 20.9.
REAL_TEKKEN = {"steam": 0.622, "movies": 0.681, "toys": 0.827}

LARGE_ARE_SLOW = pytest.mark.parametrize(
    "name", ["steam", *(pytest.param(name, marks=pytest.mark.slow) for name in ("movies", "toys"))]
)


@cache
def catalog(name: str) -> Catalog:
    return datasets.load(name)


@cache
def tokenizer(name: str) -> PreTrainedTokenizerFast:
    return catalog(name).train_tokenizer()


@cache
def rows(name: str) -> list[np.ndarray]:
    values, indptr = catalog(name).token_sequences(tokenizer(name))
    return np.split(values, indptr[1:-1])


def trie_of(sequences: list[np.ndarray], vocab_size: int) -> TokenTrie:
    return TokenTrie.from_sequences(
        [row.tolist() for row in sequences], vocab_size=vocab_size + 1, end_token_id=vocab_size
    )


def shape_of(trie: TokenTrie) -> Shape:
    found = CatalogStatistics.of(trie)
    return Shape(
        found.items,
        found.tokens_per_item,
        found.forced_share,
        found.branching_tokens_per_item,
        found.mean_valid_tokens,
    )


def digest(values: Any) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------------------ titles


@pytest.mark.parametrize(
    ("name", "expected"),
    [("steam", "540c008a4d07ab86"), ("movies", "51b9ca3ce2be3cf6"), ("toys", "e7e7dd8499a6fa3b")],
)
def test_titles_are_the_same_everywhere(name: str, expected: str) -> None:
    assert digest(catalog(name).titles) == expected


@pytest.mark.parametrize("name", datasets.NAMES)
def test_fewer_items_are_the_first_ones(name: str) -> None:
    assert datasets.load(name, num_items=500).titles == catalog(name).titles[:500]


def test_another_seed_gives_other_titles() -> None:
    first, second = datasets.load("steam", num_items=500), datasets.load("steam", num_items=500, seed=1)
    assert len(set(first.titles) & set(second.titles)) < 100


@pytest.mark.parametrize("name", datasets.NAMES)
def test_titles_look_like_those_of_a_store(name: str) -> None:
    titles = catalog(name).titles
    assert len(titles) == PAPER[name][0]
    assert catalog(name).item_ids.tolist() == list(range(len(titles)))
    assert all(title.isascii() and title.isprintable() and title == title.strip() for title in titles)
    # The Amazon Toys titles repeat in 0.5% of the items, and 1.2% of them are prefixes of others.
    assert 0.003 < 1 - len(set(titles)) / len(titles) < 0.007
    distinct = sorted(set(titles))
    prefixes = sum(longer.startswith(title) for title, longer in itertools.pairwise(distinct))
    assert 0.005 < prefixes / len(distinct) < 0.06


def test_toys_have_html_entities_as_scraped_titles_do() -> None:
    titles = catalog("toys").titles
    assert 0.02 < np.mean(["&amp;" in title for title in titles]) < 0.25
    assert 0.02 < np.mean(["&quot;" in title for title in titles]) < 0.25


# ------------------------------------------------------------------------------------------------- shape


@LARGE_ARE_SLOW
def test_shape_is_that_of_real_titles_of_the_same_length(name: str) -> None:
    trie = trie_of(rows(name), len(tokenizer(name)))
    whole, real = shape_of(trie), REAL[name]
    assert (whole.items, whole.tokens) == (PAPER[name][0], pytest.approx(PAPER[name][1], rel=0.01))
    assert whole.forced == pytest.approx(real.forced, abs=0.05)
    assert whole.branching == pytest.approx(real.branching, abs=0.4)

    # Fewer titles make a more forced trie, so the same number of items is compared too.
    chosen = np.random.RandomState(0).permutation(whole.items)[: real.items]
    part = shape_of(trie_of([rows(name)[i] for i in chosen], len(tokenizer(name))))
    assert part.forced == pytest.approx(real.forced, abs=0.05)
    assert part.branching == pytest.approx(real.branching, abs=0.4)
    assert real.valid / 2 < part.valid < real.valid * 2


@LARGE_ARE_SLOW
def test_forced_share_is_that_of_real_titles_under_a_large_tokenizer(name: str) -> None:
    mistral = pytest.importorskip("mistral_common.tokens.tokenizers.mistral")
    tekken = mistral.MistralTokenizer.v3(is_tekken=True)
    trie = TokenTrie.from_titles(catalog(name).titles, tekken, end_token_id=2)
    assert shape_of(trie).forced == pytest.approx(REAL_TEKKEN[name], abs=0.05)


@LARGE_ARE_SLOW
def test_shape_hardly_depends_on_the_seed(name: str) -> None:
    other = datasets.load(name, seed=1)
    own = other.train_tokenizer()
    values, indptr = other.token_sequences(own)
    found = shape_of(trie_of(np.split(values, indptr[1:-1]), len(own)))
    assert found.tokens == pytest.approx(PAPER[name][1], rel=0.02)
    assert found.forced == pytest.approx(REAL[name].forced, abs=0.05)


# --------------------------------------------------------------------------------------------- tokenizer


@LARGE_ARE_SLOW
def test_tokenizer_gives_every_title_back(name: str) -> None:
    own, titles = tokenizer(name), catalog(name).titles
    assert isinstance(own, PreTrainedTokenizerFast)
    assert len(own) == tokenizer_module.VOCAB_SIZE
    assert (own.pad_token_id, own.bos_token_id, own.eos_token_id) == (0, 1, 2)
    encoded = own(titles)["input_ids"]
    assert own.batch_decode(encoded) == titles
    assert min(map(min, encoded)) > own.eos_token_id


def test_tokenizer_encodes_what_no_title_holds() -> None:
    text = 'caf\u00e9 \u6f22\u5b57 \U0001f9e9 "quoted"\n\ttabs  and  spaces '
    own = tokenizer("steam")
    assert own.decode(own(text)["input_ids"]) == text


def test_training_is_deterministic() -> None:
    titles = datasets.load("steam", num_items=2000)
    first, second = titles.train_tokenizer(1000), titles.train_tokenizer(1000)
    assert len(first) == 1000
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_tokenizer_without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "find_spec", lambda name: None)
    own = datasets.load("steam", num_items=100).train_tokenizer(500)
    assert isinstance(own, tokenizers.Tokenizer)
    assert [own.token_to_id(token) for token in ("<pad>", "<bos>", "<eos>")] == [0, 1, 2]


def test_vocabulary_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least 259.* got 258"):
        catalog("steam").train_tokenizer(258)


def test_few_titles_give_few_tokens() -> None:
    own = Catalog("tiny", ["Go", "Go on"]).train_tokenizer(4096)
    assert 259 < len(own) < 300


# --------------------------------------------------------------------------------------- token sequences


def test_token_sequences_are_the_tokens_of_the_titles() -> None:
    encoded = tokenizer("steam")(catalog("steam").titles)["input_ids"]
    assert [row.tolist() for row in rows("steam")] == encoded


def test_token_sequences_spread_over_a_larger_vocabulary() -> None:
    own = tokenizer("steam")
    plain, plain_indptr = catalog("steam").token_sequences(own)
    spread, indptr = catalog("steam").token_sequences(own, vocab_size=131_072)
    assert (spread.dtype, indptr.dtype) == (np.int32, np.int64)
    assert np.array_equal(indptr, plain_indptr)
    assert spread.max() > 120_000
    assert spread.max() < 131_070
    # One to one and in the same order.
    pairs = np.unique(np.stack([plain, spread], axis=1), axis=0)
    assert len(pairs) == np.unique(plain).size == np.unique(spread).size
    assert (np.diff(pairs[:, 1]) > 0).all()


def test_token_sequences_fill_the_smallest_vocabulary() -> None:
    own = tokenizer("steam")
    plain, _ = catalog("steam").token_sequences(own)
    spread, _ = catalog("steam").token_sequences(own, vocab_size=len(own) + 2)
    assert np.array_equal(plain, spread)
    with pytest.raises(ValueError, match=r"vocab_size must be at least 4098.* got 4097"):
        catalog("steam").token_sequences(own, vocab_size=len(own) + 1)


def test_every_title_leads_to_its_items() -> None:
    own = tokenizer("steam")
    trie = TokenTrie.from_titles(catalog("steam").titles, own, end_token_id=own.eos_token_id)
    items_of = defaultdict(list)
    for item, title in enumerate(catalog("steam").titles):
        items_of[title].append(item)
    for row, title in zip(rows("steam"), catalog("steam").titles, strict=True):
        assert trie.resolve(row).tolist() == items_of[title]


def test_titles_that_are_prefixes_of_others_stay_apart() -> None:
    values, indptr, _, _ = trie_of(rows("steam"), len(tokenizer("steam"))).to_sequences()
    shared = common_prefix_lengths(values, indptr)
    assert (shared == np.diff(indptr)[:-1] - 1).any() or (shared == np.diff(indptr)[1:] - 1).any()


# --------------------------------------------------------------------------------------------- histories


@cache
def split() -> HistorySplit:
    return datasets.load("steam", num_items=2000).histories(5000)


def test_histories_are_the_same_everywhere() -> None:
    found = datasets.load("steam", num_items=2000).histories(20, seed=3)
    assert digest([part.tolist() for pair in found for part in pair]) == "fc5cbdc187f6ecc8"


def test_histories_hold_items_once_and_never_the_target() -> None:
    train, test = split()
    assert train.items.shape == (4500, 10)
    assert test.items.shape == (500, 10)
    for items, targets in (train, test):
        assert items.dtype == targets.dtype == np.int64
        bought = np.column_stack([items, targets])
        assert bought.min() >= 0
        assert bought.max() < 2000
        ordered = np.sort(bought, axis=1)
        assert (np.diff(ordered, axis=1) > 0).all()


def test_histories_give_item_ids_not_rows() -> None:
    titles = datasets.load("steam", num_items=300).titles
    plain = Catalog("a", titles).histories(50)
    shifted = Catalog("a", titles, np.arange(300) * 7 + 1000).histories(50)
    assert np.array_equal(shifted.train.items, plain.train.items * 7 + 1000)
    assert np.array_equal(shifted.test.targets, plain.test.targets * 7 + 1000)


def test_next_item_is_foretold_better_by_what_follows_what_than_by_popularity() -> None:
    train, test = split()
    bought = np.column_stack(train)
    popular = [item for item, _ in Counter(bought.ravel().tolist()).most_common(5)]
    following: dict[int, Counter[int]] = defaultdict(Counter)
    for before, after in zip(bought[:, :-1].ravel().tolist(), bought[:, 1:].ravel().tolist(), strict=True):
        following[before][after] += 1
    by_popularity = np.isin(test.targets, popular).mean()
    by_following = np.mean(
        [
            target in [item for item, _ in following[last].most_common(5)]
            for last, target in zip(test.items[:, -1].tolist(), test.targets.tolist(), strict=True)
        ]
    )
    assert by_popularity < 0.05
    assert 0.5 < by_following < 0.95


def test_a_user_may_buy_almost_everything() -> None:
    found = Catalog("tiny", [f"Item {i}" for i in range(6)]).histories(4, length=5, test_share=0.5)
    for row in np.column_stack(found.train).tolist() + np.column_stack(found.test).tolist():
        assert sorted(row) == list(range(6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_users": 1}, r"num_users must be at least 2, got 1"),
        ({"num_users": 5, "length": 0}, r"length must be at least 1, got 0"),
        ({"num_users": 5, "length": 50}, r"length must be below the number of items, 50, .* got 50"),
        ({"num_users": 5, "test_share": 1.0}, r"test_share must be between 0 and 1, got 1.0"),
        ({"num_users": 5, "seed": -1}, r"seed must not be negative, got -1"),
    ],
)
def test_bad_history_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.load("steam", num_items=50).histories(**arguments)


# ---------------------------------------------------------------------------------------- catalogs as such


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "books"}, r"name must be one of steam, movies, toys, got 'books'"),
        ({"name": "steam", "num_items": 0}, r"num_items must be in \[1, 11726\] for 'steam', got 0"),
        ({"name": "steam", "num_items": 11_727}, r"num_items must be in .* got 11727"),
        ({"name": "steam", "seed": -1}, r"seed must not be negative, got -1"),
    ],
)
def test_bad_load_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        datasets.load(**arguments)


@pytest.mark.parametrize(
    ("titles", "item_ids", "error", "message"),
    [
        ([], None, ValueError, r"titles is empty"),
        ("title", None, TypeError, r"got one string"),
        (["a", ""], None, ValueError, r"titles\[1\] is empty"),
        (["a", 7], None, TypeError, r"titles\[1\] must be a string, got int: 7"),
        (["a", "b"], [1], ValueError, r"item_ids must have shape \(2,\), .* got \(1,\)"),
        (["a", "b"], ["1", "2"], TypeError, r"item_ids must be integers"),
        (["a", "b", "c"], [4, 9, 4], ValueError, r"item_ids\[2\] = 4 repeats item_ids\[0\]"),
    ],
)
def test_bad_catalogs_are_refused(titles: Any, item_ids: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Catalog("bad", titles, item_ids)


def test_catalog_from_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "shop" / "catalog.jsonl"
    path.parent.mkdir()
    lines = [{"item_id": 7, "title": 'Two\nlines & "quotes"'}, {"item_id": -3, "title": "A", "price": 5}]
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    found = Catalog.from_jsonl(path)
    assert (found.name, len(found), repr(found)) == ("shop", 2, "Catalog('shop', 2 items)")
    assert found.titles == ['Two\nlines & "quotes"', "A"]
    assert found.item_ids.tolist() == [7, -3]
    assert Catalog.from_jsonl(str(path), name="other").name == "other"


@pytest.mark.parametrize(
    ("second_line", "message"),
    [
        ("{", r"catalog.jsonl, line 2 is not JSON"),
        ("[1]", r"line 2 must be a JSON object"),
        ('{"item_id": 2}', r"line 2 has no field 'title'"),
        ('{"item_id": "2", "title": "B"}', r"line 2: item ids must be integers, got '2'"),
        ('{"item_id": true, "title": "B"}', r"line 2: item ids must be integers, got True"),
        (
            '{"item_id": 9223372036854775808, "title": "B"}',
            r"line 2: item id 9223372036854775808 does not fit in 64 bits",
        ),
        ('{"item_id": 2, "title": ""}', r"line 2: the title must be a non-empty string, got ''"),
        ('{"item_id": 2, "title": null}', r"line 2: the title must be a non-empty string, got None"),
        ('{"item_id": 1, "title": "B"}', r"item_ids\[1\] = 1 repeats item_ids\[0\]"),
    ],
)
def test_bad_json_lines_are_refused(tmp_path: Path, second_line: str, message: str) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_text('{"item_id": 1, "title": "A"}\n' + second_line)
    with pytest.raises(ValueError, match=message):
        Catalog.from_jsonl(path)


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "catalog.jsonl"
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no title"):
        Catalog.from_jsonl(path)
    with pytest.raises(FileNotFoundError):
        Catalog.from_jsonl(tmp_path / "absent.jsonl")


def test_real_catalog() -> None:
    if not REAL_TOY.is_file():
        pytest.skip("needs the real catalogs beside the project")
    toy = Catalog.from_jsonl(REAL_TOY)
    own = toy.train_tokenizer()
    assert (toy.name, len(toy)) == ("toy", 11_758)
    assert own.batch_decode(own(toy.titles)["input_ids"]) == toy.titles
    assert toy.histories(10).train.items.shape == (9, 10)


def test_importing_datasets_is_light() -> None:
    heavy = "{'torch', 'transformers', 'tokenizers'}"
    subprocess.run(
        [sys.executable, "-c", f"import sys, gentrie.datasets; assert not {heavy} & set(sys.modules)"],
        check=True,
    )
