"""ItemFilter against sets of item ids."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from histories import Case, cases
from hypothesis import given
from oracle import Oracle
from strategies import Catalog, catalogs, examples

from gentrie import ItemFilter, TokenTrie, TrieMatcher, prefix_allowed_tokens_fn

TRIE = TokenTrie.from_sequences([[5, 6], [5, 7], [5, 7], [8]], vocab_size=10, item_ids=[3, 1, 2, 9])


def every_item(oracle: Oracle) -> list[int]:
    return sorted({item for items in oracle.items.values() for item in items})


def subsets(oracle: Oracle) -> st.SearchStrategy[set[int]]:
    """Some of the items, and now and then one that the catalog lacks."""
    return st.sets(st.sampled_from([*every_item(oracle), 77, -(2**50), 2**62]))


def assert_allows(item_filter: ItemFilter, oracle: Oracle, allowed: set[int]) -> None:
    """Every place of the trie holds what of it is in ``allowed``."""
    trie = item_filter.trie
    left = {tokens: items & allowed for tokens, items in oracle.items.items()}
    assert item_filter.num_items == sum(map(len, left.values()))
    assert item_filter.num_sequences == sum(map(bool, left.values()))
    prefixes = oracle.prefixes()
    states = [trie.walk(prefix) for prefix in prefixes]
    counts = item_filter.num_sequences_below_batch([*states, -1, -2])
    tokens, indptr = item_filter.next_tokens_batch([*states, -1, -2])
    assert counts[-2:].tolist() == np.diff(indptr)[-2:].tolist() == [0, 0]
    for i, (prefix, state) in enumerate(zip(prefixes, states, strict=True)):
        below = [sequence for sequence in oracle.numbered(prefix) if left[sequence]]
        assert counts[i] == len(below)
        assert item_filter.items_below(state).tolist() == [item for s in below for item in sorted(left[s])]
        expected = sorted({s[len(prefix)] for s in below if len(s) > len(prefix)})
        assert tokens[indptr[i] : indptr[i + 1]].tolist() == expected
        assert item_filter.resolve(prefix).tolist() == [i for i in oracle.resolve(prefix) if i in allowed]


@given(catalogs(), st.data())
@examples(60)
def test_item_ids(catalog: Catalog, data: st.DataObject):
    oracle, trie = catalog.oracle(), catalog.build()
    allowed = data.draw(subsets(oracle))
    item_filter = ItemFilter.from_item_ids(trie, allowed, name="shop")
    assert_allows(item_filter, oracle, allowed)
    assert "shop" in repr(item_filter)
    assert_allows(ItemFilter.all_items(trie), oracle, set(every_item(oracle)))


@given(catalogs(min_item_id=0), st.data())
@examples(60)
def test_masks(catalog: Catalog, data: st.DataObject):
    oracle, trie = catalog.oracle(), catalog.build()
    allowed = data.draw(subsets(oracle))
    size = every_item(oracle)[-1] + 1 + data.draw(st.integers(0, 70))
    mask = np.isin(np.arange(size), sorted(allowed))
    assert_allows(ItemFilter.from_mask(trie, mask), oracle, allowed)
    in_leaf_order = np.isin(trie.items_below(trie.root), sorted(allowed))
    assert_allows(ItemFilter.from_leaf_order(trie, in_leaf_order, num_threads=2), oracle, allowed)


@given(catalogs(), st.data())
@examples(60)
def test_set_algebra(catalog: Catalog, data: st.DataObject):
    oracle, trie = catalog.oracle(), catalog.build()
    everything = set(every_item(oracle))
    drawn = [data.draw(subsets(oracle)) for _ in range(3)]
    pairs = [(ItemFilter.from_item_ids(trie, items), items & everything) for items in drawn]
    for _ in range(data.draw(st.integers(1, 5))):
        (a, items), (b, others) = data.draw(st.sampled_from(pairs)), data.draw(st.sampled_from(pairs))
        denied = data.draw(subsets(oracle))
        combined = [(a & b, items & others), (a | b, items | others), (a - b, items - others)]
        pairs.append(
            data.draw(st.sampled_from([*combined, (~a, everything - items), (a.deny(denied), items - denied)]))
        )
    assert_allows(pairs[-1][0], oracle, pairs[-1][1])


@given(catalogs(), st.data())
@examples(60)
def test_denied_items(catalog: Catalog, data: st.DataObject):
    oracle, trie = catalog.oracle(), catalog.build()
    allowed, first, second = (data.draw(subsets(oracle)) for _ in range(3))
    resident = ItemFilter.from_item_ids(trie, allowed)
    once = resident.deny(np.array(sorted(first), dtype=np.int64))
    assert_allows(once, oracle, allowed - first)
    assert_allows(once.deny(second), oracle, allowed - first - second)
    assert_allows(resident, oracle, allowed)


@given(catalogs(), st.data())
@examples(40)
def test_arrays_mean_what_they_say(catalog: Catalog, data: st.DataObject):
    oracle, trie = catalog.oracle(), catalog.build()
    allowed, denied = data.draw(subsets(oracle)), data.draw(subsets(oracle))
    arrays = ItemFilter.from_item_ids(trie, allowed).deny(denied).arrays()
    words, closed = arrays["leaf_words"].tolist(), arrays["closed_leaves"].tolist()
    assert not arrays["leaf_words"].flags.writeable
    assert closed == sorted(set(closed))

    def rank(leaf: int) -> int:
        word = words[leaf // 32]
        return (word >> 32) + (word & ((1 << leaf % 32) - 1)).bit_count() - sum(c < leaf for c in closed)

    left = [bool((oracle.items[sequence] & allowed) - denied) for sequence in oracle.numbered()]
    assert [rank(i + 1) - rank(i) for i in range(len(left))] == left
    resident = [bool(oracle.items[sequence] & allowed) for sequence in oracle.numbered()]
    assert [words[i // 32] >> i % 32 & 1 for i in range(len(left))] == resident


@given(cases(needs_eos=True), st.data())
@examples(80)
def test_matchers_and_histories_follow_it(case: Case, data: st.DataObject):
    torch = pytest.importorskip("torch")
    oracle = case.rules.oracle
    allowed = {item for items in case.rules.allowed_items.values() for item in items}
    denied = data.draw(subsets(oracle)) - allowed
    resident = ItemFilter.from_item_ids(case.trie, allowed | denied)
    arguments: dict[str, Any] = {**case.arguments, "item_filter": resident.deny(denied)}
    matcher, history = TrieMatcher(case.trie, **arguments), []
    rules = {"on_dead": "mask"} if case.is_triggered else {"on_dead": "mask", "prompt_length": 0}
    allowed_list = prefix_allowed_tokens_fn(case.trie, **arguments, **rules)
    for _ in range(12):
        expected = sorted(case.rules.allowed(history, case.catalog.vocab_size))
        assert matcher.get_allowed_tokens().tolist() == expected
        place, prefix, given_before = case.rules.read(history)
        closed = place == "dead" or (place == "item" and not case.rules.left(prefix, given_before))
        assert sorted(allowed_list(0, torch.tensor(history))) == ([] if closed else expected)
        if not expected:
            break
        history.append(data.draw(st.sampled_from(expected)))
        assert matcher.accept_token(history[-1])


@pytest.mark.parametrize("spread", [1, 7, 2**33])
def test_many_items_are_found_by_id(spread: int):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 12, (6000, 5))
    ids = (rng.integers(0, 3000, len(rows)) - 1000) * spread
    trie = TokenTrie.from_sequences(rows, vocab_size=12, item_ids=ids)
    chosen = rng.choice(ids, 900)
    by_id = ItemFilter.from_item_ids(trie, np.concatenate([chosen, chosen + 1]))
    items = trie.items_below(0)
    expected = items[np.isin(items, np.concatenate([chosen, chosen + 1]))]
    assert by_id.items_below(0).tolist() == expected.tolist()
    denied = ItemFilter.all_items(trie).deny(chosen)
    assert denied.items_below(0).tolist() == items[~np.isin(items, chosen)].tolist()
    assert (by_id & denied).items_below(0).tolist() == expected[~np.isin(expected, chosen)].tolist()


def test_threads_make_the_same_filter():
    rng = np.random.default_rng(1)
    trie = TokenTrie.from_sequences(np.arange(300_000).reshape(-1, 1), vocab_size=300_000)
    mask = rng.random(300_000) < 0.3
    one, two = (ItemFilter.from_mask(trie, mask, num_threads=n) for n in (1, 2))
    assert one.arrays()["leaf_words"].tolist() == two.arrays()["leaf_words"].tolist()
    assert two.num_sequences_below_batch([0]).tolist() == [int(mask.sum())]
    assert two.next_tokens_batch([0])[0].tolist() == np.flatnonzero(mask).tolist()


def test_rows_may_have_filters_of_different_kinds():
    torch = pytest.importorskip("torch")
    resident = ItemFilter.from_item_ids(TRIE, [1, 9])
    rows = [resident, resident.deny([9]), [3], np.isin(np.arange(10), [2]), None]
    allowed = prefix_allowed_tokens_fn(TRIE, prompt_length=0, item_filter=rows)
    found = [sorted(allowed(row, torch.zeros(0, dtype=torch.int64))) for row in range(len(rows))]
    assert found == [[5, 8], [5], [5], [5], [5, 8]]


def test_filters_of_another_trie_are_refused():
    other = TokenTrie.from_sequences([[5], [6]], vocab_size=10)
    foreign = ItemFilter.from_item_ids(other, [0], name="shop")
    for use in (
        lambda: TrieMatcher(TRIE, item_filter=foreign),
        lambda: prefix_allowed_tokens_fn(TRIE, prompt_length=1, item_filter=[foreign, None]),
        lambda: ItemFilter.all_items(TRIE) & foreign,
    ):
        with pytest.raises(ValueError) as error:
            use()
        assert all(part in str(error.value) for part in ("'shop'", TRIE.fingerprint, other.fingerprint))


@pytest.mark.parametrize(
    ("make", "error", "parts"),
    [
        (lambda: ItemFilter.from_mask(TRIE, [True] * 9), ValueError, ["9 entries", "item id 9"]),
        (lambda: ItemFilter.from_mask(TRIE, [1, 0]), TypeError, ["mask", "int64", "bool"]),
        (lambda: ItemFilter.from_mask(TRIE, np.zeros((2, 2), bool)), ValueError, ["mask", "(2, 2)"]),
        (lambda: ItemFilter.from_mask(TRIE, [True] * 10, num_threads=0), ValueError, ["num_threads=0"]),
        (lambda: ItemFilter.from_leaf_order(TRIE, [True] * 5), ValueError, ["5 entries", "4 items"]),
        (lambda: ItemFilter.from_item_ids(TRIE, [0.5]), TypeError, ["item_ids", "float64"]),
        (lambda: ItemFilter.from_item_ids(TRIE, ["a"]), TypeError, ["item_ids"]),
        (lambda: ItemFilter.all_items(TRIE).deny(range(1025)), ValueError, ["1025", "1024"]),
        (lambda: ItemFilter.all_items(TRIE).deny(range(1000)).deny(range(25)), ValueError, ["1025", "1024"]),
        (lambda: ItemFilter.all_items(TRIE).items_below(10**6), ValueError, ["1000000"]),
        (lambda: ItemFilter.all_items(TRIE).next_tokens_batch([0, 10**6]), ValueError, ["states[1]"]),
        (lambda: ItemFilter.all_items(TRIE) & {1}, TypeError, ["ItemFilter"]),
    ],
)
def test_bad_arguments_are_named(make: Any, error: type[Exception], parts: list[str]):
    with pytest.raises(error) as raised:
        make()
    assert all(part in str(raised.value) for part in parts), raised.value
