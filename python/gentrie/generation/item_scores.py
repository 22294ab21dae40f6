"""How much of an outside score lies below each branch of a trie (D3, EMNLP 2024)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_RADIX = 64


class LeafSums:
    """Sums of non-negative numbers over any ranges, each to the last few bits.

    Differences of running sums lose small ranges beside large ones, whatever the precision: here blocks of 64, of
    64 * 64 and so on are summed beforehand, and a range is the sum of at most 126 numbers of each size, none
    subtracted. The relative error stays below 1e-13 at any spread.

    Parameters
    ----------
    values
        float64 [N], not negative.
    """

    def __init__(self, values: Float64Array) -> None:
        self._levels = [values]
        while self._levels[-1].size > _RADIX:
            below = self._levels[-1]
            whole = below.size // _RADIX * _RADIX
            self._levels.append(below[:whole].reshape(-1, _RADIX).sum(axis=1))

    def sum(self, begin: int, end: int) -> float:
        """The sum of ``values[begin:end]``."""
        total = 0.0
        for level in self._levels:
            first, last = -(-begin // _RADIX), end // _RADIX
            if first >= last or level is self._levels[-1]:
                return total + float(level[begin:end].sum())
            total += float(level[begin : first * _RADIX].sum()) + float(level[last * _RADIX : end].sum())
            begin, end = first, last
        return total


class ItemScores:
    """Item scores of each prompt, summed below the branches of a trie.

    Parameters
    ----------
    trie
        The catalog.
    item_scores
        Real numbers [prompts, items], not negative and finite; column i is the score of item id i. What several items
        that share a sequence score is added up.

    Raises
    ------
    ValueError, TypeError
        For other shapes, negative or non-finite scores, naming prompt and item, and for too few columns.
    """

    def __init__(self, trie: TokenTrie, item_scores: Any) -> None:
        if _validate.is_tensor(item_scores):
            item_scores = item_scores.detach().double().cpu().numpy()
        scores = np.asarray(item_scores)
        if scores.ndim != 2 or scores.dtype.kind not in "fiu":
            raise ValueError(
                f"item_scores has shape {scores.shape} and dtype {scores.dtype}, expected real numbers [prompts, items]"
            )
        bad = np.argwhere(~(scores >= 0) | ~np.isfinite(scores))
        for prompt, item in bad[:1]:
            raise ValueError(f"item_scores[{prompt}][{item}]={scores[prompt, item]} is not finite or negative")
        _, _, ids, indptr = trie.to_sequences()
        if ids.size and (ids.min() < 0 or ids.max() >= scores.shape[1]):
            raise ValueError(
                f"item_scores has {scores.shape[1]} columns, the catalog's item ids lie in [{ids.min()}, {ids.max()}]"
            )
        self._trie = trie
        self._sums = [LeafSums(np.add.reduceat(row[ids].astype(np.float64), indptr[:-1])) for row in scores]
        self._ranges: dict[int, tuple[npt.NDArray[np.int32], Int64Array]] = {}

    @property
    def num_prompts(self) -> int:
        """Rows of the scores."""
        return len(self._sums)

    def log_shares(
        self, prompt: int, state: int, first_leaf: int, allowed: npt.NDArray[np.int32]
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
            int32 [n], next tokens of ``state`` that may follow, ascending.

        Returns
        -------
        log_shares, first_leaves
            float64 [n], the logarithm of each token's share, finite also where its score is 0, and int64 [n], the
            first sequence below each.
        """
        tokens, offsets = self._children(state)
        at = np.searchsorted(tokens, allowed)
        begins, ends = first_leaf + offsets[at], first_leaf + offsets[at + 1]
        sums = self._sums[prompt]
        below = np.array([sums.sum(int(a), int(b)) for a, b in zip(begins, ends, strict=True)])
        total = below.sum()
        shares = below / total if total > 0 else np.full(below.size, 1 / below.size)
        return np.log(np.maximum(shares, np.finfo(np.float64).tiny)), begins

    def first_leaf(self, state: int, first_leaf: int, token: int) -> int:
        """The first sequence below ``state`` and ``token``, of which ``first_leaf`` is the first below ``state``."""
        if self._trie.next_tokens(state).size == 1:
            return first_leaf
        tokens, offsets = self._children(state)
        return first_leaf + int(offsets[np.searchsorted(tokens, token)])

    def _children(self, state: int) -> tuple[npt.NDArray[np.int32], Int64Array]:
        """Next tokens of a state, and where the sequences below each begin, counted from the state's first."""
        if state not in self._ranges:
            tokens = self._trie.next_tokens(state)
            counts = [self._trie.num_sequences_below(self._trie.advance(state, int(token))) for token in tokens]
            self._ranges[state] = tokens, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return self._ranges[state]
