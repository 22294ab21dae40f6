"""Beam search over a catalog as a ``custom_generate`` of ``transformers``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import LogitNormalization, TemperatureLogitsWarper
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria

from gentrie.generation._generate_arguments import _PER_STEP, _check_positions, empty_cache, eos_ids
from gentrie.generation.beam_results import BeamSearchResult
from gentrie.generation.beam_search import beam_search
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
    **kwargs: Any,
) -> Any:
    """:func:`beam_search` inside ``generate``::

        model.generate(**inputs, custom_generate=trie_beam_search, trie=trie, num_beams=10)

    The items are those of ``generate`` with a :class:`TrieLogitsProcessor` in its place, scores included: over the
    valid tokens under ``renormalize_logits=True``, over the whole vocabulary otherwise. ``num_return_sequences`` rows a
    prompt come back; where fewer items were found the others hold the prompt, padding and a score of -inf. Items longer
    than the limit on new tokens are not found; in a catalog without end token an item ends with its last token.

    Parameters
    ----------
    model, input_ids, logits_processor, stopping_criteria, generation_config
        From ``generate``.
    trie
        The catalog.
    item_filter
        Items that may be given, as in :class:`TrieLogitsProcessor`; also one a prompt.
    **kwargs
        From ``generate``: ``attention_mask``, ``inputs_embeds`` and an empty cache.

    Raises
    ------
    ValueError, TypeError
        By name, for whatever of the settings, processors, criteria and model arguments would be ignored: sampling and
        other searches, scores and attentions of each step, caches other than the dynamic one, encoder-decoders (call
        :func:`beam_search`), sharded models; and what :func:`beam_search` refuses.
    """
    if kwargs.pop("synced_gpus", None):
        raise ValueError("synced_gpus=True: ranks call the model different numbers of times here")
    _check_settings(generation_config, stopping_criteria, trie)
    empty_cache(model, kwargs)
    scope, temperature = _scores(logits_processor)
    beams, wanted = generation_config.num_beams, generation_config.num_return_sequences
    mask, embeddings = kwargs.get("attention_mask"), kwargs.get("inputs_embeds")
    if embeddings is None:
        _check_positions(kwargs.get("position_ids"), mask, input_ids.shape[1])
    result = beam_search(
        model,
        None if embeddings is not None else input_ids[::beams],
        trie,
        attention_mask=None if mask is None else mask[::beams],
        inputs_embeds=None if embeddings is None else embeddings[::beams],
        beam_width=beams,
        num_return_sequences=wanted,
        scope=scope,
        length_penalty=generation_config.length_penalty,
        early_stopping=generation_config.early_stopping,
        item_filter=item_filter,
        max_length=generation_config.max_length - input_ids.shape[1],
        temperature=temperature,
    )
    output = _padded(result, input_ids[::beams], wanted, generation_config)
    return output if generation_config.return_dict_in_generate else output.sequences


def _check_settings(config: GenerationConfig, criteria: StoppingCriteriaList, trie: TokenTrie) -> None:
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH):
        raise ValueError(f"generation_config asks for {mode.value}; only beam search is done here")
    for name in _PER_STEP:
        if getattr(config, name, None):
            raise ValueError(f"{name}=True: forced tokens take no step, so there is none of theirs to return")
    for criterion in criteria:
        if not isinstance(criterion, MaxLengthCriteria | EosTokenCriteria):
            raise ValueError(f"stopping_criteria: {type(criterion).__name__} would not be asked here")
    eos, end = eos_ids(config, trie, False), trie.end_token_id
    if end is not None and end not in eos:
        raise ValueError(f"eos_token_id={config.eos_token_id} lacks the catalog's end token {end}")
    inside = sorted(set(eos) & set(trie.vocabulary.tolist()) - {end})
    if inside:
        raise ValueError(f"eos_token_id: {inside[0]} is a token of the catalog's sequences")


def _scores(processors: LogitsProcessorList) -> tuple[Literal["trie", "vocab"], float]:
    """Scope and temperature that the processors come to."""
    temperature, normalised = 1.0, False
    for processor in processors:
        if isinstance(processor, TemperatureLogitsWarper):
            temperature *= float(processor.temperature)
        elif isinstance(processor, LogitNormalization):
            normalised = True
        else:
            raise ValueError(f"logits_processor: {type(processor).__name__} would not be asked here")
    if temperature != 1.0 and not normalised:
        raise ValueError("logits_processor: TemperatureLogitsWarper needs renormalize_logits=True here")
    return "trie" if normalised else "vocab", temperature


def _padded(result: BeamSearchResult, prompts: torch.Tensor, wanted: int, config: GenerationConfig) -> TrieBeamOutput:
    """As many rows a prompt as were asked for."""
    rows = [row for found in result.sequences for row in [*found, *[[]] * (wanted - len(found))]]
    longest = max(map(len, rows))
    pad = config._pad_token_tensor if config._pad_token_tensor is not None else config._eos_token_tensor
    if pad is None and min(map(len, rows)) < longest:
        raise ValueError("pad_token_id is missing: rows end at different lengths and are padded with it")
    fill = -1 if pad is None else int(pad.flatten()[0])
    found = torch.tensor([row + [fill] * (longest - len(row)) for row in rows], dtype=torch.int64).view(-1, longest)
    scores = torch.full((len(result.sequences), wanted), -torch.inf)
    for number, own in enumerate(result.sequences_scores):
        scores[number, : len(own)] = torch.from_numpy(own)
    sequences = torch.cat([prompts.repeat_interleave(wanted, dim=0), found.to(prompts.device)], dim=1)
    return TrieBeamOutput(sequences, scores.flatten().to(prompts.device), result)
