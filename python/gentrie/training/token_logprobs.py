"""Log-probabilities of labels and of whole sequences."""

from __future__ import annotations

from typing import Any

import torch

from gentrie import _validate
from gentrie.training import _arguments, _compute
from gentrie.training._compute import ScopeName
from gentrie.training._rows import FilteredTrie, OnInvalid
from gentrie.training._scores import Source
from gentrie.training.full_vocabulary import LikelihoodObjective
from gentrie.trie import TokenTrie


def token_logprobs(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    trie: TokenTrie,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    scope: ScopeName = "trie",
    tau: float | torch.Tensor = 1.0,
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
) -> torch.Tensor:
    """Log-probability of every label over its scope, from logits; differentiable.

    Parameters
    ----------
    logits, labels, trie, states, item_filter, scope, tau, ignore_index, on_invalid
        As in :func:`bear_loss`; nothing is shifted. Free text is scored over the whole vocabulary, at temperature 1.

    Returns
    -------
    torch.Tensor
        [...] like ``labels``; float32, float64 for float64 logits. 0 for labels that do not count and for those
        without alternative in their scope.

    Raises
    ------
    ValueError, TypeError
        As :func:`bear_loss`.
    """
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.logits_source(logits, labels, catalog.trie)
    return _logprobs(source, tokens, catalog, states, scope, tau, ignore_index, on_invalid)


def linear_token_logprobs(
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
    scope: ScopeName = "trie",
    tau: float | torch.Tensor = 1.0,
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
) -> torch.Tensor:
    """:func:`token_logprobs` straight from hidden states and the LM head.

    Parameters
    ----------
    hidden, lm_head, lm_head_bias, logit_softcap, logit_scale
        As in :func:`linear_bear_loss`.
    labels, trie, states, item_filter, scope, tau, ignore_index, on_invalid
        As in :func:`token_logprobs`.

    Raises
    ------
    ValueError, TypeError
        As :func:`linear_bear_loss`.
    """
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.hidden_source(
        hidden, lm_head, labels, catalog.trie, lm_head_bias, logit_softcap, logit_scale
    )
    return _logprobs(source, tokens, catalog, states, scope, tau, ignore_index, on_invalid)


def sequence_logprobs(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    trie: TokenTrie,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    scope: ScopeName = "trie",
    tau: float | torch.Tensor = 1.0,
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
) -> torch.Tensor:
    """:func:`token_logprobs` summed over the last dimension: [...] without it.

    Raises
    ------
    ValueError, TypeError
        As :func:`bear_loss`.
    """
    return token_logprobs(
        logits,
        labels,
        trie=trie,
        states=states,
        item_filter=item_filter,
        scope=scope,
        tau=tau,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
    ).sum(-1)


def linear_sequence_logprobs(
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
    scope: ScopeName = "trie",
    tau: float | torch.Tensor = 1.0,
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
) -> torch.Tensor:
    """:func:`linear_token_logprobs` summed over the last dimension: [...] without it.

    Raises
    ------
    ValueError, TypeError
        As :func:`linear_bear_loss`.
    """
    return linear_token_logprobs(
        hidden,
        lm_head,
        labels,
        trie=trie,
        lm_head_bias=lm_head_bias,
        logit_softcap=logit_softcap,
        logit_scale=logit_scale,
        states=states,
        item_filter=item_filter,
        scope=scope,
        tau=tau,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
    ).sum(-1)


def _logprobs(
    source: Source,
    labels: torch.Tensor,
    catalog: FilteredTrie,
    states: torch.Tensor | None,
    scope: ScopeName,
    tau: float | torch.Tensor,
    ignore_index: int,
    on_invalid: OnInvalid,
) -> torch.Tensor:
    objective = LikelihoodObjective(_validate.choice("scope", scope, ("trie", "vocab")))
    found, scores = _compute.scored(
        source,
        labels,
        catalog,
        objective,
        states=states,
        tau=tau,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
    )
    full = scores.log_prob.new_zeros(labels.numel())
    return full.index_put((found.row,), scores.log_prob).reshape(labels.shape)
