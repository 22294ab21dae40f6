"""What the operations share: how they reach a trie outside a kernel, and what they do where Triton cannot compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import NamedTuple

import torch

from gentrie.kernels._lookups import NoTrie, TorchLookups
from gentrie.kernels._triton import HAS_TRITON
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


def or_torch(launch: Callable[..., torch.Tensor], fallback: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """``launch``, or ``fallback`` where Triton is missing or finds no C compiler; that is said once."""
    failed = not HAS_TRITON

    @wraps(launch)
    def run(*arguments: object, **options: object) -> torch.Tensor:
        nonlocal failed
        if not failed:
            try:
                return launch(*arguments, **options)
            except RuntimeError as error:
                if "C compiler" not in str(error):
                    raise
                failed = True
        _warn()
        return fallback(*arguments, **options)

    return run


@cache
def _warn() -> None:
    reason = "no C compiler was found, which Triton needs" if HAS_TRITON else "the package triton is not installed"
    warnings.warn(f"gentrie uses plain torch on the GPU, which is slow: {reason}", RuntimeWarning, stacklevel=4)
