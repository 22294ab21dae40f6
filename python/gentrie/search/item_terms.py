"""What the scores of items add to those of the tokens that lead to them."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gentrie import _core
from gentrie.search.item_scores import CatalogLeaves, Float64Array, Int64Array, ItemScores


class ItemTerm(Protocol):
    """Added to ``model_weight`` times the model's log-probability; nothing where a token is the only choice."""

    @property
    def model_weight(self) -> float:
        """Weight of the model's log-probabilities."""

    @property
    def start(self) -> float:
        """Added to the first token."""

    def of_children(self, state: int, first_leaf: int, allowed: npt.NDArray[Any]) -> tuple[Float64Array, Int64Array]:
        """For allowed next tokens [n] of a branching state, whose first sequence below is ``first_leaf``: float64 [n],
        and the first sequence below each."""

    def first_leaf(self, state: int, first_leaf: int, token: int) -> int:
        """The first sequence below ``state`` and ``token``."""


class ShareTerm:
    """D3 (EMNLP 2024, arXiv 2406.14900): a token scores ``alpha * log p + (1 - alpha) * log q``, where q is its share
    of the item scores below the allowed tokens.

    As ``CFEnhancedLogitsProcessor`` in ``code/LogitProcesser.py`` of github.com/SAI990323/DecodingMatters computes it,
    whose ``guidance_scale`` is ``alpha``."""

    start = 0.0

    def __init__(self, scores: ItemScores, prompt: int, alpha: float) -> None:
        self._scores, self._prompt = scores, prompt
        self.model_weight = alpha

    def of_children(self, state: int, first_leaf: int, allowed: npt.NDArray[Any]) -> tuple[Float64Array, Int64Array]:
        shares, begins = self._scores.log_shares(self._prompt, state, first_leaf, allowed)
        return (1 - self.model_weight) * shares, begins

    def first_leaf(self, state: int, first_leaf: int, token: int) -> int:
        return self._scores.first_leaf(state, first_leaf, token)


class LookaheadTerm:
    """Planning-ahead constrained beam search (PAG, SIGIR 2024, arXiv 2404.14600, eq. 6 and algorithm 1).

    ``score(prefix) = log p(prefix) + max(score(item) for items below prefix)``, the maximum over all allowed items
    rather than over the n best of the paper, so that a complete sequence scores its log-probability plus its best
    item's score.

    Written as a sum over tokens: each adds how much lower the best item below it is than the best below its siblings,
    and the first one adds the best of all.

    Parameters
    ----------
    leaves
        Of the catalog.
    scores
        Real numbers [items], column i for item id i.
    chosen
        Items that count; None: all.
    """

    model_weight = 1.0

    def __init__(self, leaves: CatalogLeaves, scores: npt.NDArray[Any], chosen: _core.ItemFilter | None) -> None:
        self._leaves = leaves
        values = scores[leaves.item_ids].astype(np.float64)
        if chosen is not None:
            values[~np.isin(leaves.item_ids, chosen.items_below(0))] = -np.inf
        self._values: Float64Array = np.maximum.reduceat(values, leaves.indptr[:-1])
        self.start = float(self._values.max())

    def of_children(self, state: int, first_leaf: int, allowed: npt.NDArray[Any]) -> tuple[Float64Array, Int64Array]:
        below, begins = self._leaves.gather(np.maximum, self._values, state, first_leaf, allowed)
        return below - below.max(), begins

    def first_leaf(self, state: int, first_leaf: int, token: int) -> int:
        return self._leaves.first_leaf(state, first_leaf, token)
