"""Which items may be given: filters that stay, made off the request path, and what a request denies on top."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie._item_names import item_name_array, refuse_item_names

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie


class ItemFilter:
    """Which items of one trie may be given; immutable, shared freely by threads.

    A sequence may be given if any of its items may, and a token follows only where such a sequence lies below. Made
    with :meth:`from_item_ids`, :meth:`from_mask`, :meth:`from_leaf_order` or :meth:`all_items`, off the request path:
    a bitmap over the sequences with a rank directory, two bits each, so that what it leaves below any state is counted
    in O(1). ``~a``, ``a & b``, ``a | b`` and ``a - b`` are filters of their own.

    A filter belongs to the trie it was made for and is refused with any other; a new trie needs a new filter, which
    :class:`gentrie.LiveCatalog` makes from its definition.

    Attributes
    ----------
    trie
        The trie it belongs to.
    name
        What it is called in messages; any text.
    """

    __slots__ = ("_core", "name", "trie")

    def __init__(self, core: _core.ItemFilter, trie: TokenTrie, name: str) -> None:
        self._core, self.trie, self.name = core, trie, name

    @classmethod
    def from_item_ids(
        cls,
        trie: TokenTrie,
        item_ids: Collection[int] | Collection[str] | npt.NDArray[Any],
        *,
        name: str = "",
    ) -> ItemFilter:
        """Allow the listed item ids (any integers, or strings); those that the catalog does not hold are ignored.

        The first call for a trie makes an index of its items by id, 4 to 12 bytes an item, which the trie keeps.
        """
        trie = _validate.trie("trie", trie)
        return cls(_core.ItemFilter.from_item_ids(trie._core, item_rows(trie, "item_ids", item_ids)), trie, name)

    @classmethod
    def from_mask(
        cls,
        trie: TokenTrie,
        mask: Sequence[bool] | npt.NDArray[Any],
        *,
        name: str = "",
        num_threads: int | None = None,
    ) -> ItemFilter:
        """Allow item id i where ``mask[i]``: bool [more than the catalog's largest item id].

        ``num_threads`` defaults to the processors this process may use.

        Raises
        ------
        ValueError, TypeError
            For another dtype or shape, and naming an item id that the array does not reach.
        """
        trie = _validate.trie("trie", trie)
        refuse_item_names(trie, "a mask by item id (from_leaf_order needs none)")
        array = _mask("mask", mask)
        return cls(_core.ItemFilter.from_mask(trie._core, array, _threads(num_threads)), trie, name)

    @classmethod
    def from_leaf_order(
        cls,
        trie: TokenTrie,
        mask: Sequence[bool] | npt.NDArray[Any],
        *,
        name: str = "",
        num_threads: int | None = None,
    ) -> ItemFilter:
        """Allow the i-th item of ``trie.items_below(trie.root)`` where ``mask[i]``: bool [num_items].

        The fastest to make, for those who keep what they know of items in this order.
        """
        trie = _validate.trie("trie", trie)
        array = _mask("mask", mask)
        return cls(_core.ItemFilter.from_leaf_order(trie._core, array, _threads(num_threads)), trie, name)

    @classmethod
    def all_items(cls, trie: TokenTrie, *, name: str = "") -> ItemFilter:
        """Allow everything: what :meth:`deny` needs where there is no other filter."""
        trie = _validate.trie("trie", trie)
        none = _core.ItemFilter.from_leaf_order(trie._core, np.zeros(trie.num_items, dtype=bool), 1)
        return cls(none.complement(), trie, name)

    # --- New ones from old ------------------------------------------------------------------------------------------

    def deny(self, item_ids: Collection[int] | Collection[str] | npt.NDArray[Any]) -> ItemFilter:
        """The same less up to 1,024 items, for one request: what the user has seen or bought.

        No bitmap is made: the denied items are kept beside this filter's and looked up in O(log k) at each count. Ids
        that the catalog does not hold are ignored.

        Raises
        ------
        ValueError
            For more than 1,024, those denied before included: subtract a filter made with :meth:`from_item_ids`.
        """
        return ItemFilter(self._core.deny(item_rows(self.trie, "item_ids", item_ids)), self.trie, self.name)

    def __copy__(self) -> ItemFilter:
        return self  # immutable but for its name

    def __deepcopy__(self, memo: dict[int, Any]) -> ItemFilter:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled with its trie, as a bit an item; what :meth:`deny` took away is part of it then."""
        return _unpickled, (self.trie, self.name, np.packbits(self._core.allowed_entries()))

    def __invert__(self) -> ItemFilter:
        return ItemFilter(self._core.complement(), self.trie, f"~{self.name}" if self.name else "")

    def __and__(self, other: ItemFilter) -> ItemFilter:
        return self._with(other, "&", _core.ItemFilter.intersection)

    def __or__(self, other: ItemFilter) -> ItemFilter:
        return self._with(other, "|", _core.ItemFilter.union)

    def __sub__(self, other: ItemFilter) -> ItemFilter:
        return self._with(other, "-", _core.ItemFilter.difference)

    def _with(self, other: ItemFilter, sign: str, operation: Any) -> ItemFilter:
        if not isinstance(other, ItemFilter):
            return NotImplemented
        other.check_trie(self.trie)
        name = f"({self.name} {sign} {other.name})" if self.name and other.name else ""
        return ItemFilter(operation(self._core, other._core), self.trie, name)

    # --- Facts ------------------------------------------------------------------------------------------------------

    @property
    def num_items(self) -> int:
        """Items that may be given: distinct (sequence, item id) pairs."""
        return self._core.num_items

    @property
    def num_sequences(self) -> int:
        """Sequences that may be given."""
        return self._core.num_sequences

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays; filters made by :meth:`deny` share all but a few KB of them."""
        return self._core.nbytes

    def check_trie(self, trie: TokenTrie) -> None:
        """Refuse another trie than this filter's.

        Raises
        ------
        ValueError
            Naming both fingerprints.
        """
        if self.trie is not trie and self.trie.fingerprint != trie.fingerprint:
            name = f"item_filter {self.name!r}" if self.name else "item_filter"
            raise ValueError(f"{name} belongs to the trie {self.trie.fingerprint}, not to {trie.fingerprint}")

    def __repr__(self) -> str:
        return (
            f"ItemFilter({self.name!r}, num_items={self.num_items} of {self.trie.num_items}, "
            f"trie={self.trie.fingerprint!r})"
        )

    # --- The trie as this filter leaves it --------------------------------------------------------------------------

    def next_tokens_batch(
        self, states: Sequence[int] | npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """As :meth:`TokenTrie.next_tokens_batch`, without the tokens below which nothing is allowed."""
        return self._core.next_tokens_batch(_validate.token_row("states", states))

    def num_sequences_below_batch(self, states: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Allowed sequences that each of states [N] can still reach; int64 [N], 0 for negative states."""
        return self._core.num_sequences_below_batch(_validate.token_row("states", states))

    def items_below(self, state: int) -> npt.NDArray[Any]:
        """Allowed items that ``state`` can still reach, in order and form those of :meth:`TokenTrie.items_below`."""
        return self.trie._named(self._core.items_below(_validate.state(state)))

    def resolve(self, tokens: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Allowed items of one complete sequence, its end token optional; empty if there are none."""
        state = self.trie.walk(tokens)
        if state >= 0 and not self.trie.is_leaf(state) and self.trie.end_token_id is not None:
            state = self.trie.advance(state, self.trie.end_token_id)
        return self.items_below(state if self.trie.is_leaf(state) else -1)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What a search or a loss on a device needs, read-only and not copied.

        ``leaf_words``, uint64 [num_sequences // 32 + 1]: bit i % 32 of word i // 32 says whether sequence i (in the
        order of :meth:`TokenTrie.items_below`) is allowed, the word's upper half how many before the word are; so
        ``rank(i) = (word >> 32) + popcount(word & ((1 << i % 32) - 1))``. ``closed_leaves``, uint32: sequences that
        :meth:`deny` closed among those, ascending; as many of them as lie before i are to be taken off ``rank(i)``.
        """
        return {"leaf_words": self._core.leaf_words(), "closed_leaves": self._core.closed_leaves()}


def _unpickled(trie: TokenTrie, name: str, bits: npt.NDArray[np.uint8]) -> ItemFilter:
    return ItemFilter.from_leaf_order(trie, np.unpackbits(bits, count=trie.num_items).astype(bool), name=name)


def filter_from(trie: TokenTrie, item_filter: Any, name: str = "") -> ItemFilter:
    """An :class:`ItemFilter` as it is, or one made from item ids (any integers; those the catalog lacks are ignored) or
    from a boolean array whose entry i says whether item id i is allowed.

    Raises
    ------
    ValueError, TypeError
        For a filter of another trie, for other dtypes or shapes, and for a boolean array that does not reach the
        catalog's largest item id.
    """
    if isinstance(item_filter, ItemFilter):
        item_filter.check_trie(trie)
        return item_filter
    is_array = _validate.is_tensor(item_filter) or np.asarray(item_filter).dtype == np.bool_
    if trie._item_names is not None and not is_array:
        return ItemFilter.from_item_ids(trie, item_filter, name=name)
    array = _array("item_filter", item_filter)
    if array.ndim != 1:
        raise ValueError(f"item_filter has shape {array.shape}, expected one dimension")
    if array.dtype == np.bool_:
        return ItemFilter.from_mask(trie, array, name=name, num_threads=1)
    return ItemFilter.from_item_ids(trie, item_id_array("item_filter", array), name=name)


def make_filter(trie: TokenTrie, item_filter: Any) -> _core.ItemFilter | None:
    """The core's filter for whatever :func:`filter_from` takes; None where every item is allowed."""
    if item_filter is None:
        return None
    made = filter_from(trie, item_filter)
    return made._core if made.num_items < trie.num_items else None


def make_filters(trie: TokenTrie, item_filter: Any) -> list[_core.ItemFilter | None]:
    """One filter for all rows, or a list of one a row (None: every item), as a list."""
    if _is_per_row(item_filter):
        return [make_filter(trie, row) for row in item_filter]
    return [make_filter(trie, item_filter)]


def items_of(trie: TokenTrie, chosen: _core.ItemFilter | None, tokens: Sequence[int]) -> npt.NDArray[Any]:
    """Items of a sequence that may be given, ascending; [k] as :meth:`TokenTrie.items_below` gives them."""
    return trie.resolve(tokens) if chosen is None else trie._named(chosen.items_below(trie.walk(tokens)))


def _is_per_row(item_filter: Any) -> bool:
    if _validate.is_tensor(item_filter) or isinstance(item_filter, np.ndarray):
        return item_filter.ndim == 2
    return (
        isinstance(item_filter, Sequence)
        and len(item_filter) > 0
        and all(
            entry is None or isinstance(entry, ItemFilter | set | frozenset) or np.ndim(entry) == 1
            for entry in item_filter
        )
    )


def _array(name: str, values: Any) -> npt.NDArray[Any]:
    _validate.refuse_masked(name, values)
    if _validate.is_tensor(values):
        values = values.detach().cpu().numpy()
    if isinstance(values, set | frozenset | range):
        values = list(values)
    if isinstance(values, list | tuple) and not all(isinstance(value, bool | np.bool_) for value in values):
        _validate.refuse_bools(name, values)
    array = np.asarray(values)
    if array.size == 0 and not isinstance(values, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    return array


def item_rows(trie: TokenTrie, name: str, values: Any) -> npt.NDArray[np.int64]:
    """Items by their ids as the core numbers them, int64; strings that the catalog does not hold are left out."""
    if trie._item_names is None:
        return item_id_array(name, values)
    return trie._item_names.find(item_name_array(name, values))


def known_ids(trie: TokenTrie, name: str, values: Any) -> npt.NDArray[Any]:
    """Item ids as users know them in any collection, checked to be of the trie's kind: int64 or str objects [N]."""
    return item_id_array(name, values) if trie._item_names is None else item_name_array(name, values)


def item_id_array(name: str, values: Any) -> npt.NDArray[np.int64]:
    """Item ids in any collection, as int64 [N]."""
    return _validate.token_row(name, values if type(values) is np.ndarray else _array(name, values))


def _mask(name: str, values: Any) -> npt.NDArray[np.bool_]:
    array = _array(name, values)
    if array.dtype != np.bool_:
        raise TypeError(f"{name} has dtype {array.dtype}, expected bool")
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one dimension")
    return array


def _threads(num_threads: int | None) -> int:
    return 0 if num_threads is None else _validate.integer("num_threads", num_threads, 1, 4096)
