"""Scores of items from outside the model, gathered below the branches of a trie."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate
from gentrie._item_names import refuse_item_names
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


class CatalogLeaves:
    """The sequences of a trie in lexicographic order: which items they stand for, where those below a branch begin."""

    def __init__(self, trie: TokenTrie) -> None:
        self._trie = trie
        _, _, self.item_ids, self.indptr = trie._core.to_sequences(False)
        """int64 [items], by sequence, and int64 [sequences + 1]: where each sequence's begin."""
        self._known: dict[int, tuple[npt.NDArray[np.int32], Int64Array]] = {}

    def check(self, name: str, scores: Any, *, axes: str, lowest: float = -np.inf) -> npt.NDArray[Any]:
        """Real numbers with these ``axes``, ``"[prompts, items]"`` or ``"[items]"``, that are finite, at least
        ``lowest`` and reach every item id.

        Raises
        ------
        ValueError
            Naming the entry.
        """
        refuse_item_names(self._trie, name)
        if _validate.is_tensor(scores):
            scores = scores.detach().double().cpu().numpy()
        array = np.asarray(scores)
        if array.ndim != axes.count(",") + 1 or array.dtype.kind not in "fiu":
            raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected real numbers {axes}")
        for bad in np.argwhere(~np.isfinite(array) | (array < lowest))[:1]:
            place = "".join(f"[{index}]" for index in bad)
            raise ValueError(f"{name}{place}={array[tuple(bad)]} is not finite or below {lowest}")
        ids = self.item_ids
        if ids.size and (ids.min() < 0 or ids.max() >= array.shape[-1]):
            raise ValueError(
                f"{name} has {array.shape[-1]} columns, the catalog's item ids lie in [{ids.min()}, {ids.max()}]"
            )
        return array

    def children(self, state: int) -> tuple[npt.NDArray[np.int32], Int64Array]:
        """Next tokens of a state, and where the sequences below each begin, counted from the state's first; the last
        entry is where they end."""
        if state not in self._known:
            tokens = self._trie.next_tokens(state)
            counts = [self._trie.num_sequences_below(self._trie.advance(state, int(token))) for token in tokens]
            self._known[state] = tokens, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return self._known[state]

    def first_leaf(self, state: int, first_leaf: int, token: int) -> int:
        """The first sequence below ``state`` and ``token``, of which ``first_leaf`` is the first below ``state``."""
        if self._trie.next_tokens(state).size == 1:
            return first_leaf
        tokens, offsets = self.children(state)
        return first_leaf + int(offsets[np.searchsorted(tokens, token)])

    def gather(
        self, operation: np.ufunc, values: Float64Array, state: int, first_leaf: int, allowed: npt.NDArray[Any]
    ) -> tuple[Float64Array, Int64Array]:
        """``operation`` over the values [sequences] below each of some children of a state, and the first sequence
        below each. Costs as much as there are sequences below the state, which for all beams of a depth are no more
        than the catalog's."""
        tokens, offsets = self.children(state)
        at = np.searchsorted(tokens, allowed)
        below = operation.reduceat(values[first_leaf : first_leaf + offsets[-1]], offsets[:-1])
        return below[at], first_leaf + offsets[at]


class ItemScores:
    """Item scores of each prompt, summed below the branches of a trie (D3, EMNLP 2024, arXiv 2406.14900).

    Each range is summed by itself, none subtracted from another, so that small scores beside large ones keep their
    digits at any spread.

    Parameters
    ----------
    trie
        The catalog.
    item_scores
        Real numbers [prompts, items], not negative and finite; column i is the score of item id i. What several items
        that share a sequence score is added up.
    leaves
        ``CatalogLeaves(trie)``, where it is there already.

    Raises
    ------
    ValueError
        For other shapes, negative or non-finite scores, naming prompt and item, and for too few columns.
    """

    def __init__(self, trie: TokenTrie, item_scores: Any, leaves: CatalogLeaves | None = None) -> None:
        self._leaves = CatalogLeaves(trie) if leaves is None else leaves
        scores = self._leaves.check("item_scores", item_scores, axes="[prompts, items]", lowest=0)
        ids, indptr = self._leaves.item_ids, self._leaves.indptr
        self._values = [np.add.reduceat(row[ids].astype(np.float64), indptr[:-1]) for row in scores]

    @property
    def num_prompts(self) -> int:
        """Rows of the scores."""
        return len(self._values)

    def log_shares(
        self, prompt: int, state: int, first_leaf: int, allowed: npt.NDArray[Any]
    ) -> tuple[Float64Array, Int64Array]:
        """How the score below a state is shared out among some of its next tokens.

        Parameters
        ----------
        prompt
            Row of the scores.
        state
            A state at a branch.
        first_leaf
            Number, in lexicographic order, of the first sequence below it; 0 at the root.
        allowed
            Integers [n], next tokens of ``state`` that may follow, ascending.

        Returns
        -------
        log_shares, first_leaves
            float64 [n], the logarithm of each token's share, finite also where its score is 0, and int64 [n], the
            first sequence below each.
        """
        below, begins = self._leaves.gather(np.add, self._values[prompt], state, first_leaf, allowed)
        total = below.sum()
        shares = below / total if total > 0 else np.full(below.size, 1 / below.size)
        return np.log(np.maximum(shares, np.finfo(np.float64).tiny)), begins

    def first_leaf(self, state: int, first_leaf: int, token: int) -> int:
        """The first sequence below ``state`` and ``token``, of which ``first_leaf`` is the first below ``state``."""
        return self._leaves.first_leaf(state, first_leaf, token)
