"""A catalog that changes while requests run: tries and their filters swapped in whole, removals at once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie.item_filter import ItemFilter, filter_from, known_ids
from gentrie.trie import TokenTrie

FilterDefinition = (
    Collection[int] | Collection[str] | npt.NDArray[Any] | ItemFilter | Callable[[Mapping[str, ItemFilter]], ItemFilter]
)
"""Item ids, a boolean array indexed by item id, a function of the filters named before it, or a finished filter."""

_RETIRED_KEPT = 64
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CatalogVersion:
    """A trie and the filters that go with it. What holds one keeps using it, whatever is swapped in meanwhile.

    Attributes
    ----------
    number
        Ascending from 1; every change of trie, filters or removed items makes a new version.
    trie
        The catalog.
    filters
        The named filters, removed items left out.
    allowed
        Every item that was not removed: the filter where no other is wanted.
    """

    number: int
    trie: TokenTrie
    filters: Mapping[str, ItemFilter]
    allowed: ItemFilter

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.number, self.trie, dict(self.filters), self.allowed)


@dataclass(frozen=True)
class CatalogStats:
    """What :meth:`LiveCatalog.stats` reports.

    Attributes
    ----------
    version, num_items, num_removed
        Of the current version; removed ids that its trie does not hold count too.
    nbytes
        Of the current trie, its index by item id and its filters.
    swaps
        Tries swapped in after the first.
    age
        Seconds since the current trie was swapped in.
    dead_rows
        Rows that had left the trie, summed over the calls that met them (processors, prefix functions), over all
        tries that this catalog has held. Filler beams of ``transformers`` are among them.
    emptied_rows
        Rows that filter and earlier items had left nothing to go on with, likewise (matchers too).
    """

    version: int
    num_items: int
    num_removed: int
    nbytes: int
    swaps: int
    age: float
    dead_rows: int
    emptied_rows: int


class LiveCatalog:
    """A handle on a catalog that is replaced while requests run.

    Requests take :attr:`current` once and use its trie and filters to their end, so that they see one version whole;
    what they hold stays alive until the last of them is done. Reading :attr:`current` takes no lock. Changes come from
    any thread, one after the other, and a change that fails changes nothing.

    >>> catalog = LiveCatalog(trie, filters={"in_stock": mask, "adult": adult_ids,
    ...                                      "shop": lambda filters: filters["in_stock"] - filters["adult"]})
    >>> now = catalog.current                                             # at the start of each request
    >>> matcher = TrieMatcher(now.trie, item_filter=now.filters["shop"].deny(seen))
    >>> catalog.remove([17])                                              # from the next request on
    >>> catalog.rebuild(lambda: TokenTrie.from_sequences(rows, vocab_size=v, num_threads=1))

    Additions are a rebuild: it takes seconds at ten million items on one thread and disturbs lookups less than merging
    a second trie into each of them would.

    Parameters
    ----------
    trie
        The first trie.
    filters
        Named definitions, from which each new trie's filters are made: item ids, a boolean array indexed by item id, or
        a function of the filters named before it. An :class:`ItemFilter` is taken as it is and must be given anew with
        each trie. Arrays are kept, not copied: do not write to them, give new ones to :meth:`swap`.
    require
        Metadata that every trie must carry, such as ``{"codebook": "v7"}``.

    Raises
    ------
    ValueError, TypeError
        For a trie that lacks what ``require`` asks for, and what filters refuse.
    """

    def __init__(
        self,
        trie: TokenTrie,
        *,
        filters: Mapping[str, FilterDefinition] | None = None,
        require: Mapping[str, str] | None = None,
    ) -> None:
        self._require = _validate.string_map("require", require)
        self._definitions = dict(filters or {})
        self._removed: npt.NDArray[Any] = np.empty(0, dtype=np.int64)
        self._changes = threading.RLock()  # held by one change at a time, while it makes filters
        self._is_changing = False
        self._facts = threading.Lock()  # held for moments, by whoever publishes a change or reads several fields
        self._rebuilding = threading.Lock()
        self._swaps = 0
        self._since = time.monotonic()
        self._retired: deque[_core.ClosedRows] = deque()
        self._dead_rows = self._emptied_rows = 0
        self._check_metadata(_validate.trie("trie", trie))
        self._current = _make_version(1, trie, self._definitions, self._removed)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        filters: Mapping[str, FilterDefinition] | None = None,
        require: Mapping[str, str] | None = None,
        verify: bool | None = None,
    ) -> LiveCatalog:
        """A handle on a saved trie; ``verify`` as in :meth:`TokenTrie.load`."""
        return cls(TokenTrie.load(path, verify=verify, require=require), filters=filters, require=require)

    @property
    def current(self) -> CatalogVersion:
        """The version that requests starting now should use."""
        return self._current

    def swap(
        self, trie: TokenTrie | None = None, *, filters: Mapping[str, FilterDefinition] | None = None
    ) -> CatalogVersion:
        """Put another trie, other filters or both in place of the current ones, at once.

        All filters are made before the new version is seen. Items removed with :meth:`remove` stay removed.

        Parameters
        ----------
        trie
            Default: the current one.
        filters
            Definitions to add, or to put in place of those of the same name.

        Raises
        ------
        ValueError, TypeError
            For a trie of another vocabulary size or end token or without the required metadata, for one whose mapped
            file was written to since it was loaded, and what filters refuse.
        RuntimeError
            From a filter's definition.
        """
        with self._changing():
            before = self._current
            after = before.trie if trie is None else trie
            if trie is not None:
                self._check_metadata(_validate.trie("trie", trie))
                _check_vocabulary(before.trie, trie)
            after._core.check_file_unchanged()
            definitions = {**self._definitions, **(filters or {})}
            version = _make_version(before.number + 1, after, definitions, self._removed)
            self._definitions = definitions
            with self._facts:
                if after is not before.trie:
                    self._swaps += 1
                    self._since = time.monotonic()
                    self._retire(before.trie)
                self._current = version
            return version

    def rebuild(
        self, build: Callable[[], TokenTrie], *, filters: Mapping[str, FilterDefinition] | None = None
    ) -> Future[CatalogVersion]:
        """Build a trie in a thread of its own, then :meth:`swap` it in.

        Let ``build`` use ``num_threads=1`` where lookups go on meanwhile, and give the builder the ``metadata`` that is
        required here. The thread ends with the rebuild; the future holds the new version, or what was raised, which is
        logged too: nothing has changed then. It cannot be cancelled.

        Raises
        ------
        RuntimeError
            While another rebuild runs, and where no thread can be started.
        """
        if not self._rebuilding.acquire(blocking=False):
            raise RuntimeError("a rebuild of this catalog is running: wait for its future before the next")
        future: Future[CatalogVersion] = Future()
        future.set_running_or_notify_cancel()  # from here on cancel() is False

        def work() -> None:
            try:
                trie = build()
                if not isinstance(trie, TokenTrie):
                    raise TypeError(f"build returned a {type(trie).__name__}, expected a TokenTrie")
                version = self.swap(trie, filters=filters)
            except BaseException as error:
                _logger.exception("a rebuild failed; the catalog stays as it was")
                self._rebuilding.release()
                future.set_exception(error)
            else:
                self._rebuilding.release()
                future.set_result(version)

        try:
            threading.Thread(target=work, name="gentrie-rebuild").start()
        except BaseException:  # no thread to be had
            self._rebuilding.release()
            raise
        return future

    def remove(self, item_ids: Collection[int] | Collection[str] | npt.NDArray[Any]) -> CatalogVersion:
        """Take items out of every filter, at once and for all later tries, until they are restored.

        Ids that the current trie does not hold are remembered for later ones.
        """
        with self._changing():
            now = self._current
            ids = known_ids(now.trie, "item_ids", item_ids)
            gone = ItemFilter.from_item_ids(now.trie, ids)
            filters = {name: _without(item_filter, gone) for name, item_filter in now.filters.items()}
            version = CatalogVersion(now.number + 1, now.trie, MappingProxyType(filters), _without(now.allowed, gone))
            removed = np.union1d(self._removed, ids)
            with self._facts:
                self._removed, self._current = removed, version
            return version

    def restore(self, item_ids: Collection[int] | Collection[str] | npt.NDArray[Any]) -> CatalogVersion:
        """Undo :meth:`remove`: where the trie holds these items they may be given again."""
        with self._changing():
            now = self._current
            removed = np.setdiff1d(self._removed, known_ids(now.trie, "item_ids", item_ids))
            version = _make_version(now.number + 1, now.trie, self._definitions, removed)
            with self._facts:
                self._removed, self._current = removed, version
            return version

    def stats(self) -> CatalogStats:
        """Facts and counts for whoever watches over the service; waits for no change under way."""
        with self._facts:
            now, since, swaps, num_removed = self._current, self._since, self._swaps, self._removed.size
            counted = [*self._retired, _core.closed_rows(now.trie._core)]
            dead, emptied = self._dead_rows, self._emptied_rows
        filters = {id(item_filter): item_filter.nbytes for item_filter in (now.allowed, *now.filters.values())}
        return CatalogStats(
            version=now.number,
            num_items=now.trie.num_items,
            num_removed=num_removed,
            nbytes=now.trie.nbytes + _core.item_index_nbytes(now.trie._core) + sum(filters.values()),
            swaps=swaps,
            age=time.monotonic() - since,
            dead_rows=dead + sum(rows.dead for rows in counted),
            emptied_rows=emptied + sum(rows.emptied for rows in counted),
        )

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One change at a time; from within another, which would lose it, none."""
        with self._changes:
            if self._is_changing:
                raise RuntimeError("a filter's definition may not change the catalog that it is evaluated for")
            self._is_changing = True
            try:
                yield
            finally:
                self._is_changing = False

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            "a LiveCatalog is not pickled, changes would not reach the copy: give other processes its `current`"
        )

    def _retire(self, trie: TokenTrie) -> None:
        """Requests still running on it go on counting for a while."""
        self._retired.append(_core.closed_rows(trie._core))
        if len(self._retired) > _RETIRED_KEPT:
            rows = self._retired.popleft()
            self._dead_rows += rows.dead
            self._emptied_rows += rows.emptied

    def _check_metadata(self, trie: TokenTrie) -> None:
        for key, value in self._require.items():
            if trie.metadata.get(key) != value:
                raise ValueError(
                    f"trie {trie.fingerprint}: metadata {key}={trie.metadata.get(key)!r}, required {value!r}"
                )


def _unpickled(number: int, trie: TokenTrie, filters: dict[str, ItemFilter], allowed: ItemFilter) -> CatalogVersion:
    return CatalogVersion(number, trie, MappingProxyType(filters), allowed)


def _check_vocabulary(before: TokenTrie, after: TokenTrie) -> None:
    for name in ("vocab_size", "end_token_id"):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            raise ValueError(f"the new trie has {name}={new}, this catalog has {old}: requests under way rely on it")


def _make_version(
    number: int, trie: TokenTrie, definitions: Mapping[str, FilterDefinition], removed: npt.NDArray[Any]
) -> CatalogVersion:
    gone = ItemFilter.from_item_ids(trie, removed)  # makes the index by item id too, before a request needs it
    made: dict[str, ItemFilter] = {}
    for name, definition in definitions.items():
        try:
            made[name] = _make_filter(trie, definition, made, name)
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"filters[{name!r}]: {error}") from error
    filters = {name: _without(item_filter, gone) for name, item_filter in made.items()}
    return CatalogVersion(number, trie, MappingProxyType(filters), ~gone)


def _make_filter(
    trie: TokenTrie, definition: FilterDefinition, made: Mapping[str, ItemFilter], name: str
) -> ItemFilter:
    if not callable(definition):
        return filter_from(trie, definition, name)
    derived = definition(MappingProxyType(dict(made)))
    if not isinstance(derived, ItemFilter):
        raise TypeError(f"the function returned a {type(derived).__name__}, expected an ItemFilter")
    derived.check_trie(trie)
    return ItemFilter(derived._core, trie, name)


def _without(item_filter: ItemFilter, gone: ItemFilter) -> ItemFilter:
    if gone.num_items == 0:
        return item_filter
    return ItemFilter((item_filter - gone)._core, item_filter.trie, item_filter.name)
