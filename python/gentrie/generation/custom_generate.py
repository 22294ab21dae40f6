"""Beam search over a catalog as a ``custom_generate`` of ``transformers``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from gentrie import _validate
from gentrie.generation._beam_arguments import (
    check_beam_settings,
    is_sharded,
    prompt_arguments,
    scope_and_temperature,
)
from gentrie.generation.beam_results import BeamSearchResult
from gentrie.generation.beam_search import beam_search
from gentrie.model.cache_names import drop_unused_cache
from gentrie.trie import TokenTrie


@dataclass(frozen=True)
class TrieBeamOutput:
    """What :func:`trie_beam_search` returns under ``return_dict_in_generate``.

    Attributes
    ----------
    sequences
        int64 [prompts * num_return_sequences, length], prompts included, padded on the right; best first.
    sequences_scores
        float32 [prompts * num_return_sequences]; -inf for rows that only fill up.
    items
        The same without padding: item ids, token scores and what the search cost.
    """

    sequences: torch.Tensor
    sequences_scores: torch.Tensor
    items: BeamSearchResult


def trie_beam_search(
    model: PreTrainedModel,
    input_ids: torch.Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    *,
    trie: TokenTrie,
    item_filter: Any = None,
    item_scores: Any = None,
    alpha: float | None = None,
    lookahead_scores: Any = None,
    **kwargs: Any,
) -> Any:
    """:func:`beam_search` inside ``generate``::

        model.generate(**inputs, custom_generate=trie_beam_search, trie=trie, num_beams=10)

    The items are those of ``generate`` with a :class:`TrieLogitsProcessor` in its place, scores included: over the
    valid tokens under ``renormalize_logits=True``, over the whole vocabulary otherwise. ``num_return_sequences`` rows
    a prompt come back; where fewer items were found the others hold the prompt, padding and a score of -inf
    (:func:`read_items` leaves them out). Items longer than the limit on new tokens are not found; in a catalog without
    end token an item ends with its last token.

    ``num_beam_groups`` and ``diversity_penalty`` are honoured. Prompts are encoded once each and their keys and values
    kept once, whatever cache ``generate`` has made. Sharded models (FSDP, DeepSpeed ZeRO-3) are called equally often on
    every rank, as with ``synced_gpus``.

    Parameters
    ----------
    model, input_ids, logits_processor, stopping_criteria, generation_config
        From ``generate``.
    trie
        The catalog.
    item_filter, item_scores, alpha, lookahead_scores
        As for :func:`beam_search`, one row a prompt; the length penalty stays that of ``generate``, 1 by default.
    **kwargs
        From ``generate``: ``attention_mask``, ``inputs_embeds``, ``encoder_outputs`` and an empty cache.

    Raises
    ------
    ValueError, TypeError
        By name, for whatever of the settings, processors, criteria and model arguments would be ignored: sampling and
        other searches, scores and attentions of each step, prompts that are in the cache already; and what
        :func:`beam_search` refuses.
    """
    _validate.trie("trie", trie)
    synced = kwargs.pop("synced_gpus", None)
    drop_unused_cache(model, kwargs)
    check_beam_settings(generation_config, stopping_criteria, trie)
    groups = getattr(generation_config, "num_beam_groups", None) or 1
    scope, temperature = scope_and_temperature(logits_processor, groups)
    prompts = prompt_arguments(model, input_ids, generation_config, kwargs)
    beams, wanted = generation_config.num_beams, generation_config.num_return_sequences
    result = beam_search(
        model,
        prompts.pop("input_ids", None),
        trie,
        **prompts,
        beam_width=beams,
        num_return_sequences=wanted,
        scope=scope,
        length_penalty=generation_config.length_penalty,
        early_stopping=beams == 1 or generation_config.early_stopping,  # one beam is greedy search: its first end
        num_beam_groups=groups,
        diversity_penalty=getattr(generation_config, "diversity_penalty", None) or 0.0,
        item_filter=item_filter,
        item_scores=item_scores,
        alpha=alpha,
        lookahead_scores=lookahead_scores,
        max_length=generation_config.max_length - input_ids.shape[1],
        temperature=temperature,
        synced_gpus=is_sharded(model) if synced is None else synced,
    )
    output = _padded(result, input_ids[::beams], wanted, generation_config)
    return output if generation_config.return_dict_in_generate else output.sequences


def _padded(result: BeamSearchResult, prompts: torch.Tensor, wanted: int, config: GenerationConfig) -> TrieBeamOutput:
    """As many rows a prompt as were asked for."""
    rows = [row for found in result.sequences for row in [*found, *[[]] * (wanted - len(found))]]
    longest = max(map(len, rows))
    pad = config._pad_token_tensor if config._pad_token_tensor is not None else config._eos_token_tensor
    if pad is None and min(map(len, rows)) < longest:
        raise ValueError("pad_token_id is missing: rows end at different lengths and are padded with it")
    fill = -1 if pad is None else int(pad.flatten()[0])
    found = torch.tensor([row + [fill] * (longest - len(row)) for row in rows], dtype=torch.int64).reshape(
        len(rows), longest
    )
    scores = torch.full((len(result.sequences), wanted), -torch.inf)
    for number, own in enumerate(result.sequences_scores):
        scores[number, : len(own)] = torch.from_numpy(own)
    sequences = torch.cat([prompts.repeat_interleave(wanted, dim=0), found.to(prompts.device)], dim=1)
    return TrieBeamOutput(sequences, scores.flatten().to(prompts.device), result)
