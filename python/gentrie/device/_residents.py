"""Which trie and which filter each prompt of a batch of fixed shape is searched with."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from gentrie import _validate
from gentrie.device.bank import FilterBank, TrieBank
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.item_filter import ItemFilter
from gentrie.kernels.tables import COUNTS
from gentrie.trie import TokenTrie

_NUM_NODES = COUNTS.index("num_nodes")
_one_length: WeakKeyDictionary[DeviceTrie, bool] = WeakKeyDictionary()


class BankRows:
    """The row of a bank that each prompt uses, also repeated for its beams, at addresses that stay.

    Attributes
    ----------
    of_prompts, of_beams
        int64 [prompts] and [prompts, beams] on the device.
    """

    def __init__(
        self, name: str, bank: TrieBank | FilterBank, num_prompts: int, num_beams: int, *, lowest: int = 0
    ) -> None:
        self._name, self.bank, self._lowest = name, bank, lowest
        self.of_prompts = torch.full((num_prompts,), lowest, dtype=torch.int64, device=bank.device)
        self.of_beams = torch.full((num_prompts, num_beams), lowest, dtype=torch.int64, device=bank.device)

    def set(self, index: Any) -> None:
        """Integers [prompts]: a tensor on a GPU is copied there unchecked, all else is checked.

        Raises
        ------
        ValueError, TypeError
            For other shapes and dtypes, and naming the entry for a row that is empty.
        """
        if not isinstance(index, torch.Tensor) or not index.is_cuda:
            rows = _validate.int64_array(self._name, index)
            for at, row in enumerate(rows.flatten().tolist()):
                if row != -1 or self._lowest == 0:
                    _validate.integer(f"{self._name}[{at}]", row, self._lowest, self.bank.capacity - 1)
                    self.bank[row]
            index = torch.from_numpy(rows)
            index = index.pin_memory() if self.of_prompts.is_cuda else index
        if index.shape != self.of_prompts.shape:
            raise ValueError(f"{self._name} has shape {tuple(index.shape)}, expected [{len(self.of_prompts)}]")
        if index.dtype != torch.int64:
            raise TypeError(f"{self._name} has dtype {index.dtype}, expected torch.int64")
        self.of_prompts.copy_(index, non_blocking=True)
        self.of_beams.copy_(self.of_prompts[:, None])

    def replace(self, row: int, by: int) -> None:
        """Prompts that use a row use another from here on, in the order of the stream."""
        for rows in (self.of_prompts, self.of_beams):
            rows.masked_fill_(rows == row, by)


class Residents:
    """Tries and filters on a device, and which of them each prompt uses.

    Parameters
    ----------
    trie, filters, device
        As for :class:`gentrie.device.DeviceBeamStepper`.
    num_prompts, num_beams
        Prompts, and beams of each.

    Raises
    ------
    ValueError, TypeError
        For anything else, an empty bank, and things on different devices.
    """

    def __init__(
        self,
        trie: TokenTrie | DeviceTrie | TrieBank,
        filters: DeviceFilter | FilterBank | None,
        num_prompts: int,
        num_beams: int,
        device: torch.device | str | None,
    ) -> None:
        if isinstance(trie, TokenTrie):
            trie = DeviceTrie(trie, device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if not isinstance(trie, DeviceTrie | TrieBank):
            raise TypeError(f"trie is a {type(trie).__name__}, expected a TokenTrie, DeviceTrie or TrieBank")
        if not isinstance(filters, DeviceFilter | FilterBank | None):
            raise TypeError(f"filters is a {type(filters).__name__}, expected a DeviceFilter or FilterBank")
        if filters is not None and filters.device != trie.device:
            raise ValueError(f"filters is on {filters.device}, the trie on {trie.device}")
        self.trie, self.filters, self.device = trie, filters, trie.device
        self._num_prompts = num_prompts
        if not self._tries():
            raise ValueError("trie is an empty bank")
        if isinstance(filters, DeviceFilter) and not isinstance(trie, TrieBank):
            filters.item_filter.check_trie(trie.trie)
        size = (num_prompts, num_beams)
        self.trie_rows = BankRows("trie_index", trie, *size) if isinstance(trie, TrieBank) else None
        self.filter_rows = None
        if isinstance(filters, FilterBank):
            self.filter_rows = BankRows("filter_index", filters, *size, lowest=-1)

    @property
    def max_depth(self) -> int:
        """Tokens of the longest sequence that is resident."""
        return max(trie.max_depth for trie in self._tries())

    @property
    def max_branching(self) -> int:
        """At least the most children of any node."""
        return self.trie.max_branching if isinstance(self.trie, TrieBank) else self.trie.trie.max_branching

    def has_one_length(self) -> bool:
        """Whether all sequences are known to have one length; reads a catalog once, and says no of a bank."""
        if isinstance(self.trie, TrieBank):
            return False
        if self.trie not in _one_length:
            lengths = np.diff(self.trie.trie.to_sequences()[1])
            _one_length[self.trie] = bool((lengths == lengths[0]).all())
        return _one_length[self.trie]

    def choose(self, trie_index: Any, filter_index: Any) -> None:
        """Set the rows that prompts use; None leaves them.

        Raises
        ------
        ValueError, TypeError
            What :meth:`BankRows.set` refuses, and an index without a bank.
        """
        named = (("trie_index", self.trie_rows, trie_index), ("filter_index", self.filter_rows, filter_index))
        for name, rows, index in named:
            if index is not None and rows is None:
                raise ValueError(f"{name} is given without a bank")
        for _, rows, index in named:
            if rows is not None and index is not None:
                rows.set(index)

    def arguments(self, *, of_prompts: bool) -> tuple[torch.Tensor | None, ...]:
        """Descriptors and rows of tries and filters as operations take them, one row a prompt or one a beam."""
        filters = None if self.filters is None else self.filters.descriptors
        chosen = [
            None if rows is None else rows.of_prompts if of_prompts else rows.of_beams.flatten()
            for rows in (self.trie_rows, self.filter_rows)
        ]
        return self.trie.descriptors, chosen[0], filters, chosen[1]

    def num_nodes(self) -> torch.Tensor:
        """int64 [prompts or 1, 1], nodes of each prompt's trie: states from there on are leaves."""
        counts = self.trie.descriptors[:, _NUM_NODES]
        if self.trie_rows is not None:  # what is no row leads nowhere, whatever stands here
            counts = counts[self.trie_rows.of_prompts.clamp(0, len(counts) - 1)]
        return counts[:, None]

    def check_columns(self, width: int) -> bool:
        """Whether logits of so many columns are the catalog's alone; ValueError for too few."""
        tries = self._tries()
        least = max(trie.vocab_size for trie in tries)
        if width >= least:
            return False
        if isinstance(self.trie, DeviceTrie) and width == len(tries[0].vocabulary):
            return True
        alone = f" or the catalog's {len(tries[0].vocabulary)}" if isinstance(self.trie, DeviceTrie) else ""
        raise ValueError(f"logits has {width} columns, expected the vocabulary's {least}{alone}")

    def on_host(self) -> list[tuple[TokenTrie, ItemFilter | None]]:
        """Trie and filter of each prompt. Waits for the device.

        Raises
        ------
        ValueError
            For a row that is empty, and a filter of another trie.
        """
        tries = [entry.trie for entry in _entries(self.trie, self.trie_rows, self._num_prompts)]
        filters = _entries(self.filters, self.filter_rows, self._num_prompts)
        pairs = [
            (trie, None if entry is None else entry.item_filter) for trie, entry in zip(tries, filters, strict=True)
        ]
        for trie, item_filter in pairs:
            if item_filter is not None:
                item_filter.check_trie(trie)
        return pairs

    def _tries(self) -> list[TokenTrie]:
        return [entry.trie for entry in (self.trie.entries if isinstance(self.trie, TrieBank) else [self.trie])]


def _entries(owner: Any, rows: BankRows | None, count: int) -> list[Any]:
    """What each prompt uses: of a bank its row, None for -1."""
    if rows is None:
        return [owner] * count
    return [None if row == -1 else owner[row] for row in rows.of_prompts.tolist()]
