"""Metrics of recommended lists that need no target: repeats, items outside the catalog, coverage, evenness.

Recommendations are int64 [users, K'], best first: an item id, -1 where nothing was given, -2 for text that is no item
of the catalog (:func:`resolve_lists`). Rates are over the positions that were given; 0 where none was.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate
from gentrie._item_names import refuse_item_names
from gentrie.evaluation.ranking import Int64Array, check_recommended, first_occurrences

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie

NOTHING, OUTSIDE = -1, -2


def resolve_lists(trie: TokenTrie, sequences: Sequence[Sequence[Sequence[int]]], k: int) -> Int64Array:
    """Recommendations [users, k] from generated token sequences, each user's best first.

    The smallest item id of each sequence, -2 where the catalog lacks it, -1 behind the last. End tokens are optional.
    """
    _validate.trie("trie", trie)
    refuse_item_names(trie, "resolve_lists")
    k = _validate.integer("k", k, 1, 2**31 - 1)
    ids = np.full((len(sequences), k), NOTHING, dtype=np.int64)
    for user, given in enumerate(sequences):
        for place, tokens in enumerate(given[:k]):
            items = trie.resolve(tokens) if len(tokens) else np.empty(0, dtype=np.int64)
            ids[user, place] = items[0] if items.size else OUTSIDE
    return ids


def repeat_rate(recommended: npt.NDArray[Any], k: int) -> float:
    """Repeat@K: the share of given items that stand earlier in the same list."""
    rows = check_recommended(recommended, k)
    return _rate((rows >= 0) & ~first_occurrences(rows), rows)


def ood_rate(recommended: npt.NDArray[Any], k: int, *, catalog: Collection[int] | None = None) -> float:
    """OOD@K: the share of given positions that are no item of the catalog: -2, or an id not in ``catalog``."""
    rows = check_recommended(recommended, k)
    outside = rows == OUTSIDE
    if catalog is not None:
        outside |= (rows >= 0) & ~np.isin(rows, np.fromiter(catalog, dtype=np.int64, count=len(catalog)))
    return _rate(outside, rows)


def in_history_rate(recommended: npt.NDArray[Any], histories: Sequence[Sequence[int]], k: int) -> float:
    """InHistory@K: the share of given items that stand in the user's history, a list of item ids a user."""
    rows = check_recommended(recommended, k)
    if len(histories) != rows.shape[0]:
        raise ValueError(f"histories are of {len(histories)} users, recommended of {rows.shape[0]}")
    inside = np.stack(
        [
            np.isin(row, _validate.int64_array(f"histories[{user}]", past))
            for user, (row, past) in enumerate(zip(rows, histories, strict=True))
        ]
    )
    return _rate(inside & (rows >= 0), rows)


def coverage(recommended: npt.NDArray[Any], k: int, num_items: int) -> float:
    """Coverage@K: the share of the catalog's ``num_items`` that anybody was given."""
    return _exposures(recommended, k, num_items).size / num_items


def gini(recommended: npt.NDArray[Any], k: int, num_items: int) -> float:
    """Gini@K: Gini coefficient of how often each of ``num_items`` items was given; 0 even, towards 1 for few items.

    Raises
    ------
    ValueError
        If nothing was given.
    """
    counts = _exposures(recommended, k, num_items)
    if not counts.size:
        raise ValueError("recommended holds no item")
    rank_from_the_top = np.arange(counts.size, 0, -1)  # of the items given; the others come before and add nothing
    ranks = (num_items + 1) - rank_from_the_top.astype(np.float64)
    return float(2 * (ranks * np.sort(counts)).sum() / counts.sum() / num_items - (num_items + 1) / num_items)


def control_symbol_rate(
    responses: Sequence[Sequence[int]] | npt.NDArray[Any], *, begin_token_id: int, end_token_id: int, num_items: int
) -> float:
    """CSN with n = ``num_items`` (RecLM-cgen, multi-round test): the share of responses with exactly n items.

    Parameters
    ----------
    responses
        Generated token ids, one list a response or an array [responses, T].
    begin_token_id, end_token_id
        The control symbols around an item. A response counts where it opens n items and closes each before the next
        one opens; with n = 0, where it holds neither symbol.
    num_items
        Items asked for: K in a turn that asks for recommendations, 0 in one that does not.
    """
    if not len(responses):
        raise ValueError("there are no responses")
    wanted = [begin_token_id, end_token_id] * _validate.integer("num_items", num_items, 0, 2**31 - 1)
    symbols = (begin_token_id, end_token_id)
    right = [[int(token) for token in row if token in symbols] == wanted for row in responses]
    return sum(right) / len(right)


def _exposures(recommended: npt.NDArray[Any], k: int, num_items: int) -> Int64Array:
    """Int64 [items given], how often each was given, ascending by item id."""
    rows = check_recommended(recommended, k)
    num_items = _validate.integer("num_items", num_items, 1, 2**62)
    _, counts = np.unique(rows[rows >= 0], return_counts=True)
    if counts.size > num_items:
        raise ValueError(f"recommended holds {counts.size} different items, num_items is {num_items}")
    return counts


def _rate(chosen: npt.NDArray[np.bool_], rows: Int64Array) -> float:
    given = int(np.count_nonzero(rows != NOTHING))
    return int(np.count_nonzero(chosen)) / given if given else 0.0
