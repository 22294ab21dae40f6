"""What a beam search over a catalog returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BeamStats:
    """What a search cost, over all prompts.

    Attributes
    ----------
    model_calls
        Calls of the model, the prompts' included.
    rows
        Distributions over the next token that were computed, the prompts' included.
    tokens_computed
        Tokens fed to the model behind the prompts.
    tokens_forced
        Those of the returned sequences that were the only choice.
    padded_slots
        Places in the model's inputs behind the prompts that held no token.
    """

    model_calls: int
    rows: int
    tokens_computed: int
    tokens_forced: int
    padded_slots: int


@dataclass(frozen=True)
class BeamSearchResult:
    """The items of each prompt, best first; only what was found.

    Attributes
    ----------
    sequences
        For each prompt, token ids of each item, end token included.
    sequences_scores
        For each prompt float64 [found]: log-probability over ``length ** length_penalty``.
    token_scores
        For each prompt and item float64 [tokens], log-probabilities; 0 for forced tokens under ``scope="trie"``.
    item_ids
        For each prompt and item int64 [n], the items that share the sequence.
    num_found
        int64 [prompts].
    stats
        What it cost.
    """

    sequences: list[list[list[int]]]
    sequences_scores: list[Float64Array]
    token_scores: list[list[Float64Array]]
    item_ids: list[list[npt.NDArray[np.int64]]]
    num_found: npt.NDArray[np.int64]
    stats: BeamStats
