"""What text with items inside comes back as."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class TextStats:
    """What a call cost.

    Attributes
    ----------
    model_calls
        Calls of the model, the prompt's included.
    tokens_computed
        Tokens fed to it, padding left out; a response's last token is not.
    tokens_chosen
        Tokens picked from the model's scores.
    tokens_forced
        Tokens that catalog or template left no choice about.
    padded_slots
        Places in the model's inputs that held no token.
    """

    model_calls: int
    tokens_computed: int
    tokens_chosen: int
    tokens_forced: int
    padded_slots: int


@dataclass(frozen=True)
class TextWithItems:
    """What :func:`gentrie.generation.generate_with_items` returns.

    Attributes
    ----------
    sequences
        int64 [rows, length], prompts included, padded on the right; as ``generate`` returns them.
    items
        For each row its complete items in order, each as the int64 ids of the allowed items that share its title.
    stats
        What the call cost.
    token_scores
        Under ``output_scores=True``, for each row float64 [tokens of its response]: log-probability of each token under
        the distribution it was taken from, processors and catalog included; 0 for forced tokens. None otherwise.
    item_log_probs
        Under ``output_scores=True``, for each row float64 [its items]: the sum of ``token_scores`` over each item's
        tokens in the response, end token included and begin token left out. None otherwise.
    """

    sequences: torch.Tensor
    items: list[list[npt.NDArray[np.int64]]]
    stats: TextStats
    token_scores: list[npt.NDArray[np.float64]] | None = None
    item_log_probs: list[npt.NDArray[np.float64]] | None = None
