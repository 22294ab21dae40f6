"""One trie's arrays on a device, as they are in the file."""

from __future__ import annotations

import ctypes
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _core, _validate
from gentrie.item_filter import ItemFilter
from gentrie.kernels.tables import ARRAYS, FilterTables, TrieTables, make_descriptors
from gentrie.trie import TokenTrie

_ALIGNMENT = 64  # of every array, and what may be read behind its end
_SIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class DeviceTrie:
    """The arrays of a :class:`TokenTrie` on a device, bit for bit: bitmaps and packed runs are read there as they are.

    On a GPU all arrays lie in one allocation; on the CPU they are the trie's own memory. States are those of the trie.
    The arrays are immutable. What was enqueued on the stream that is current when the last reference goes may still
    read them; work on other streams has to be waited for before.

    Parameters
    ----------
    trie
        The catalog.
    device
        Where to.
    items
        Copy ``item_ids`` and ``item_indptr`` too, which no kernel reads.

    Attributes
    ----------
    trie
        The catalog.
    device
        Where its arrays are.
    arrays
        Tensors by name; unsigned ones in signed types of the same width.
    tables
        What ``gentrie.kernels`` knows of it.
    descriptors
        int64 [1, columns] on the device: the counts and addresses that kernels read.

    Raises
    ------
    TypeError
        For what is no :class:`TokenTrie`.
    torch.OutOfMemoryError
        Where the device lacks :meth:`estimate_nbytes`.
    """

    def __init__(self, trie: TokenTrie, device: torch.device | str, *, items: bool = False) -> None:
        _validate.trie("trie", trie)
        self.trie, self.device = trie, torch.empty(0, device=device).device
        host = _host_arrays(trie, items)
        self.arrays = _on_device(host, self.device)
        tables: dict[str, Any] = {name: self.arrays[name] for name in ARRAYS}
        counts = trie._core.header()
        num_nodes, num_leaves = counts["num_nodes"], counts["num_leaves"]
        self.tables = TrieTables(
            num_nodes=num_nodes,
            num_edges=num_nodes - 1 + num_leaves,
            num_leaves=num_leaves,
            num_run_tokens=counts["num_run_tokens"],
            vocab_size=trie.vocab_size,
            end_token_id=-1 if trie.end_token_id is None else trie.end_token_id,
            num_tokens=len(trie.vocabulary),
            max_branching=trie.max_branching,
            edge_token_bytes=host["edge_tokens"].itemsize,
            run_token_bits=counts["run_token_bits"],
            run_offset_bits=counts["run_offset_bits"],
            lookups=_CoreLookups(trie._core) if self.device.type == "cpu" else None,
            **tables,
        )
        self.descriptors = make_descriptors([self.tables], self.device)

    @staticmethod
    def estimate_nbytes(trie: TokenTrie, *, items: bool = False) -> dict[str, int]:
        """Bytes that each array would take on a device, each up to the next multiple of 64.

        :func:`gentrie.device.max_nbytes` bounds them before a trie is built.
        """
        return {name: padded(array.nbytes) for name, array in _host_arrays(trie, items).items()}

    @property
    def nbytes_by_array(self) -> dict[str, int]:
        """Bytes of each array on the device, padding included."""
        return {name: padded(array.nbytes) for name, array in self.arrays.items()}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays on the device."""
        return sum(self.nbytes_by_array.values())

    def __repr__(self) -> str:
        return f"DeviceTrie({self.trie!r}, device={str(self.device)!r}, nbytes={self.nbytes})"


class DeviceFilter:
    """An :class:`ItemFilter` on a device: its ranked bitmap, and the few sequences that ``deny`` closed beside it.

    A filter that allows everything but those has no bitmap on the device.

    Parameters
    ----------
    item_filter
        The filter.
    device
        Where to.

    Attributes
    ----------
    item_filter
        The filter.
    tables
        What ``gentrie.kernels`` knows of it.
    descriptors
        int64 [1, columns] on the device.
    """

    def __init__(self, item_filter: ItemFilter, device: torch.device | str) -> None:
        if not isinstance(item_filter, ItemFilter):
            raise TypeError(f"item_filter is a {type(item_filter).__name__}, expected an ItemFilter")
        self.item_filter, self.device = item_filter, torch.empty(0, device=device).device
        host = item_filter.arrays()
        num_leaves = item_filter.trie.num_sequences
        if item_filter.num_sequences + len(host["closed_leaves"]) == num_leaves:
            del host["leaf_words"]
        arrays = {
            name: torch.from_numpy(array.view(f"i{array.itemsize}").copy()).to(self.device)
            for name, array in host.items()
        }
        self.tables = FilterTables(
            num_leaves=num_leaves,
            leaf_words=arrays.get("leaf_words"),
            closed_leaves=arrays["closed_leaves"],
            core=item_filter._core,
        )
        self.descriptors = make_descriptors([self.tables], self.device)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        parts = [self.tables.closed_leaves, self.tables.leaf_words]
        return sum(int(part.nbytes) for part in parts if part is not None)


class _CoreLookups:
    """``Lookups`` of ``gentrie.kernels.tables`` by the C++ core."""

    def __init__(self, core: _core.Trie) -> None:
        self._core = core

    def advance(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        after = torch.from_numpy(self._core.advance_batch(_on_trie(states), _numpy(tokens), 1))
        return torch.where(states < 0, states, after)

    def next_tokens(self, states: torch.Tensor, allowed: FilterTables | None) -> tuple[torch.Tensor, torch.Tensor]:
        owner = self._core if allowed is None else cast(_core.ItemFilter, allowed.core)
        tokens, indptr = owner.next_tokens_batch(_on_trie(states))
        return torch.from_numpy(tokens).long(), torch.from_numpy(indptr)

    def num_left(self, states: torch.Tensor, allowed: FilterTables | None) -> torch.Tensor:
        before = _on_trie(states)
        if allowed is not None:
            return torch.from_numpy(cast(_core.ItemFilter, allowed.core).num_sequences_below_batch(before))
        return torch.tensor([self._core.num_sequences_below(state) for state in before.tolist()], dtype=torch.int64)


def _on_trie(states: torch.Tensor) -> npt.NDArray[np.int64]:
    """States as the core takes them: it knows no -3."""
    return _numpy(states.clamp(min=-1))


def _numpy(values: torch.Tensor) -> npt.NDArray[np.int64]:
    array: npt.NDArray[np.int64] = values.long().contiguous().numpy()
    return array


def _host_arrays(trie: TokenTrie, items: bool) -> dict[str, npt.NDArray[Any]]:
    arrays = trie._core.arrays()
    return {name: array for name, array in arrays.items() if items or not name.startswith("item_")}


def _on_device(host: dict[str, npt.NDArray[Any]], device: torch.device) -> dict[str, torch.Tensor]:
    """Each array as a tensor: the memory itself on the CPU, elsewhere one allocation for all."""
    borrowed = {name: _borrowed(array) for name, array in host.items()}
    if device.type == "cpu":
        return {name: bytes_.view(_SIGNED[host[name].itemsize]) for name, bytes_ in borrowed.items()}
    storage = torch.zeros(sum(padded(array.nbytes) for array in host.values()), dtype=torch.uint8, device=device)
    arrays, at = {}, 0
    for name, bytes_ in borrowed.items():
        storage[at : at + len(bytes_)].copy_(bytes_)
        arrays[name] = storage[at : at + len(bytes_)].view(_SIGNED[host[name].itemsize])
        at += padded(len(bytes_))
    return arrays


def _borrowed(array: npt.NDArray[Any]) -> torch.Tensor:
    """The bytes of a read-only array as a tensor that must not be written to; it keeps the array alive."""
    if not array.nbytes:
        return torch.empty(0, dtype=torch.uint8)
    buffer = (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)
    buffer.owner = array  # type: ignore[attr-defined]
    return torch.frombuffer(buffer, dtype=torch.uint8)


def padded(nbytes: int) -> int:
    """Up to the next multiple of what arrays are aligned to."""
    return (nbytes + _ALIGNMENT - 1) // _ALIGNMENT * _ALIGNMENT
