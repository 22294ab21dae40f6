"""What beam search loses: positive items that the model itself ranks among the first K (BEAR, SIGIR 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate
from gentrie._item_names import refuse_item_names
from gentrie.evaluation.prefixes import allowed_sequences
from gentrie.evaluation.ranking import Int64Array, Targets, check_recommended, flat_targets

if TYPE_CHECKING:
    from gentrie.item_filter import ItemFilter
    from gentrie.trie import TokenTrie


@dataclass(frozen=True)
class Pruning:
    """Counts over (user, positive) pairs.

    Attributes
    ----------
    num_positives
        All pairs.
    num_top
        Positives whose overall probability is among the K highest of the catalog.
    num_pruned
        Of these, how many beam search did not return.
    num_violating
        Of those, how many have a token that was not among the B most probable at its step, against (3.2) of the paper.
    """

    num_positives: int
    num_top: int
    num_pruned: int
    num_violating: int

    @property
    def pruning_rate(self) -> float:
        """PruningRate@K (figure 6): pruned of those in the top K; 0 where none is."""
        return self.num_pruned / self.num_top if self.num_top else 0.0

    @property
    def violating_share(self) -> float:
        """Share of the pruned positives that violate (3.2) (figure 4); 0 where none is pruned."""
        return self.num_violating / self.num_pruned if self.num_pruned else 0.0


def pruning(
    logprobs: npt.NDArray[np.floating[Any]],
    targets: Targets,
    recommended: npt.NDArray[Any],
    k: int,
    trie: TokenTrie,
    *,
    token_ranks: Int64Array | None = None,
    beam_width: int | None = None,
) -> Pruning:
    """Compare beam search with the overall probabilities of the whole catalog.

    Parameters
    ----------
    logprobs
        Floats [users, num_sequences] from :func:`catalog_logprobs`; -inf for a sequence that is not there, which is
        never among the first K.
    targets
        Item ids, one a user or a list a user.
    recommended
        Item ids [users, K'] that beam search returned, best first, -1 where fewer. A positive is found by its
        sequence: any item with the same one will do.
    k
        Positions that count.
    trie
        The catalog.
    token_ranks
        int64 [positives, ...], from :func:`target_token_ranks` with ``targets``, one a row in order; without it nothing
        counts as violating.
    beam_width
        B of (3.2); default ``k``.

    Raises
    ------
    ValueError, TypeError
        For shapes that do not fit, and a target that the catalog lacks.
    """
    _validate.trie("trie", trie)
    rows = check_recommended(recommended, k)
    if logprobs.shape != (rows.shape[0], trie.num_sequences):
        raise ValueError(f"logprobs has shape {logprobs.shape}, expected {(rows.shape[0], trie.num_sequences)}")
    items, users = flat_targets(targets, rows.shape[0])
    leaves = leaves_of(items, trie, "targets")
    own = logprobs[users, leaves]
    top = (np.count_nonzero(logprobs[users] > own[:, None], axis=1) < k) & (own > -np.inf)
    found_leaves = np.full(rows.shape, -1, dtype=np.int64)
    found_leaves[rows >= 0] = leaves_of(rows[rows >= 0], trie, "recommended")
    pruned = top & np.all(found_leaves[users] != leaves[:, None], axis=1)
    violating: npt.NDArray[np.bool_] = np.zeros(items.size, dtype=bool)
    if token_ranks is not None:
        if token_ranks.ndim != 2 or token_ranks.shape[0] != items.size:
            raise ValueError(f"token_ranks has shape {token_ranks.shape}, expected [{items.size}, T]")
        width = k if beam_width is None else _validate.integer("beam_width", beam_width, 1, 2**31 - 1)
        violating = np.any(token_ranks > width, axis=1)
    return Pruning(items.size, int(top.sum()), int(pruned.sum()), int((pruned & violating).sum()))


def leaves_of(items: Int64Array, trie: TokenTrie, name: str, item_filter: ItemFilter | None = None) -> Int64Array:
    """The first sequence of each item id that a filter leaves, in the order of ``trie.to_sequences()``, int64 [N];
    ValueError for an item without one."""
    refuse_item_names(trie, name)
    _, _, ids, indptr = trie.to_sequences()
    leaf = np.repeat(np.arange(trie.num_sequences), np.diff(indptr))
    order = np.argsort(ids, kind="stable")
    order = order[allowed_sequences(trie, item_filter)[leaf[order]]]
    sorted_ids, leaves = ids[order], leaf[order]
    place = np.searchsorted(sorted_ids, items)
    missing = place == np.searchsorted(sorted_ids, items, side="right")
    for row in np.flatnonzero(missing)[:1]:
        where = "the catalog" if item_filter is None else "what item_filter leaves of the catalog"
        raise ValueError(f"{name}: item {items[row]} is not in {where}")
    return leaves[place]
