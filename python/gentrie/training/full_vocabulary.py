"""Plain cross entropy over the whole vocabulary, in chunks: supervised fine-tuning without a catalog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gentrie.training import _arguments, _compute
from gentrie.training._device import OnePass
from gentrie.training._reduce import Reduction
from gentrie.training._rows import LabelRows, Scope
from gentrie.training._scores import Scores


@dataclass(frozen=True)
class LikelihoodObjective:
    """``-log p`` over ``scope``."""

    scope: _compute.ScopeName

    beam_width = None
    published_normalizer = "labels"
    one_pass = OnePass()

    def restricted(self, rows: LabelRows) -> npt.NDArray[np.bool_]:
        return _compute.restricted_by(self.scope, rows)

    def losses(self, scores: Scores, scope: Scope) -> tuple[torch.Tensor, None]:
        return -scores.log_prob, None

    def describe(self, scores: Scores, scope: Scope) -> dict[str, torch.Tensor]:
        return {}


def sft_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    normalizer: float | str | torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    sequence_weights: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    return_stats: bool = False,
) -> Any:
    """Cross entropy of every label over the whole vocabulary, from logits.

    It is ``torch.nn.functional.cross_entropy(logits.float(), labels)`` without float32 logits beside the given ones,
    and the limit of :func:`bear_loss` with ``scope="vocab"`` and ``reg_weight=0``. It needs no trie.

    Parameters
    ----------
    logits, labels, token_weights, sequence_weights, reduction, ignore_index
        As in :func:`bear_loss`; nothing is shifted.
    normalizer
        As in :func:`bear_loss`; default ``"labels"``.
    return_stats
        Return ``(loss, LossStats)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`bear_loss`.
    """
    source, tokens = _arguments.logits_source(logits, labels, None)
    return _compute.loss(
        source,
        tokens,
        None,
        LikelihoodObjective("vocab"),
        states=None,
        tau=1.0,
        normalizer=normalizer,
        token_weights=token_weights,
        sequence_weights=sequence_weights,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid="error",
        return_stats=return_stats,
    )


def linear_sft_loss(
    hidden: torch.Tensor,
    lm_head: torch.nn.Module | torch.Tensor,
    labels: torch.Tensor,
    *,
    lm_head_bias: torch.Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    normalizer: float | str | torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    sequence_weights: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    return_stats: bool = False,
) -> Any:
    """:func:`sft_loss` straight from hidden states and the LM head, a block of the head at a time.

    Parameters
    ----------
    hidden, lm_head, lm_head_bias, logit_softcap, logit_scale
        As in :func:`linear_bear_loss`.
    labels, normalizer, token_weights, sequence_weights, reduction, ignore_index, return_stats
        As in :func:`sft_loss`.

    Raises
    ------
    ValueError, TypeError
        As :func:`linear_bear_loss`.
    """
    source, tokens = _arguments.hidden_source(hidden, lm_head, labels, None, lm_head_bias, logit_softcap, logit_scale)
    return _compute.loss(
        source,
        tokens,
        None,
        LikelihoodObjective("vocab"),
        states=None,
        tau=1.0,
        normalizer=normalizer,
        token_weights=token_weights,
        sequence_weights=sequence_weights,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid="error",
        return_stats=return_stats,
    )
