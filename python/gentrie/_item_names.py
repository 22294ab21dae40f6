"""Item ids that are strings, such as ASINs: the trie holds their places in a sorted table, and this is the table."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie

NAMES_KEY = "string_item_ids"
"""Metadata key of the table in files: the ids in ascending order of their UTF-8 bytes, a line break between them."""

_SEPARATOR = b"\n"
_MANY = 1000  # ids from which on a dict is worth being made


class ItemNames:
    """Distinct strings, ascending by their UTF-8 bytes; a string's number is its place among them.

    Parameters
    ----------
    text
        The strings with line breaks between them.
    """

    def __init__(self, text: str) -> None:
        self._bytes = text.encode()
        ends = np.flatnonzero(np.frombuffer(self._bytes, dtype=np.uint8) == _SEPARATOR[0])
        self._begins = np.concatenate([[0], ends + 1, [len(self._bytes) + 1]]).astype(np.int64)

    @property
    def text(self) -> str:
        """What makes it again."""
        return self._bytes.decode()

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return len(self._bytes) + self._begins.nbytes

    def __len__(self) -> int:
        return self._begins.size - 1

    def __getitem__(self, number: int) -> bytes:
        return self._bytes[self._begins[number] : self._begins[number + 1] - 1]

    def fingerprint(self, of_rows: str) -> str:
        """Sixteen hexadecimal digits that name the strings and the rows that hold their numbers."""
        return hashlib.sha256(of_rows.encode() + b"\0" + self._bytes).hexdigest()[:16]

    def of(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """The strings of numbers [N]; an array of str objects [N].

        Raises
        ------
        ValueError
            For a number outside the table, which a damaged file may hold.
        """
        for number in numbers[(numbers < 0) | (numbers >= len(self))][:1]:
            raise ValueError(f"item {number} is outside the table of {len(self)} item ids: the file is damaged")
        names = np.empty(numbers.size, dtype=object)
        names[:] = [self[number].decode() for number in numbers.tolist()]
        return names

    def find(self, names: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Numbers of those strings [N] that the table holds, in their order; int64 [up to N]."""
        if names.size < _MANY:
            places = [(bisect_left(self, key), key) for key in (name.encode() for name in names)]  # type: ignore[type-var,arg-type,unused-ignore]
            found = [place for place, key in places if place < len(self) and self[place] == key]
        else:
            table = {name: number for number, name in enumerate(self._bytes.split(_SEPARATOR))}
            found = [table[key] for key in (name.encode() for name in names) if key in table]
        return np.array(found, dtype=np.int64)

    def verify(self, numbers: npt.NDArray[np.int64]) -> None:
        """Refuse a table out of order, and numbers outside it.

        Raises
        ------
        ValueError
            Naming the first.
        """
        names = self._bytes.split(_SEPARATOR)
        for place, (one, next_one) in enumerate(pairwise(names)):
            if one >= next_one:
                raise ValueError(f"string item ids are not ascending at {place}: {one!r}, {next_one!r}")
        if numbers.size and (numbers.min() < 0 or numbers.max() >= len(self)):
            raise ValueError(f"items lie in [{numbers.min()}, {numbers.max()}], the table has {len(self)} item ids")


def split_item_ids(value: Any, num_rows: int) -> tuple[npt.NDArray[np.int64] | None, ItemNames | None]:
    """Item ids of a build as numbers, one a row, and where they are strings their table; None: the row numbers.

    Raises
    ------
    ValueError, TypeError
        Naming the row: an id that is no string among strings, an empty one, one that holds a line break or half of a
        surrogate pair; and what :func:`_validate.item_ids` refuses.
    """
    _validate.refuse_masked("item_ids", value)
    if value is None or _validate.is_tensor(value) or (isinstance(value, np.ndarray) and value.dtype.kind not in "UOT"):
        return _validate.item_ids(value, num_rows), None
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"item_ids is a {type(value).__name__}, expected one id a row")
    entries = _entries(value)
    if not any(isinstance(entry, str) for entry in entries):
        return _validate.item_ids(value if isinstance(value, Sequence | np.ndarray) else entries, num_rows), None
    if len(entries) != num_rows:
        raise ValueError(f"item_ids has {len(entries)} entries, sequences has {num_rows} rows")
    keys = [_key(f"item_ids[{row}]", entry) for row, entry in enumerate(entries)]
    for row, key in enumerate(keys):
        if not key or _SEPARATOR in key:
            raise ValueError(f"item_ids[{row}]={entries[row]!r} is empty or holds a line break")
    distinct = sorted(set(keys))
    numbers = {key: number for number, key in enumerate(distinct)}
    ids = np.fromiter((numbers[key] for key in keys), dtype=np.int64, count=len(keys))
    return ids, ItemNames(_SEPARATOR.join(distinct).decode())


def item_name_array(name: str, values: Any) -> npt.NDArray[Any]:
    """String item ids in any collection, as an array of str objects [N].

    Raises
    ------
    TypeError
        For one string in place of a collection, and naming what is no string.
    """
    _validate.refuse_masked(name, values)
    if isinstance(values, str | bytes) or not isinstance(values, Iterable) or _validate.is_tensor(values):
        raise TypeError(
            f"{name} is a {type(values).__name__}, expected a collection of item ids, which are strings here"
        )
    entries = _entries(values)
    for place, entry in enumerate(entries):
        _key(f"{name}[{place}]", entry)
    names = np.empty(len(entries), dtype=object)
    names[:] = [str(entry) for entry in entries]
    return names


def refuse_item_names(trie: TokenTrie, what: str) -> None:
    """Refuse a catalog whose item ids are strings where integers are needed.

    Raises
    ------
    TypeError
        Saying ``what`` needs them.
    """
    if trie._item_names is not None:
        raise TypeError(
            f"{what} takes integer item ids, this catalog's are strings: build it with their numbers in a list of yours"
        )


def _entries(values: Any) -> list[Any]:
    """A column or array converts itself much faster than by iteration."""
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            return list(getattr(values, method)())
    return list(values)


def _key(name: str, value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, the catalog's other item ids are strings")
    try:
        return value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}={value!r} holds half of a surrogate pair") from None
