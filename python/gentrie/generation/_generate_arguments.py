"""What ``generate`` hands to a ``custom_generate``, read and checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence, Sized
from typing import Any, Literal

import torch
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation.configuration_utils import GenerationMode
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module

from gentrie import _core
from gentrie.item_filter import make_filters
from gentrie.matcher import make_constraint
from gentrie.model.cache_names import find_cache
from gentrie.trie import TokenTrie

_PER_STEP = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
_READ = frozenset({"attention_mask", "position_ids", "inputs_embeds"})
_OWN = frozenset({"use_cache", "cache_position", "logits_to_keep", "return_dict"})  # set anew at each call of the model


def check_settings(config: GenerationConfig) -> None:
    """Refuse, by name, settings that this way of generating cannot honour."""
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        raise ValueError(f"generation_config asks for {mode.value}; greedy search and sampling are done here")
    for name in _PER_STEP:
        if name != "output_scores" and getattr(config, name, None):
            raise ValueError(f"{name}=True: forced tokens take no step, so there is none of theirs to return")
    if config.use_cache is False:
        raise ValueError("use_cache=False: tokens are fed behind cached ones")
    if getattr(config, "cache_implementation", None) not in (None, "dynamic"):
        raise ValueError(f"cache_implementation={config.cache_implementation!r}: only the dynamic cache is used here")
    if getattr(config, "prefill_chunk_size", None) is not None:
        raise ValueError(f"prefill_chunk_size={config.prefill_chunk_size}: prompts are encoded in one call here")


def empty_cache(model: PreTrainedModel, arguments: Mapping[str, Any]) -> DynamicCache:
    """The cache to use; refuses models and model arguments that cannot be served."""
    name = type(model).__name__
    if model.config.is_encoder_decoder or getattr(model, "_is_stateful", False):
        kind = "an encoder-decoder" if model.config.is_encoder_decoder else "a recurrent model"
        raise ValueError(f"model: {name} is {kind}; use generate with a TrieLogitsProcessor")
    refuse_model_arguments(model, arguments, _READ)
    sharded = is_deepspeed_zero3_enabled() or is_fsdp_managed_module(model)  # type: ignore[no-untyped-call]
    if sharded and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise ValueError("the model is spread over ranks that must call it equally often, which they do not here")
    argument, cache = find_cache(arguments)
    if cache is None:
        return DynamicCache(config=model.config)
    if type(cache) is not DynamicCache:
        raise ValueError(f"{argument} is a {type(cache).__name__}, expected a DynamicCache")
    if cache.get_seq_length() > 0:
        raise ValueError(f"{argument} holds {cache.get_seq_length()} tokens already, expected none")
    return cache


def refuse_model_arguments(model: PreTrainedModel, arguments: Mapping[str, Any], read: frozenset[str]) -> None:
    """Refuse, by name, model arguments that would change a result and are not passed on.

    ``read`` names those that the caller uses. Of the others, a cache is found by its type, and what says nothing is
    harmless: ``None``, an empty container, or the value that the model's own ``forward`` has as its default. A fixed
    list of harmless names would break with each release of ``transformers`` that hands over one more.
    """
    declared = inspect.signature(model.forward).parameters
    cache, _ = find_cache(arguments)
    for argument in sorted(arguments.keys() - _OWN - read - {cache}):
        value = arguments[argument]
        if value is None or (isinstance(value, Sized) and not isinstance(value, torch.Tensor) and len(value) == 0):
            continue
        plain = isinstance(value, bool | int | float | str)
        if plain and argument in declared and value == declared[argument].default:
            continue
        raise ValueError(f"{argument} is not passed on to the model here; use generate with a TrieLogitsProcessor")


def eos_ids(config: GenerationConfig, trie: TokenTrie, unique: bool | str) -> list[int]:
    """Tokens that end the turn, those outside the catalog's vocabulary left out."""
    given = config.eos_token_id
    every = [] if given is None else [given] if isinstance(given, int) else list(given)
    if not every and unique is not False:
        raise ValueError("eos_token_id is missing: it says where a turn ends, which unique needs")
    return [token for token in every if 0 <= token < trie.vocab_size]


def make_matchers(
    trie: TokenTrie,
    begin_token_id: int,
    eos: Sequence[int],
    unique: bool | Literal["item"],
    item_filter: Any,
    num_rows: int,
) -> list[tuple[_core.Matcher, _core.ItemFilter | None]]:
    """A matcher and its filter for each row; a list of filters holds one a prompt, each for as many adjacent rows."""
    if begin_token_id is None:
        raise TypeError("begin_token_id=None, expected a token id")
    filters = make_filters(trie, item_filter)
    if num_rows % len(filters):
        raise ValueError(f"item_filter has {len(filters)} entries, input_ids has {num_rows} rows")
    matchers = [_core.Matcher(make_constraint(trie, begin_token_id, eos, unique, chosen)) for chosen in filters]
    of_row = [row * len(filters) // num_rows for row in range(num_rows)]
    return [(matchers[at].fork(), filters[at]) for at in of_row]


def unpadded(input_ids: torch.Tensor, arguments: Mapping[str, Any]) -> list[list[int]]:
    """The prompts' tokens."""
    mask = arguments.get("attention_mask")
    if arguments.get("inputs_embeds") is None:
        _check_positions(arguments.get("position_ids"), mask, input_ids.shape[1])
    rows: list[list[int]] = input_ids.tolist()
    if mask is None or mask.shape != input_ids.shape:
        return rows
    kept = [[token for token, seen in zip(*row, strict=True) if seen] for row in zip(rows, mask.tolist(), strict=True)]
    for row, tokens in enumerate(kept):
        if not tokens:
            raise ValueError(f"attention_mask[{row}] hides the whole prompt")
    return kept


def embedded_prompts(arguments: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Prompts given as ``inputs_embeds`` and their mask."""
    embeddings = arguments.get("inputs_embeds")
    return None if embeddings is None else (embeddings, arguments.get("attention_mask"))


def _check_positions(positions: torch.Tensor | None, mask: torch.Tensor | None, length: int) -> None:
    """Positions of one's own would be lost: only those that follow from the mask are served."""
    if positions is None:
        return
    if mask is None:
        served = positions.shape[-1] == length and bool(
            (positions == torch.arange(length, device=positions.device)).all()
        )
    else:
        expected = mask.cumsum(-1) - 1
        served = positions.shape == mask.shape and bool(((positions == expected) | (mask == 0)).all())
    if not served:
        raise ValueError("position_ids other than those of the attention mask are not served here")
