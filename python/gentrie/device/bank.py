"""Several tries or filters on a device at once, chosen by each row of a batch."""

from __future__ import annotations

from collections import Counter
from typing import Generic, TypeVar

import torch

from gentrie import _validate
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.kernels.tables import WIDTH

Entry = TypeVar("Entry", DeviceTrie, DeviceFilter)


class _Bank(Generic[Entry]):
    """Descriptor rows at addresses that stay."""

    def __init__(self, device: torch.device | str, *, capacity: int) -> None:
        rows = _validate.integer("capacity", capacity, 1, 2**20)
        self.descriptors = torch.zeros(rows, WIDTH, dtype=torch.int64, device=device)
        self.device = self.descriptors.device
        self._entries: list[Entry | None] = [None] * rows

    def add(self, entry: Entry) -> int:
        """Make an entry resident; returns its row, which stays its own until it is removed.

        Raises
        ------
        ValueError
            If every row is taken, or the entry is on another device.
        """
        row = self._free_row()
        self._put(row, entry)
        return row

    def remove(self, row: int) -> None:
        """Free a row; histories that still name it have left the trie, filters no longer apply to them.

        Call it when the work that names the row is enqueued: the memory goes to later work on the current stream.
        """
        self[row]
        self.descriptors[row].zero_()
        self._entries[row] = None

    def swap(self, row: int, entry: Entry) -> int:
        """Replace what a row holds; returns the row under which the former entry stays resident until it is removed.

        The row's address does not change: work captured in a CUDA graph reads the new entry when it is next replayed.
        What is enqueued already reads the former one. Rows of a batch that have to finish on the former entry get its
        new number, on the device and in the order of the stream: ``trie_index.masked_fill_(trie_index == row, old)``.

        Raises
        ------
        ValueError
            If no row is free, or the entry is on another device. Nothing has changed then.
        """
        former, old = self[row], self._free_row()
        self._check(entry)
        self._put(old, former)
        self._put(row, entry)
        return old

    @property
    def capacity(self) -> int:
        """Rows that there are."""
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of what is resident and of the descriptors."""
        return sum(entry.nbytes for entry in self.entries) + self.descriptors.nbytes

    @property
    def entries(self) -> list[Entry]:
        """What is resident, each once, in the order of the rows."""
        return list({id(entry): entry for entry in self._entries if entry is not None}.values())

    def __getitem__(self, row: int) -> Entry:
        """The entry of a row."""
        at = _validate.integer("row", row, 0, len(self._entries) - 1)
        entry = self._entries[at]
        if entry is None:
            raise ValueError(f"row={at} is empty")
        return entry

    def __len__(self) -> int:
        """Rows that are taken."""
        return sum(entry is not None for entry in self._entries)

    def _free_row(self) -> int:
        for row, entry in enumerate(self._entries):
            if entry is None:
                return row
        raise ValueError(f"all {self.capacity} rows are taken: remove one, or make the bank with more capacity")

    def _check(self, entry: Entry) -> None:
        if entry.device != self.device:
            raise ValueError(f"the entry is on {entry.device}, the bank on {self.device}")

    def _put(self, row: int, entry: Entry) -> None:
        self._check(entry)
        self.descriptors[row].copy_(entry.descriptors[0])
        self._entries[row] = entry


class TrieBank(_Bank[DeviceTrie]):
    """Several tries resident on a device: domains, tenants, or a catalog and its successor.

    Operations take ``bank.descriptors`` and, for each row of the batch, the number that :meth:`add` gave.

    Parameters
    ----------
    device
        Where the tries are.
    capacity
        Rows; each swap needs a free one for as long as the former trie is in use.
    max_branching
        Most children of any node of any trie that will be added, by which searches size their work. Default: no bound
        is known, and searches are given their own.

    Attributes
    ----------
    descriptors
        int64 [capacity, columns] on the device, at one address for the bank's life.

    Raises
    ------
    ValueError, TypeError
        For values out of range; from :meth:`add` and :meth:`swap` for a trie with wider nodes than ``max_branching``.
    """

    def __init__(self, device: torch.device | str, *, capacity: int = 8, max_branching: int | None = None) -> None:
        super().__init__(device, capacity=capacity)
        self.max_branching = _validate.optional_count("max_branching", max_branching, 2**31 - 1) or 2**31 - 1

    @property
    def nbytes_by_array(self) -> dict[str, int]:
        """Bytes of each array, summed over the tries that are resident."""
        total: Counter[str] = Counter()
        for entry in self.entries:
            total.update(entry.nbytes_by_array)
        return dict(total)

    def _check(self, entry: DeviceTrie) -> None:
        super()._check(entry)
        if entry.trie.max_branching > self.max_branching:
            raise ValueError(
                f"the trie branches {entry.trie.max_branching} ways, more than max_branching={self.max_branching}"
            )


class FilterBank(_Bank[DeviceFilter]):
    """Several filters resident on a device, one a row of the batch: ``bank.descriptors`` and the numbers of
    :meth:`add`; -1 stands for no filter.

    Parameters
    ----------
    device
        Where the filters are.
    capacity
        Rows.

    Attributes
    ----------
    descriptors
        int64 [capacity, columns] on the device, at one address for the bank's life.
    """

    def __init__(self, device: torch.device | str, *, capacity: int = 64) -> None:
        super().__init__(device, capacity=capacity)
