# mypy: allow-untyped-calls
"""What the operations on tries share: how they reach one outside a kernel, and what they do where Triton cannot run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, NamedTuple

import torch

from gentrie.kernels._launch import on_device, usable
from gentrie.kernels._lookups import NoTrie, TorchLookups
from gentrie.kernels.tables import FilterTables, Lookups, filters_of, tables_of


class Group(NamedTuple):
    """Rows of a batch that share a trie and a filter."""

    rows: torch.Tensor
    lookups: Lookups
    allowed: FilterTables | None
    end_token_id: int
    vocabulary: torch.Tensor


def groups(
    num_rows: int,
    descriptors: torch.Tensor,
    trie_index: torch.Tensor | None,
    filters: torch.Tensor | None,
    filter_index: torch.Tensor | None,
) -> Iterator[Group]:
    """The rows of a batch by trie and filter. Waits for the device."""
    tries, allowed = tables_of(descriptors), [] if filters is None else filters_of(filters)
    zeros = torch.zeros(num_rows, dtype=torch.int64, device=descriptors.device)
    of_trie = zeros if trie_index is None else trie_index.long()
    of_filter = zeros if filter_index is None else filter_index.long()
    for trie_row, filter_row in sorted(set(zip(of_trie.tolist(), of_filter.tolist(), strict=True))):
        tables = tries[trie_row] if 0 <= trie_row < len(tries) else None
        rows = torch.nonzero((of_trie == trie_row) & (of_filter == filter_row)).squeeze(1)
        if tables is None:
            yield Group(rows, NoTrie(), None, -1, of_trie[:0])
            continue
        chosen = allowed[filter_row] if 0 <= filter_row < len(allowed) else None
        yield Group(rows, tables.lookups or TorchLookups(tables), chosen, tables.end_token_id, tables.vocabulary)


def or_torch(launch: Callable[..., Any], fallback: Callable[..., Any]) -> Callable[..., Any]:
    """``launch`` on the device of its first tensor, or ``fallback`` where Triton cannot run."""

    @wraps(launch)
    def run(first: torch.Tensor, *arguments: object) -> Any:
        if not usable():
            return fallback(first, *arguments)
        with on_device(first):
            return launch(first, *arguments)

    return run


_LIBRARY = torch.library.Library("gentrie", "FRAGMENT")


def register(
    name: str, schema: str, *, cpu: Callable[..., Any], cuda: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """An operation without gradients that costs the host little: ``torch.library.custom_op`` adds tens of microseconds
    to each call, which is most of what a step may take."""
    _LIBRARY.define(name + schema)
    _LIBRARY.impl(name, cpu, "CPU")
    _LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"gentrie::{name}", fake, lib=_LIBRARY)
    operation: Callable[..., Any] = getattr(torch.ops.gentrie, name).default
    return operation
