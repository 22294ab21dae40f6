"""Metrics of ranked recommendations: a hit where an item, or its token sequence, is among the first K.

Recommendations come as int64 [users, K'], best first, -1 where fewer were found; a position that holds -1 is a miss.
Targets are one id a user, [users], or a list of ids a user. All means are over users.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate
from gentrie._item_names import refuse_item_names

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie

Int64Array = npt.NDArray[np.int64]
Targets = Sequence[int] | Sequence[Sequence[int]] | npt.NDArray[Any]


def hit_rate(recommended: npt.NDArray[Any], targets: Targets, k: int, *, trie: TokenTrie | None = None) -> float:
    """HR@K: the share of users with a target among the first K.

    Parameters
    ----------
    recommended
        Item ids [users, K'], best first, padded with -1.
    targets
        Item ids, one a user or a list a user.
    k
        Positions that count; K' or less.
    trie
        Given one, a recommendation also hits where its token sequence is a target's: the catalog then lists one
        title several times, and a model cannot tell which item it wrote.

    Raises
    ------
    ValueError, TypeError
        For shapes, dtypes or a ``k`` that do not fit, and for a user without target.
    """
    hits, _ = _hits(recommended, targets, k, trie)
    return float(hits.any(1).mean())


def ndcg(recommended: npt.NDArray[Any], targets: Targets, k: int, *, trie: TokenTrie | None = None) -> float:
    """NDCG@K with binary gains: hits discounted by ``1 / log2(1 + rank)`` over the best sum the targets allow.

    Parameters and errors as of :func:`hit_rate`.
    """
    hits, counts = _hits(recommended, targets, k, trie)
    discounts = 1 / np.log2(np.arange(2, k + 2))
    best = np.cumsum(discounts)[np.minimum(counts, k) - 1]
    return float(((hits * discounts).sum(1) / best).mean())


def mrr(recommended: npt.NDArray[Any], targets: Targets, k: int, *, trie: TokenTrie | None = None) -> float:
    """MRR@K: the mean of 1 / rank of the first hit, 0 where there is none. Arguments as of :func:`hit_rate`."""
    hits, _ = _hits(recommended, targets, k, trie)
    return float((hits.any(1) / (1 + hits.argmax(1))).mean())


def recall(recommended: npt.NDArray[Any], targets: Targets, k: int, *, trie: TokenTrie | None = None) -> float:
    """Recall@K: the mean share of a user's targets that are found. Arguments as of :func:`hit_rate`."""
    hits, counts = _hits(recommended, targets, k, trie)
    return float((hits.sum(1) / counts).mean())


def ranks(recommended: npt.NDArray[Any], targets: Targets, *, trie: TokenTrie | None = None) -> Int64Array:
    """Int64 [users]: the rank of the first hit, from 1; 0 where there is none. Arguments as of :func:`hit_rate`."""
    hits, _ = _hits(recommended, targets, np.asarray(recommended).shape[-1], trie)
    return np.where(hits.any(1), hits.argmax(1) + 1, 0).astype(np.int64)


def representatives(ids: npt.NDArray[Any], trie: TokenTrie) -> Int64Array:
    """The smallest item id with the same token sequence, for each id; ids outside the catalog stay as they are."""
    _validate.trie("trie", trie)
    refuse_item_names(trie, "a metric with trie=")
    _, _, items, indptr = trie.to_sequences()
    smallest = np.minimum.reduceat(items, indptr[:-1])
    order = np.argsort(items, kind="stable")
    of_item = np.repeat(smallest, np.diff(indptr))
    values = np.asarray(ids, dtype=np.int64)
    place = np.minimum(np.searchsorted(items[order], values), items.size - 1)
    return np.where(items[order][place] == values, of_item[order][place], values)


def _hits(
    recommended: npt.NDArray[Any], targets: Targets, k: int, trie: TokenTrie | None
) -> tuple[npt.NDArray[np.bool_], Int64Array]:
    """Bool [users, k], each target counted at its first place only, and the number of targets of each user."""
    rows = check_recommended(recommended, k)
    values, users = flat_targets(targets, rows.shape[0])
    if trie is not None:
        rows, values = representatives(rows, trie), representatives(values, trie)
    # Ids by their place among the distinct targets: the ids themselves may take up all 64 bits.
    ids, place = np.unique(values, return_inverse=True)
    pairs = np.unique(users * ids.size + place)
    found = np.minimum(np.searchsorted(ids, rows), ids.size - 1)
    keys = np.where(ids[found] == rows, np.arange(rows.shape[0])[:, None] * ids.size + found, -1)
    hits = np.isin(keys, pairs) & first_occurrences(rows)
    return hits, np.bincount(pairs // ids.size, minlength=rows.shape[0])


def check_recommended(recommended: npt.NDArray[Any], k: int) -> Int64Array:
    """The first k columns as int64 [users, k]."""
    rows = _validate.int64_array("recommended", recommended)
    if rows.ndim != 2 or not rows.shape[0]:
        raise ValueError(f"recommended has shape {rows.shape}, expected [users, K] with one user or more")
    k = _validate.integer("k", k, 1, rows.shape[1])
    return rows[:, :k]


def first_occurrences(rows: Int64Array) -> npt.NDArray[np.bool_]:
    """Bool [users, k]: no earlier column of the row holds the same id."""
    order = np.argsort(rows, axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    new = np.ones(rows.shape, dtype=bool)
    new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.empty_like(new)
    np.put_along_axis(first, order, new, 1)
    return first


def flat_targets(targets: Targets, num_users: int) -> tuple[Int64Array, Int64Array]:
    """Ids and the user of each."""
    if len(targets) != num_users:
        raise ValueError(f"targets are of {len(targets)} users, recommended of {num_users}")
    if np.ndim(targets[0]) == 0:
        values = _validate.int64_array("targets", targets)
        users = np.arange(num_users)
    else:
        counts = np.array([len(row) for row in targets])  # type: ignore[arg-type]
        if not counts.all():
            raise ValueError(f"targets[{int(np.argmin(counts))}] is empty")
        values = _validate.int64_array("targets", np.concatenate([np.asarray(row) for row in targets]))
        users = np.repeat(np.arange(num_users), counts)
    if values.ndim != 1 or values.min(initial=0) < 0:
        raise ValueError("targets must be item ids from 0 on, one a user or a list a user")
    return values, users
