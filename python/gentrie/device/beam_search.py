"""Beam search of a Hugging Face model over a catalog, in lock-step on the device: no step waits for the host."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from gentrie import _validate
from gentrie.device._lockstep_decoder import LockstepDecoder
from gentrie.device.bank import FilterBank, TrieBank
from gentrie.device.beam_stepper import DeviceBeamStepper
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.generation.beam_results import BeamSearchResult, BeamStats
from gentrie.item_filter import ItemFilter, make_filters
from gentrie.trie import TokenTrie


def device_beam_search(
    model: Any,
    input_ids: torch.Tensor,
    trie: TokenTrie | DeviceTrie | TrieBank,
    *,
    attention_mask: torch.Tensor | None = None,
    beam_width: int = 10,
    num_return_sequences: int | None = None,
    scope: Literal["trie", "vocab"] = "trie",
    length_penalty: float = 1.0,
    early_stopping: bool | Literal["never"] = False,
    item_filter: Any = None,
    trie_index: Any = None,
    filter_index: Any = None,
    max_length: int | None = None,
    fixed_length: bool | None = None,
    temperature: float = 1.0,
) -> BeamSearchResult:
    """The beam search of ``generate`` for short ids and wide beams, such as a recommender's semantic ids.

    Items and scores are those of :func:`gentrie.generation.beam_search`, to rounding. That one asks the model for
    branching rows alone and copies their scores to the host at each step, which pays for long titles; this one runs all
    beams of all prompts at each of ``max_length`` steps and never waits for the host in between. Each prompt is encoded
    once, its keys and values are held once, and those of the beams' tokens stay where they were written.

    Parameters
    ----------
    model
        A decoder-only model in evaluation mode that calls the attention interface of ``transformers``.
    input_ids, attention_mask
        Prompts [P, T], padding on the left or the right, as for :class:`gentrie.generation.TreeDecoder`.
    trie
        The catalog. One that is searched often is put on the device once, as a :class:`DeviceTrie` or in a bank.
    beam_width, scope, length_penalty, early_stopping, trie_index, filter_index, max_length, fixed_length
        As for :class:`DeviceBeamStepper`.
    num_return_sequences
        Items a prompt at most, ``beam_width`` by default; fewer come back where fewer were found.
    item_filter
        Items that may be given, as in :func:`gentrie.generation.beam_search`, also one a prompt; or a
        :class:`DeviceFilter` or :class:`FilterBank`, and nothing else with a bank of tries.
    temperature
        Logits are divided by it.

    Returns
    -------
    As :func:`gentrie.generation.beam_search`. ``stats.rows`` counts all rows of all steps, ``stats.padded_slots`` those
    that held no beam.

    Raises
    ------
    ValueError, TypeError
        For values out of range, and models and prompts that are not served.
    """
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} is outside (0, inf)")
    if not _validate.is_tensor(input_ids) or input_ids.ndim != 2 or 0 in input_ids.shape:
        raise ValueError("input_ids must be a tensor [P, T] with at least one token")
    prompts, device = len(input_ids), next(model.parameters()).device
    resident = DeviceTrie(trie, device) if isinstance(trie, TokenTrie) else trie
    filters = item_filter
    if item_filter is not None and not isinstance(item_filter, DeviceFilter | FilterBank):
        filters, filter_index = _bank_of(item_filter, resident, prompts)
    stepper = DeviceBeamStepper(
        resident,
        num_prompts=prompts,
        beam_width=beam_width,
        scope=scope,
        length_penalty=length_penalty,
        early_stopping=early_stopping,
        max_length=max_length,
        trie_index=trie_index,
        filters=filters,
        filter_index=filter_index,
        fixed_length=fixed_length,
    )
    wanted = stepper.beam_width if num_return_sequences is None else num_return_sequences
    wanted = _validate.integer("num_return_sequences", wanted, 1, stepper.beam_width)
    columns = None
    if isinstance(resident, DeviceTrie):
        columns = torch.from_numpy(resident.trie.vocabulary.astype(np.int64)).to(device)
    decoder = LockstepDecoder(
        model,
        input_ids,
        attention_mask,
        beam_width=beam_width,
        max_length=stepper.max_length,
        token_ids=columns,
        over_vocab=scope == "vocab",
        temperature=temperature,
    )
    logits, normalizers = decoder.prompt_logits()
    tokens, parents = stepper.step(logits, normalizers=normalizers)
    for _ in range(stepper.max_length - 1):
        logits, normalizers = decoder.extend(tokens, parents)
        tokens, parents = stepper.step(logits, normalizers=normalizers)
    return _result(stepper, wanted)


def _bank_of(item_filter: Any, resident: DeviceTrie | TrieBank, prompts: int) -> tuple[FilterBank | None, Any]:
    """Filters given on the host, in a bank, and the row of each prompt's."""
    if not isinstance(resident, DeviceTrie):
        raise ValueError("item_filter: with a bank of tries give a DeviceFilter or a FilterBank")
    cores = make_filters(resident.trie, item_filter)
    if len(cores) not in (1, prompts):
        raise ValueError(f"item_filter has {len(cores)} entries for {prompts} prompts")
    bank = FilterBank(resident.device, capacity=-(-len(cores) // 64) * 64)  # its kernels are those of any FilterBank
    rows = [
        -1 if core is None else bank.add(DeviceFilter(ItemFilter(core, resident.trie, ""), resident.device))
        for core in cores
    ]
    return bank, rows * (prompts // len(rows))


def _result(stepper: DeviceBeamStepper, wanted: int) -> BeamSearchResult:
    found, alive = stepper.result(wanted), stepper.num_beams()[:-1]
    rows = len(stepper.states) * len(alive)
    return BeamSearchResult(
        sequences=[items.sequences for items in found],
        sequences_scores=[items.scores for items in found],
        token_scores=[items.token_scores for items in found],
        item_ids=[items.item_ids for items in found],
        num_found=np.array([len(items.sequences) for items in found], dtype=np.int64),
        stats=BeamStats(
            model_calls=1 + len(alive),
            rows=stepper.num_prompts + rows,
            tokens_computed=sum(alive),
            tokens_forced=sum(
                _num_forced(items.sequences, *pair)
                for items, pair in zip(found, stepper._residents.on_host(), strict=True)
            ),
            padded_slots=rows - sum(alive),
        ),
    )


def _num_forced(sequences: list[list[int]], trie: TokenTrie, item_filter: ItemFilter | None) -> int:
    """Tokens of the sequences that were the only choice."""
    states = []
    for tokens in sequences:
        state = trie.root
        for token in tokens:
            states.append(state)
            state = trie.advance(state, token)
    places, times = np.unique(np.array(states, dtype=np.int64), return_counts=True)
    _, indptr = (item_filter or trie).next_tokens_batch(places)
    return int(times[np.diff(indptr) == 1].sum())
