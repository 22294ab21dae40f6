"""Likelihood over valid tokens: MSL (SIGIR 2025, arXiv 2504.04178) and RecLM-cgen's scope mask (arXiv 2505.03336)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _validate
from gentrie.training import _arguments, _compute
from gentrie.training._device import OnePass
from gentrie.training._reduce import Reduction
from gentrie.training._rows import LabelRows, OnInvalid, Scope
from gentrie.training._scores import Scores
from gentrie.trie import TokenTrie

Variant = Literal["msl", "scope_mask_1", "scope_mask_2", "scope_mask_3"]
FocalRows = Literal["restricted", "all"]

_VARIANTS = ("msl", "scope_mask_1", "scope_mask_2", "scope_mask_3")


@dataclass(frozen=True)
class MaskedSoftmaxObjective:
    """The token losses of the masked softmax; see :func:`masked_softmax_loss` for the arguments."""

    variant: Variant
    end_token_id: int | None
    end_token_in_scope: bool
    focal_gamma: float | None
    focal_rows: FocalRows

    beam_width = None

    def __post_init__(self) -> None:
        _validate.choice("variant", self.variant, _VARIANTS)
        _validate.choice("end_token_in_scope", self.end_token_in_scope, (False, True))
        _validate.choice("focal_rows", self.focal_rows, ("restricted", "all"))
        if self.focal_gamma is not None and _arguments.finite("focal_gamma", self.focal_gamma) < 0:
            raise ValueError(f"focal_gamma={self.focal_gamma} is negative")

    @property
    def one_pass(self) -> OnePass | None:
        return OnePass() if self.focal_gamma is None else None

    @property
    def published_normalizer(self) -> str:
        return "branching" if self.variant == "msl" else "labels"

    def restricted(self, rows: LabelRows) -> npt.NDArray[np.bool_]:
        if self.variant == "msl":
            return np.ones(len(rows.row), dtype=np.bool_)
        restricted: npt.NDArray[np.bool_] = rows.num_valid >= (2 if self.variant == "scope_mask_1" else 1)
        if self.end_token_id is not None and not self.end_token_in_scope:
            restricted &= rows.label != self.end_token_id
        return restricted

    def losses(self, scores: Scores, scope: Scope) -> tuple[torch.Tensor, None]:
        losses = -scores.log_prob
        if self.focal_gamma is None:
            return losses, None
        count = len(scope.narrow) if self.focal_rows == "restricted" else losses.numel()
        # 1 - p as -expm1(log p), and p = 1 rounded away from where the power has no derivative.
        tiny = torch.finfo(losses.dtype).tiny
        remaining = -torch.expm1(scores.log_prob[:count])
        factor = remaining.clamp(min=tiny) ** self.focal_gamma
        return torch.cat([losses[:count] * factor, losses[count:]]), None

    def describe(self, scores: Scores, scope: Scope) -> dict[str, torch.Tensor]:
        return {}


def masked_softmax_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    trie: TokenTrie,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    variant: Variant = "msl",
    end_token_in_scope: bool = False,
    focal_gamma: float | None = None,
    focal_rows: FocalRows = "restricted",
    tau: float | torch.Tensor = 1.0,
    normalizer: float | str | torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    sequence_weights: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
    return_stats: bool = False,
) -> Any:
    """Negative log-likelihood over the valid tokens, from logits.

    ``"msl"`` scores every label in an item over the tokens valid there. RecLM-cgen's scope masks, as coded: type 1
    restricts labels with two or more valid tokens and scores the others over the whole vocabulary, types 2 and 3
    restrict all of a title; the end token is always scored over the whole vocabulary.

    Parameters
    ----------
    logits, labels, trie, states, item_filter, tau, token_weights, sequence_weights, reduction, ignore_index
        As in :func:`bear_loss`.
    on_invalid
        As in :func:`bear_loss`.
    variant
        Which labels are restricted.
    end_token_in_scope
        With a scope mask: restrict the end token as any other (the paper's eq. 4; not what its code does).
    focal_gamma
        Multiply each loss by ``(1 - p) ** focal_gamma``, through which the gradient goes; None for none.
    focal_rows
        ``"restricted"``: only labels scored over valid tokens (RecLM-cgen's loss type 1); ``"all"`` (type 2).
    normalizer
        As in :func:`bear_loss`; default ``"branching"`` for MSL, ``"labels"`` for the scope masks.
    return_stats
        Return ``(loss, LossStats)``.

    Returns
    -------
    torch.Tensor
        As :func:`bear_loss`. MSL with a temperature multiplies the loss by it: ``tau * masked_softmax_loss(...)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`bear_loss`.
    """
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.logits_source(logits, labels, catalog.trie)
    return _compute.loss(
        source,
        tokens,
        catalog,
        MaskedSoftmaxObjective(variant, trie.end_token_id, end_token_in_scope, focal_gamma, focal_rows),
        states=states,
        tau=tau,
        normalizer=normalizer,
        token_weights=token_weights,
        sequence_weights=sequence_weights,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
        return_stats=return_stats,
    )


def linear_masked_softmax_loss(
    hidden: torch.Tensor,
    lm_head: torch.nn.Module | torch.Tensor,
    labels: torch.Tensor,
    *,
    trie: TokenTrie,
    lm_head_bias: torch.Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    variant: Variant = "msl",
    end_token_in_scope: bool = False,
    focal_gamma: float | None = None,
    focal_rows: FocalRows = "restricted",
    tau: float | torch.Tensor = 1.0,
    normalizer: float | str | torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    sequence_weights: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
    return_stats: bool = False,
) -> Any:
    """:func:`masked_softmax_loss` straight from hidden states and the LM head.

    Parameters
    ----------
    hidden, lm_head, lm_head_bias, logit_softcap, logit_scale
        As in :func:`linear_bear_loss`.
    labels, trie, states, variant, end_token_in_scope, focal_gamma, focal_rows, tau, normalizer, token_weights
        As in :func:`masked_softmax_loss`.
    sequence_weights, reduction, ignore_index, on_invalid, return_stats
        As in :func:`masked_softmax_loss`.

    Raises
    ------
    ValueError, TypeError
        As :func:`linear_bear_loss`.
    """
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.hidden_source(
        hidden, lm_head, labels, catalog.trie, lm_head_bias, logit_softcap, logit_scale
    )
    return _compute.loss(
        source,
        tokens,
        catalog,
        MaskedSoftmaxObjective(variant, trie.end_token_id, end_token_in_scope, focal_gamma, focal_rows),
        states=states,
        tau=tau,
        normalizer=normalizer,
        token_weights=token_weights,
        sequence_weights=sequence_weights,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
        return_stats=return_stats,
    )
