"""LiveCatalog: versions, removals, refusals, and readers that run while everything changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import Oracle

from gentrie import ItemFilter, LiveCatalog, TokenTrie, TrieMatcher, prefix_allowed_tokens_fn
from gentrie.live_catalog import CatalogVersion

VOCAB_SIZE, END = 60, 59


def trie_of(rows: list[list[int]], item_ids: list[int] | None = None) -> TokenTrie:
    return TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END, item_ids=item_ids, num_threads=1)


ROWS = [[5, 6], [5, 7], [5, 7], [8], [9, 1]]


def items(version: CatalogVersion, name: str) -> list[int]:
    return sorted(version.filters[name].items_below(0).tolist())


def test_filters_are_made_anew_for_each_trie():
    in_stock = np.array([True, True, False, True, True])
    catalog = LiveCatalog(
        trie_of(ROWS),
        filters={
            "in_stock": in_stock,
            "adult": {3, 50},
            "shop": lambda filters: filters["in_stock"] - filters["adult"],
        },
    )
    first = catalog.current
    assert (first.number, items(first, "in_stock"), items(first, "shop")) == (1, [0, 1, 3, 4], [0, 1, 4])
    assert first.filters["shop"].name == "shop"
    second = catalog.swap(trie_of([*ROWS, [20, 21]]), filters={"in_stock": np.array([True] * 5 + [False])})
    assert catalog.current is second
    assert (second.number, items(second, "in_stock"), items(second, "shop")) == (2, [0, 1, 2, 3, 4], [0, 1, 2, 4])
    third = catalog.swap(filters={"in_stock": np.array([False] * 5 + [True])})
    assert third.trie is second.trie
    assert items(third, "shop") == [5]
    assert items(first, "shop") == [0, 1, 4]
    assert first.trie.num_items == 5
    assert catalog.stats().swaps == 1


def test_removed_items_stay_removed_until_restored():
    catalog = LiveCatalog(trie_of(ROWS), filters={"all": range(10)})
    before = catalog.current
    assert catalog.remove([1, 4, 77]).number == 2
    assert sorted(catalog.current.allowed.items_below(0).tolist()) == items(catalog.current, "all") == [0, 2, 3]
    assert sorted(before.allowed.items_below(0).tolist()) == [0, 1, 2, 3, 4]
    catalog.swap(trie_of([*ROWS, [20]], [0, 1, 2, 3, 4, 77]))
    assert sorted(catalog.current.allowed.items_below(0).tolist()) == [0, 2, 3]
    assert catalog.stats().num_removed == 3
    catalog.restore([77, 1])
    assert sorted(catalog.current.allowed.items_below(0).tolist()) == [0, 1, 2, 3, 77]
    assert items(catalog.current, "all") == [0, 1, 2, 3]
    catalog.remove([2])
    matcher = TrieMatcher(catalog.current.trie, item_filter=catalog.current.allowed.deny([1]))
    assert matcher.accept_token(5)
    assert matcher.get_allowed_tokens().tolist() == [6]


def test_a_rebuild_runs_beside_and_is_swapped_in():
    catalog = LiveCatalog(trie_of(ROWS))
    may_build = threading.Event()

    def build() -> TokenTrie:
        assert may_build.wait(30)
        return trie_of([*ROWS, [30]])

    future = catalog.rebuild(build)
    with pytest.raises(RuntimeError, match="rebuild"):
        catalog.rebuild(build)
    catalog.remove([0])
    assert catalog.current.trie.num_items == 5
    may_build.set()
    assert future.result(30) is catalog.current
    assert sorted(catalog.current.allowed.items_below(0).tolist()) == [1, 2, 3, 4, 5]
    catalog.rebuild(lambda: trie_of([*ROWS, [31]])).result(30)
    assert catalog.stats().version == catalog.current.number == 4


def test_a_change_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture):
    mask = np.ones(5, dtype=bool)
    catalog = LiveCatalog(trie_of(ROWS), filters={"in_stock": mask})
    before, stats = catalog.current, catalog.stats()
    other_trie = trie_of([[5], [6]])
    refused: list[tuple[Callable[[], Any], type[Exception], list[str]]] = [
        (lambda: catalog.swap(trie_of([*ROWS, [20]])), ValueError, ["filters['in_stock']", "5 entries", "item id 5"]),
        (lambda: catalog.swap(filters={"x": [0.5]}), TypeError, ["filters['x']", "float64"]),
        (lambda: catalog.swap(filters={"x": lambda filters: filters["y"]}), KeyError, ["'y'"]),
        (lambda: catalog.swap(filters={"x": lambda filters: None}), TypeError, ["filters['x']", "NoneType"]),
        (
            lambda: catalog.swap(filters={"x": ItemFilter.all_items(other_trie)}),
            ValueError,
            ["filters['x']", other_trie.fingerprint, before.trie.fingerprint],
        ),
        (
            lambda: catalog.swap(TokenTrie.from_sequences(ROWS, vocab_size=61, end_token_id=END)),
            ValueError,
            ["vocab_size=61", "60"],
        ),
        (lambda: catalog.swap(TokenTrie.from_sequences([[5]], vocab_size=60)), ValueError, ["end_token_id=None", "59"]),
        (lambda: catalog.remove(["a"]), TypeError, ["item_ids"]),
        (lambda: catalog.rebuild(lambda: trie_of([])).result(30), ValueError, ["sequence"]),
    ]
    for change, error, parts in refused:
        with pytest.raises(error) as raised:
            change()
        assert all(part in str(raised.value) for part in parts), raised.value
        assert catalog.current is before
    assert catalog.stats().version == stats.version
    assert "rebuild failed" in caplog.text
    catalog.rebuild(lambda: before.trie).result(30)


def test_a_finished_filter_serves_one_trie():
    trie = trie_of(ROWS)
    catalog = LiveCatalog(trie, filters={"few": ItemFilter.from_item_ids(trie, [1])})
    bigger = trie_of([*ROWS, [20]])
    with pytest.raises(ValueError, match=bigger.fingerprint):
        catalog.swap(bigger)
    catalog.swap(bigger, filters={"few": ItemFilter.from_item_ids(bigger, [1, 5])})
    assert items(catalog.current, "few") == [1, 5]


def test_required_metadata(tmp_path: Path):
    old, new, none = (str(tmp_path / name) for name in ("old", "new", "none"))
    trie_of(ROWS).save(old, {"codebook": "v7"})
    trie_of(ROWS).save(new, {"codebook": "v8"})
    trie_of(ROWS).save(none)
    catalog = LiveCatalog.load(old, require={"codebook": "v7"}, verify=True)
    for path, shown in ((new, "'v8'"), (none, "None")):
        with pytest.raises(ValueError) as error:
            catalog.swap(TokenTrie.load(path))
        assert all(part in str(error.value) for part in ("codebook", shown, "'v7'"))
        with pytest.raises(ValueError, match="codebook"):
            LiveCatalog.load(path, require={"codebook": "v7"})
    assert catalog.swap(TokenTrie.load(old)).number == 2
    with pytest.raises(TypeError, match="require"):
        LiveCatalog(trie_of(ROWS), require={"codebook": 7})  # type: ignore[dict-item]


def test_a_rebuild_carries_the_metadata_that_is_required():
    def build() -> TokenTrie:
        return TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END, metadata={"codebook": "v7"})

    catalog = LiveCatalog(build(), require={"codebook": "v7"})
    assert catalog.rebuild(build).result().number == 2
    with pytest.raises(ValueError, match="codebook=None, required 'v7'"):
        catalog.rebuild(lambda: trie_of(ROWS)).result()


def test_a_build_that_returns_no_trie_fails():
    catalog = LiveCatalog(trie_of(ROWS))
    with pytest.raises(TypeError, match="build returned a NoneType"):
        catalog.rebuild(lambda: None).result()  # type: ignore[arg-type,return-value]
    assert catalog.current.number == 1
    with pytest.raises(TypeError, match=r"trie is a str.*TokenTrie\.load"):
        catalog.swap("x.safetensors")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"trie is a str.*TokenTrie\.load"):
        LiveCatalog("x.safetensors")  # type: ignore[arg-type]


def test_a_thread_that_does_not_start_blocks_no_later_rebuild(monkeypatch: pytest.MonkeyPatch):
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    catalog = LiveCatalog(trie_of(ROWS))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start"):
            catalog.rebuild(lambda: trie_of(ROWS))
    assert catalog.rebuild(lambda: trie_of(ROWS)).result().number == 2


def test_a_rebuild_is_not_cancelled():
    catalog = LiveCatalog(trie_of(ROWS))
    may_build = threading.Event()
    future = catalog.rebuild(lambda: (may_build.wait(30), trie_of(ROWS))[1])
    assert not future.cancel()
    may_build.set()
    assert future.result().number == 2


def test_definitions_read_the_catalog_and_do_not_change_it():
    catalog = LiveCatalog(trie_of(ROWS))
    seen = []

    def reads(made: Mapping[str, ItemFilter]) -> ItemFilter:
        seen.append((catalog.stats().version, catalog.current.number))
        return ItemFilter.all_items(catalog.current.trie)

    def removes(made: Mapping[str, ItemFilter]) -> ItemFilter:
        catalog.remove([1])
        return ItemFilter.all_items(catalog.current.trie)

    assert catalog.swap(filters={"reads": reads}).number == 2
    assert seen == [(1, 1)]
    with pytest.raises(RuntimeError, match="may not change the catalog"):
        catalog.swap(filters={"removes": removes})
    assert catalog.stats().num_removed == 0
    assert catalog.remove([1]).number == 3


def test_stats_count_rows_that_could_not_go_on():
    torch = pytest.importorskip("torch")
    catalog = LiveCatalog(trie_of(ROWS), filters={"few": [3]})
    now = catalog.current
    assert catalog.stats().nbytes > now.trie.nbytes
    assert catalog.stats().age >= 0
    allowed = prefix_allowed_tokens_fn(now.trie, prompt_length=0, item_filter=now.filters["few"])
    for history in ([5], [5, 6], [40], [41, 42], [8]):
        allowed(0, torch.tensor(history))
    assert (catalog.stats().dead_rows, catalog.stats().emptied_rows) == (2, 2)
    swapped = [trie_of([*ROWS, [10, 20 + i]]) for i in range(3)]
    for trie in swapped:
        catalog.swap(trie)
    allowed(0, torch.tensor([40]))  # a request that still runs on the first trie
    TrieMatcher(trie, item_filter=[]).get_allowed_tokens()
    stats = catalog.stats()
    assert (stats.dead_rows, stats.emptied_rows, stats.swaps, stats.version) == (3, 3, 3, 4)
    for i in range(70):
        catalog.swap(swapped[i % 2])
    assert (catalog.stats().dead_rows, catalog.stats().swaps) == (3, 73)


def _histories(rows: list[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
    yield from {row[:length] for row in rows for length in range(len(row))}


def _answers(version: CatalogVersion, matcher: TrieMatcher, prefixes: list[tuple[int, ...]]) -> list[Any]:
    """What one request sees: children and counts of every place, under the filter and without."""
    found: list[Any] = []
    states = [version.trie.walk(prefix) for prefix in prefixes]
    found += [version.filters["even"].num_sequences_below_batch(states).tolist()]
    found += [version.trie.next_tokens(state).tolist() for state in states]
    for prefix in prefixes:
        matcher.reset()
        found.append(matcher.get_allowed_tokens().tolist() if matcher.accept_tokens(prefix) else None)
    return found


def _expected(oracle: Oracle, even: set[int], prefixes: list[tuple[int, ...]]) -> list[Any]:
    def left(prefix: tuple[int, ...]) -> list[tuple[int, ...]]:
        return [s for s in oracle.below(prefix) if oracle.items[s] & even]

    found: list[Any] = [[len(left(prefix)) for prefix in prefixes]]
    found += [oracle.next_tokens(prefix) for prefix in prefixes]
    found += [sorted({s[len(p)] for s in left(p)}) if left(p) else None for p in prefixes]
    return found


def test_every_answer_is_one_versions_answer_in_order():
    """Readers work while tries are swapped, items removed and restored: what each sees is one version, whole."""
    rng = np.random.default_rng(0)
    catalogs = [rng.integers(0, 6, (40 + 5 * n, 3)).tolist() for n in range(4)]
    tries, oracles = [trie_of(rows) for rows in catalogs], [Oracle(rows, END) for rows in catalogs]
    prefixes = sorted({p for oracle in oracles for p in _histories(oracle.sequences) if len(p) < 3})
    gone = [0, 2, 4, 8, 16]
    everything = set(range(100))
    even = [{i for i in everything if i % 2 == 0 and (not removed or i not in gone)} for removed in (False, True)]
    expected = [[_expected(oracle, ids, prefixes) for ids in even] for oracle in oracles]

    catalog = LiveCatalog(tries[0], filters={"odd": range(1, 100, 2), "even": lambda filters: ~filters["odd"]})
    meaning = {1: (0, False)}
    done = threading.Event()

    def read() -> list[int]:
        seen: list[int] = []
        version = catalog.current
        while not done.is_set() or len(seen) < 3:
            following = catalog.current
            matcher = TrieMatcher(version.trie, item_filter=version.filters["even"])
            which, removed = meaning[version.number]
            assert _answers(version, matcher, prefixes) == expected[which][removed], version.number
            seen.append(version.number)
            version = following
        assert seen == sorted(seen)
        return seen

    def change() -> None:
        which, removed = 0, False
        for step in range(60):
            number = catalog.current.number + 1
            if step % 3 == 2:
                removed = not removed
                meaning[number] = which, removed
                catalog.remove(gone) if removed else catalog.restore(gone)
            else:
                which = (which + 1) % len(tries)
                meaning[number] = which, removed
                if step % 3:
                    catalog.rebuild(lambda which=which: trie_of(catalogs[which])).result(60)
                else:
                    catalog.swap(tries[which])
            assert catalog.current.number == number

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        try:
            change()
        finally:
            done.set()
        seen = [reader.result(60) for reader in readers]
    assert catalog.current.number == 61
    assert len({number for numbers in seen for number in numbers}) > 10


def test_a_trie_whose_file_was_written_to_is_not_swapped_in(tmp_path: Path):
    path = tmp_path / "catalog.safetensors"
    trie_of(ROWS).save(path)
    mapped, copy = TokenTrie.load(path), TokenTrie.load(path, copy=True)
    catalog = LiveCatalog(trie_of(ROWS))
    os.utime(path, (0, 0))
    with pytest.raises(ValueError, match="was written to since it was loaded"):
        catalog.swap(mapped)
    assert catalog.current.number == 1
    assert catalog.swap(copy).number == 2
