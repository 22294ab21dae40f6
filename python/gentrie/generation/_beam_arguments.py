"""What ``generate`` hands to a beam search, read and checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Literal

import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList
from transformers.cache_utils import EncoderDecoderCache
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.logits_process import LogitNormalization, TemperatureLogitsWarper
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from gentrie.generation._generate_arguments import _PER_STEP, _check_positions, eos_ids, refuse_model_arguments
from gentrie.model.cache_names import find_cache
from gentrie.trie import TokenTrie

_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.BEAM_SEARCH, GenerationMode.GROUP_BEAM_SEARCH)
_READ = frozenset({"attention_mask", "position_ids", "inputs_embeds", "encoder_outputs", "decoder_attention_mask"})


def check_beam_settings(config: GenerationConfig, criteria: StoppingCriteriaList, trie: TokenTrie) -> None:
    """Refuse, by name, settings and criteria that a beam search here cannot honour."""
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise ValueError(f"generation_config asks for {mode.value}; only beam search is done here")
    for name in _PER_STEP:
        if getattr(config, name, None):
            raise ValueError(f"{name}=True: forced tokens take no step, so there is none of theirs to return")
    if config.use_cache is False:
        raise ValueError("use_cache=False: tokens are fed behind cached ones")
    if getattr(config, "prefill_chunk_size", None) is not None:
        raise ValueError(f"prefill_chunk_size={config.prefill_chunk_size}: prompts are encoded in one call here")
    for criterion in criteria:
        if not isinstance(criterion, MaxLengthCriteria | EosTokenCriteria):
            raise ValueError(f"stopping_criteria: {type(criterion).__name__} would not be asked here")
    eos, end = eos_ids(config, trie, False), trie.end_token_id
    if end is not None and end not in eos:
        raise ValueError(f"eos_token_id={config.eos_token_id} lacks the catalog's end token {end}")
    inside = sorted(set(eos) & set(trie.vocabulary.tolist()) - {end})
    if inside:
        raise ValueError(f"eos_token_id: {inside[0]} is a token of the catalog's sequences")


def scope_and_temperature(processors: LogitsProcessorList, groups: int) -> tuple[Literal["trie", "vocab"], float]:
    """What the processors come to; others than these are refused by name."""
    temperature, normalised = 1.0, False
    for processor in processors:
        name = type(processor).__name__
        if isinstance(processor, TemperatureLogitsWarper):
            temperature *= float(processor.temperature)
        elif isinstance(processor, LogitNormalization):
            normalised = True
        elif name != "HammingDiversityLogitsProcessor" or groups == 1:  # the groups' own; later versions lack the class
            raise ValueError(f"logits_processor: {name} would not be asked here")
    if temperature != 1.0 and not normalised:
        raise ValueError("logits_processor: TemperatureLogitsWarper needs renormalize_logits=True here")
    return "trie" if normalised else "vocab", temperature


def prompt_arguments(
    model: PreTrainedModel, input_ids: torch.Tensor, config: GenerationConfig, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The prompts as :func:`beam_search` takes them, one row each; other arguments of the model are refused by name."""
    name, encoder_decoder = type(model).__name__, model.config.is_encoder_decoder
    if getattr(model, "_is_stateful", False):
        raise ValueError(f"model: {name} is a recurrent model; use generate with a TrieLogitsProcessor")
    refuse_model_arguments(model, given, _READ)
    _check_cache(*find_cache(given))
    once = slice(None, None, config.num_beams)
    mask, embeddings, states = (given.get(key) for key in ("attention_mask", "inputs_embeds", "encoder_outputs"))
    arguments: dict[str, Any] = {"attention_mask": None if mask is None else mask[once]}
    if encoder_decoder:
        if states is None:
            raise ValueError("encoder_outputs is missing: generate encodes the prompts of an encoder-decoder")
        start = config.decoder_start_token_id
        if input_ids.shape[1] != 1 or given.get("decoder_attention_mask") is not None:
            raise ValueError("decoder_input_ids other than one start token are not served here")
        if start is None or bool((input_ids != start).any()):
            raise ValueError(f"decoder_input_ids other than decoder_start_token_id={start} are not served here")
        return arguments | {"encoder_outputs": states[0][once], "decoder_start_token_id": int(start)}
    if embeddings is not None:
        return arguments | {"inputs_embeds": embeddings[once]}
    _check_positions(given.get("position_ids"), mask, input_ids.shape[1])
    return arguments | {"input_ids": input_ids[once]}


def is_sharded(model: PreTrainedModel) -> bool:
    """Whether the model is spread over ranks that must call it equally often; as in ``generate``."""
    spread = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)  # type: ignore[no-untyped-call]
    return bool(spread) and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def _check_cache(name: str, cache: Any) -> None:
    """Prompts that are there already are refused; an empty cache is not used, which is worth a word if it is static."""
    if cache is None:
        return
    if int(cache.get_seq_length()) > 0:
        raise ValueError(f"{name} holds {int(cache.get_seq_length())} tokens already, expected none")
    kept = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
    if type(kept) is not DynamicCache:
        warnings.warn(
            f"the {type(kept).__name__} stays empty: the search keeps keys and values of its own, each prompt's once",
            stacklevel=4,
        )
