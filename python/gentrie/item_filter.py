"""Which items may be given: item ids or boolean arrays, as filters of the core."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gentrie import _core, _validate

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie


def make_filter(trie: TokenTrie, item_filter: Any) -> _core.ItemFilter | None:
    """A filter from item ids (any integers; those the catalog lacks are ignored) or from a boolean array whose entry i
    says whether item id i is allowed. None gives none.

    Raises
    ------
    ValueError, TypeError
        For other dtypes or shapes, and for a boolean array that does not reach the catalog's largest item id.
    """
    if item_filter is None:
        return None
    if _validate.is_tensor(item_filter):
        item_filter = item_filter.detach().cpu().numpy()
    if isinstance(item_filter, set | frozenset | range):
        item_filter = list(item_filter)
    array = np.asarray(item_filter)
    if array.size == 0 and not isinstance(item_filter, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.ndim != 1:
        raise ValueError(f"item_filter has shape {array.shape}, expected one dimension")
    if array.dtype == np.bool_:
        return _core.ItemFilter.from_mask(trie._core, array)
    return _core.ItemFilter.from_item_ids(trie._core, _validate.int64_array("item_filter", array))


def make_filters(trie: TokenTrie, item_filter: Any) -> list[_core.ItemFilter | None]:
    """One filter for all rows, or a list of one a row (None: every item), as a list."""
    if _is_per_row(item_filter):
        return [make_filter(trie, row) for row in item_filter]
    return [make_filter(trie, item_filter)]


def _is_per_row(item_filter: Any) -> bool:
    if _validate.is_tensor(item_filter) or isinstance(item_filter, np.ndarray):
        return item_filter.ndim == 2
    return (
        isinstance(item_filter, Sequence)
        and len(item_filter) > 0
        and all(entry is None or np.ndim(entry) == 1 or isinstance(entry, set | frozenset) for entry in item_filter)
    )
