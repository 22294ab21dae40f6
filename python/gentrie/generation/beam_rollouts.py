"""The most probable items of a beam search as rollouts, for reinforcement learning."""

from __future__ import annotations

from typing import Any

import torch

from gentrie import _validate
from gentrie.generation.beam_search import beam_search
from gentrie.generation.best_first_search import BestFirstStats
from gentrie.generation.item_sampling import ItemSamples
from gentrie.trie import TokenTrie

_MOST_SAMPLES = 512  # the widest beam search


def beam_rollouts(
    model: Any,
    input_ids: torch.Tensor | None,
    trie: TokenTrie,
    *,
    num_samples: int,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    temperature: float = 1.0,
    item_filter: Any = None,
) -> ItemSamples:
    """Distinct items by beam search, the rollouts of ReRe and MiniOneRec, in the place of :func:`sample_items`.

    As many beams as items are wanted, and no length penalty: the order is that of the log-probabilities. These are the
    ones :func:`sample_items` gives for the same items, softmaxes over the valid tokens; but the items are no random
    sample, the same model gives the same ones. ``gentrie.training.sequence_logprobs`` with ``tau=temperature`` scores
    them again with gradients.

    Parameters
    ----------
    model, input_ids, attention_mask, inputs_embeds
        As for :class:`TreeDecoder`; prompts [P, T], each encoded once.
    trie
        The catalog.
    num_samples
        Items for each prompt, 1 to 512; fewer only where catalog or filter hold fewer.
    temperature
        Logits are divided by it, for the search and for the returned log-probabilities.
    item_filter
        Items that may be given, as in :class:`TrieLogitsProcessor`; also one a prompt.

    Returns
    -------
    The most probable first.

    Raises
    ------
    ValueError, TypeError
        For what :func:`beam_search` refuses.
    """
    _validate.trie("trie", trie)
    found = beam_search(
        model,
        input_ids,
        trie,
        attention_mask=attention_mask,
        inputs_embeds=inputs_embeds,
        beam_width=_validate.integer("num_samples", num_samples, 1, _MOST_SAMPLES),
        length_penalty=0.0,
        item_filter=item_filter,
        temperature=temperature,
    )
    return ItemSamples(
        sequences=found.sequences,
        log_probs=found.sequences_scores,
        token_log_probs=found.token_scores,
        item_ids=found.item_ids,
        stats=BestFirstStats(
            model_calls=found.stats.model_calls,
            rows=found.stats.rows,
            tokens_computed=found.stats.tokens_computed,
            tokens_forced=found.stats.tokens_forced,
        ),
    )
