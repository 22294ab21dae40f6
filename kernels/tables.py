"""A trie's arrays on a device, and the descriptor rows by which kernels find them.

A descriptor is an int64 tensor [rows, WIDTH] on the device; each row holds counts and base addresses. Kernels read both
from there, so that what a captured CUDA graph reads is what the row holds when it is replayed. A row of zeros is empty:
no state lies in it. Row numbers, like states, come from the device unchecked, and kernels bound them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

import torch

WIDTH = 32
"""Columns of a descriptor, more than are in use."""

COUNTS = (
    "key",
    "num_nodes",
    "num_edges",
    "num_leaves",
    "num_run_tokens",
    "vocab_size",
    "end_token_id",
    "num_tokens",
    "edge_token_bytes",
    "run_token_bits",
    "run_offset_bits",
)
"""The first columns of a trie's row."""

ARRAYS = (
    "vocabulary",
    "edge_indptr",
    "edge_tokens",
    "edge_to_node",
    "leaf_begin",
    "leaf_prefix",
    "run_tokens",
    "run_blocks",
    "run_offsets",
)
"""The columns behind those, base addresses. ``csrc/include/gentrie/view.h`` says what each array holds."""

FILTER_COLUMNS = ("key", "num_leaves", "num_closed", "leaf_words", "closed_leaves")
"""The columns of a filter's row."""


class Lookups(Protocol):
    """What operations on the CPU ask of a trie: the C++ core answers, or plain torch in ``reference``."""

    def next_tokens(self, states: torch.Tensor, allowed: FilterTables | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Valid next tokens of states int64 [N]: int64 tokens and indptr [N + 1], only those below which the filter
        leaves a sequence."""

    def advance(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """States int64 [N] after one token each."""

    def num_left(self, states: torch.Tensor, allowed: FilterTables | None) -> torch.Tensor:
        """Sequences int64 [N] that the filter leaves below each state; 0 for negative ones."""


_next_key = count(1)


def _new_key() -> int:
    return next(_next_key)


@dataclass(eq=False, frozen=True, kw_only=True)
class TrieTables:
    """The counts and arrays of one trie, on one device; unsigned arrays are held in signed types of the same width.

    ``key`` names the tables in this process and stands in their descriptor row, by which :func:`tables_of` finds them.
    """

    num_nodes: int
    num_edges: int
    num_leaves: int
    num_run_tokens: int
    vocab_size: int
    end_token_id: int
    num_tokens: int
    max_branching: int
    edge_token_bytes: int
    run_token_bits: int
    run_offset_bits: int
    vocabulary: torch.Tensor
    edge_indptr: torch.Tensor
    edge_tokens: torch.Tensor
    edge_to_node: torch.Tensor
    leaf_begin: torch.Tensor
    leaf_prefix: torch.Tensor
    run_tokens: torch.Tensor
    run_blocks: torch.Tensor
    run_offsets: torch.Tensor
    lookups: Lookups | None = None
    key: int = field(default_factory=_new_key)

    def __post_init__(self) -> None:
        _TRIES[self.key] = self

    def descriptor_row(self) -> list[int]:
        """Counts and addresses, WIDTH ints."""
        row = [getattr(self, name) for name in COUNTS] + [getattr(self, name).data_ptr() for name in ARRAYS]
        return row + [0] * (WIDTH - len(row))


@dataclass(eq=False, frozen=True, kw_only=True)
class FilterTables:
    """Which leaves are allowed: those in the ranked bitmap ``leaf_words`` (None: all) less ``closed_leaves``."""

    num_leaves: int
    leaf_words: torch.Tensor | None
    closed_leaves: torch.Tensor
    core: object = None
    key: int = field(default_factory=_new_key)

    def __post_init__(self) -> None:
        _FILTERS[self.key] = self

    def descriptor_row(self) -> list[int]:
        """Counts and addresses, WIDTH ints."""
        words = 0 if self.leaf_words is None else self.leaf_words.data_ptr()
        row = [self.key, self.num_leaves, len(self.closed_leaves), words, self.closed_leaves.data_ptr()]
        return row + [0] * (WIDTH - len(row))


Tables = TypeVar("Tables", TrieTables, FilterTables)

_TRIES: WeakValueDictionary[int, TrieTables] = WeakValueDictionary()
_FILTERS: WeakValueDictionary[int, FilterTables] = WeakValueDictionary()


def tables_of(descriptors: torch.Tensor) -> list[TrieTables | None]:
    """The tables of each descriptor row, None for empty ones. Waits for the device.

    Raises
    ------
    ValueError
        For a row whose trie was let go: whoever uses descriptors keeps what they describe.
    """
    return [_found(_TRIES, "trie", row, key) for row, key in enumerate(descriptors[:, 0].tolist())]


def filters_of(descriptors: torch.Tensor) -> list[FilterTables | None]:
    """The same for filters."""
    return [_found(_FILTERS, "filter", row, key) for row, key in enumerate(descriptors[:, 0].tolist())]


def _found(resident: WeakValueDictionary[int, Tables], name: str, row: int, key: int) -> Tables | None:
    if key == 0:
        return None
    tables = resident.get(key)
    if tables is None:
        raise ValueError(f"descriptors[{row}] describes a {name} that no longer exists: keep the object it came from")
    return tables


def make_descriptors(rows: Sequence[TrieTables | FilterTables], device: torch.device) -> torch.Tensor:
    """int64 [rows, WIDTH] on ``device``."""
    return torch.tensor([row.descriptor_row() for row in rows], dtype=torch.int64).to(device)
