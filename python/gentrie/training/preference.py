"""S-DPO, preference of one item over several others (NeurIPS 2024, arXiv 2406.09215), with BEAR on both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from gentrie import _validate
from gentrie.training import _arguments, _compute
from gentrie.training._compute import ScopeName
from gentrie.training._rows import FilteredTrie, OnInvalid
from gentrie.training._scores import Source
from gentrie.training.bear import BearObjective
from gentrie.trie import TokenTrie


@dataclass(frozen=True)
class PreferenceStats:
    """What :func:`sdpo_loss` saw, outside the graph.

    Attributes
    ----------
    rewards
        [N, 1 + K], ``beta * (log p - reference log p)`` of each sequence; 0 where a row has fewer rejected ones.
    accuracy
        Share of the (chosen, rejected) pairs in which the chosen one has the higher reward; no dimensions.
    logprobs
        [N, 1 + K], log-probability of each sequence.
    """

    rewards: torch.Tensor
    accuracy: torch.Tensor
    logprobs: torch.Tensor


def sdpo_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    reference_logprobs: torch.Tensor,
    *,
    trie: TokenTrie,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    beta: float = 1.0,
    reg_weight: float = 0.0,
    reg_temperature: float = 1.0,
    beam_width: int = 10,
    tau: float | torch.Tensor = 1.0,
    scope: ScopeName = "trie",
    reduction: str = "mean",
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
    return_stats: bool = False,
) -> Any:
    """Softmax DPO over K rejected items, from logits.

    With ``r = beta * (log p - reference log p)`` of whole sequences, the loss of one prompt is
    ``-log sigmoid(-log sum_k exp(r_rejected_k - r_chosen))``; K = 1 is DPO. With ``reg_weight`` above 0, BEAR's
    regulariser is added on both sides: ``reg_weight`` times the sum over the chosen item's labels of
    ``log sigmoid(delta / reg_temperature)``, minus the same sum over the labels of the rejected ones.

    Parameters
    ----------
    logits
        [N, 1 + K, T, V]: of the chosen sequence first, then of the rejected ones.
    labels
        [N, 1 + K, T]. Where a prompt has fewer than K rejected sequences, the rest are ignored labels throughout.
    reference_logprobs
        [N, 1 + K]: :func:`sequence_logprobs` of the same labels, scope and temperature under the reference model, or
        with the adapter off, under ``torch.no_grad()``.
    trie, states, item_filter, reg_temperature, beam_width, tau, scope, ignore_index, on_invalid
        As in :func:`bear_loss`.
    beta
        How closely to stay to the reference.
    reg_weight
        Weight of the regulariser on both sides.
    reduction
        ``"mean"`` over prompts, ``"sum"``, or ``"none"`` for [N].
    return_stats
        Return ``(loss, PreferenceStats)``.

    Raises
    ------
    ValueError, TypeError
        As :func:`bear_loss`, and for a prompt whose chosen sequence, or all rejected ones, are ignored throughout.
    """
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.logits_source(logits, labels, catalog.trie)
    objective = BearObjective(beam_width, reg_weight, reg_temperature, scope, "regularized", "negative")
    return _sdpo(
        source,
        tokens,
        reference_logprobs,
        catalog,
        objective,
        states=states,
        beta=beta,
        tau=tau,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
        return_stats=return_stats,
    )


def linear_sdpo_loss(
    hidden: torch.Tensor,
    lm_head: torch.nn.Module | torch.Tensor,
    labels: torch.Tensor,
    reference_logprobs: torch.Tensor,
    *,
    trie: TokenTrie,
    lm_head_bias: torch.Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    beta: float = 1.0,
    reg_weight: float = 0.0,
    reg_temperature: float = 1.0,
    beam_width: int = 10,
    tau: float | torch.Tensor = 1.0,
    scope: ScopeName = "trie",
    reduction: str = "mean",
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
    return_stats: bool = False,
) -> Any:
    """:func:`sdpo_loss` straight from hidden states [N, 1 + K, T, D] and the LM head.

    Parameters
    ----------
    hidden, lm_head, lm_head_bias, logit_softcap, logit_scale
        As in :func:`linear_bear_loss`.
    labels, reference_logprobs, trie, states, item_filter, beta, reg_weight, reg_temperature, beam_width, tau
        As in :func:`sdpo_loss`.
    scope, reduction, ignore_index, on_invalid, return_stats
        As in :func:`sdpo_loss`.

    Raises
    ------
    ValueError, TypeError
        As :func:`sdpo_loss` and :func:`linear_bear_loss`.
    """
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.hidden_source(
        hidden, lm_head, labels, catalog.trie, lm_head_bias, logit_softcap, logit_scale
    )
    objective = BearObjective(beam_width, reg_weight, reg_temperature, scope, "regularized", "negative")
    return _sdpo(
        source,
        tokens,
        reference_logprobs,
        catalog,
        objective,
        states=states,
        beta=beta,
        tau=tau,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
        return_stats=return_stats,
    )


def _sdpo(
    source: Source,
    labels: torch.Tensor,
    reference_logprobs: torch.Tensor,
    catalog: FilteredTrie,
    objective: BearObjective,
    *,
    states: torch.Tensor | None,
    beta: float,
    tau: float | torch.Tensor,
    reduction: str,
    ignore_index: int,
    on_invalid: OnInvalid,
    return_stats: bool,
) -> Any:
    if labels.dim() != 3 or labels.shape[1] < 2:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected [prompts, 1 + rejected, tokens]")
    _validate.choice("reduction", reduction, ("mean", "sum", "none"))
    _arguments.positive("beta", beta)
    reference = _arguments.weights("reference_logprobs", reference_logprobs, tuple(labels.shape[:2]), source.device)
    if reference is None:
        raise TypeError("reference_logprobs is None, expected a torch.Tensor")
    present = _present(labels, ignore_index).to(source.device)
    scope, scores = _compute.scored(
        source, labels, catalog, objective, states=states, tau=tau, ignore_index=ignore_index, on_invalid=on_invalid
    )
    sequence = scope.row // labels.shape[2]
    logprobs = _by_sequence(scores.log_prob, sequence, labels)
    rewards = beta * (logprobs - reference.detach().to(logprobs.dtype)).masked_fill(~present, 0.0)
    gaps = (rewards[:, 1:] - rewards[:, :1]).masked_fill(~present[:, 1:], -torch.inf)
    losses = -logsigmoid(-gaps.logsumexp(1))
    if objective.reg_weight > 0:
        margins = objective.margins(scores, scope)
        per_sequence = _by_sequence(logsigmoid(margins), sequence[: margins.numel()], labels)
        losses = losses + objective.reg_weight * (per_sequence[:, 0] - per_sequence[:, 1:].sum(1))
    total = losses.sum()
    value = {"mean": total / max(1, len(losses)), "sum": total, "none": losses}[reduction]
    _compute.refuse_loss(value)
    if not return_stats:
        return value
    with torch.no_grad():
        won = ((rewards[:, :1] > rewards[:, 1:]) & present[:, 1:]).sum()
        accuracy = won / present[:, 1:].sum().clamp(min=1)
    return value, PreferenceStats(rewards.detach(), accuracy, logprobs.detach())


def _by_sequence(values: torch.Tensor, sequence: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sums [N, 1 + K] of values that belong to flattened sequences."""
    sums = values.new_zeros(labels.shape[0] * labels.shape[1])
    return sums.index_add(0, sequence, values).reshape(labels.shape[:2])


def _present(labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """bool [N, 1 + K]: whether a sequence has any label that counts."""
    present = (labels != ignore_index).any(2)
    missing = (~present[:, 0]) | (~present[:, 1:].any(1))
    for row in missing.nonzero()[:1, 0].tolist():
        kind = "rejected sequence" if present[row, 0] else "chosen sequence"
        raise ValueError(f"labels[{row}] has no {kind}: all its labels are ignored")
    return present
