"""Memory of the machine, which refuses what a GPU would leave undefined."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from gentrie.device.trie import padded
from gentrie.kernels.tables import ARRAYS, TrieTables

_FIRST_ADDRESS = 4096
_LAST_ADDRESS = 1 << 47
_PAGE_BITS = 16
_NOBODY, _SEVERAL = -1, -2


class Fault(AssertionError):
    """What a GPU would leave undefined."""


def _all_memory(size: int) -> np.ndarray:
    """The process's address space as numbers of ``size`` bytes."""
    count = (_LAST_ADDRESS - _FIRST_ADDRESS) // size
    whole = (ctypes.c_uint8 * (count * size)).from_address(_FIRST_ADDRESS)
    return np.frombuffer(whole, dtype=f"u{size}")


_MEMORY = {size: _all_memory(size) for size in (1, 2, 4, 8)}


def _storage_of(tensor: torch.Tensor) -> list[tuple[int, int]]:
    """Where its memory begins and how many bytes that has; nothing for one that tracing left without memory."""
    storage = tensor.untyped_storage()
    try:
        return [(storage.data_ptr(), storage.nbytes())]
    except RuntimeError:  # "Attempted to access the data pointer on an invalid python storage"
        return []


class _Ranges:
    """Pieces of memory, which may overlap."""

    def __init__(self, pieces: Sequence[tuple[int, int]]) -> None:
        first, count = np.array(sorted(pieces), dtype=np.int64).reshape(-1, 2).T
        self._first = np.concatenate([[-1], first])
        self._last = np.maximum.accumulate(np.concatenate([[-1], first + count]))  # of all that begin at or before

    def hold(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Whether the ``size`` bytes at each address lie in one of them."""
        place = self._first.searchsorted(addresses, side="right") - 1
        return addresses + size <= self._last[place]


class GlobalMemory:
    """The tensors that are alive, which of a launch's threads read and wrote where, and what these could not see.

    ``who`` of a thread is its block, how many barriers that has passed, and its warp, in 31, 24 and 8 bits.
    ``acquired`` says whether the block has made an atomic operation behind which it sees what others wrote before.
    Places are told apart by their first bytes: numbers of other sizes that overlap are not seen to.
    """

    def __init__(self) -> None:
        tensors, tries = [], []
        for each in gc.get_objects():
            if type(each) in (torch.Tensor, torch.nn.Parameter) and each.device.type == "cpu":
                tensors += _storage_of(each)
            elif type(each) is TrieTables:
                tries += [getattr(each, name) for name in ARRAYS]
        read_only = [(array.data_ptr(), padded(array.nbytes)) for array in tries]  # which are read in whole words
        self._tries, self._all = _Ranges(read_only), _Ranges(tensors + read_only)
        self._touched: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def check(self, addresses: np.ndarray, size: int) -> None:
        """That ``size`` bytes at each address lie in a tensor and are aligned."""
        inside = self._all.hold(addresses, size)
        if not inside.all():
            raise Fault(f"address {addresses[~inside][0]:#x} is in no tensor")
        if (addresses % size).any():
            raise Fault(f"address {addresses[addresses % size != 0][0]:#x} is not a multiple of {size}")

    @staticmethod
    def numbers(size: int) -> tuple[np.ndarray, int]:
        """All memory as unsigned numbers of ``size`` bytes, and the address of the first."""
        return _MEMORY[size], _FIRST_ADDRESS

    def load(self, addresses: np.ndarray, size: int, who: np.ndarray, acquired: np.ndarray) -> np.ndarray:
        may_change = np.nonzero(~self._tries.hold(addresses, size))[0]
        for rows, at, writers, readers in self._by_page(addresses, may_change):
            mine, former = who[rows], readers[at]
            self._in_order(writers[at], mine, acquired[rows], "reads what {} wrote")
            is_past = (former >> 32 == mine >> 32) & (former >> 8 < mine >> 8)
            readers[at] = np.where((former == _NOBODY) | is_past, mine, _joined(former, mine))
            others = readers[at] != mine  # several threads read one place at once
            readers[at[others]] = _joined(readers[at], mine)[others]
        return _MEMORY[size][(addresses - _FIRST_ADDRESS) // size]

    def store(
        self, addresses: np.ndarray, values: np.ndarray, size: int, who: np.ndarray, acquired: np.ndarray
    ) -> None:
        memory, places = _MEMORY[size], (addresses - _FIRST_ADDRESS) // size
        changes = memory[places] != values
        for rows, at, writers, readers in self._by_page(addresses, np.arange(len(addresses))):
            changed = changes[rows]
            for former, how in ((writers, "overwrites what {} wrote"), (readers, "overwrites what {} read")):
                self._in_order(former[at[changed]], who[rows[changed]], acquired[rows[changed]], how)
            writers[at] = who[rows]
        memory[places] = values
        if (memory[places] != values).any():
            raise Fault("two threads write different values to one place")

    def _by_page(
        self, addresses: np.ndarray, rows: np.ndarray
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """Rows of ``addresses`` that lie in one page, where in it they are, and who wrote and read its bytes."""
        pages = addresses[rows] >> _PAGE_BITS
        for page in np.unique(pages).tolist():
            if page not in self._touched:
                self._touched[page] = tuple(np.full(1 << _PAGE_BITS, _NOBODY) for _ in range(2))
            here = rows[pages == page]
            yield here, addresses[here] & ((1 << _PAGE_BITS) - 1), *self._touched[page]

    @staticmethod
    def _in_order(former: np.ndarray, who: np.ndarray, acquired: np.ndarray, how: str) -> None:
        touched = former != _NOBODY
        if (touched & (former >> 32 != who >> 32) & ~acquired).any():
            raise Fault(how.format("another block") + " in this launch")
        if (touched & (former >> 8 == who >> 8) & (former != who)).any():
            raise Fault(how.format("another warp") + " since the last barrier")


def _joined(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``who`` for two readers: one of several warps, or of several blocks."""
    warps = np.where(first == second, first, first | 0xFF)
    return np.where((first == _SEVERAL) | (first >> 32 != second >> 32), _SEVERAL, warps)


class SharedMemory:
    """``size`` bytes of each block, and which warps touched each of them since the block's last barrier."""

    def __init__(self, num_blocks: int, size: int) -> None:
        self.size = -(-max(size, 1) // 16) * 16
        self._bytes = np.full(num_blocks * self.size, 0xA5, dtype=np.uint8)
        self._writer, self._reader = (np.full(len(self._bytes), _NOBODY) for _ in range(2))

    def barrier(self, blocks: np.ndarray) -> None:
        for touched in (self._writer, self._reader):
            touched.reshape(-1, self.size)[blocks] = _NOBODY

    def numbers(self, size: int) -> np.ndarray:
        """All blocks' memory as unsigned numbers of ``size`` bytes."""
        return self._bytes.view(f"u{size}")

    def places(self, block: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        """Where in ``numbers(size)`` the addresses of each block are."""
        if len(addresses) and (addresses.min() < 0 or addresses.max() + size > self.size):
            raise Fault(f"a shared address from {addresses.min()} to {addresses.max()} of {self.size} bytes")
        if (addresses % size).any():
            raise Fault(f"shared address {addresses[addresses % size != 0][0]} is not a multiple of {size}")
        return (block * self.size + addresses) // size

    def load(self, block: np.ndarray, warp: np.ndarray, addresses: np.ndarray, size: int) -> np.ndarray:
        places = self.places(block, addresses, size)
        at, mine = (places * size)[:, None] + np.arange(size), warp[:, None]
        writer, reader = self._writer[at], self._reader[at]
        if ((writer != _NOBODY) & (writer != mine)).any():
            raise Fault("reads what another warp wrote since the last barrier")
        self._reader[at] = np.where((reader == _NOBODY) | (reader == mine), mine, _SEVERAL)
        self._reader[at[self._reader[at] != mine]] = _SEVERAL  # several warps read one byte at once
        return self.numbers(size)[places]

    def store(self, block: np.ndarray, warp: np.ndarray, addresses: np.ndarray, values: np.ndarray, size: int) -> None:
        places = self.places(block, addresses, size)
        numbers, at, mine = self.numbers(size), (places * size)[:, None] + np.arange(size), warp[:, None]
        changes = (numbers[places] != values)[:, None]
        for touched, how in ((self._reader[at], "read"), (self._writer[at], "wrote")):
            if ((touched != _NOBODY) & (touched != mine) & changes).any():
                raise Fault(f"overwrites what another warp {how} since the last barrier")
        self._writer[at] = mine
        numbers[places] = values
        if (numbers[places] != values).any():
            raise Fault("two threads write different values to one place")
