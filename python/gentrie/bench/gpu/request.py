"""Whole requests to a semantic-id recommender: a Qwen3-1.7B shape with random weights, from prompts to item ids."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gentrie.bench.harness import in_turns
from gentrie.device import DeviceBeamStepper, DeviceTrie
from gentrie.device._lockstep_decoder import LockstepDecoder
from gentrie.trie import TokenTrie

Model: TypeAlias = Any
"""A ``Qwen3ForCausalLM``; transformers' own annotations do not let one call it."""

QWEN3_1_7B: Mapping[str, Any] = {
    "vocab_size": 151_936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40_960,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
"""The published sizes; codes get tokens of their own behind the vocabulary, as recommenders add them."""

_PERCENTILES = (50, 95, 99)


def measure(
    device: torch.device | str,
    *,
    beams: Sequence[int] = (50, 128),
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    rounds: int = 30,
    num_items: int = 20_000_000,
    length: int = 4,
    num_codes: int = 8192,
    prompt_length: int = 1000,
    shape: Mapping[str, Any] = QWEN3_1_7B,
    dtype: torch.dtype = torch.bfloat16,
) -> list[dict[str, Any]]:
    """Latency of requests, and how much of a decoding step is ours, for each batch and beam width in turns.

    A request is a batch of prompts: from token ids on the device, every prompt encoded anew, to item ids on the host.
    A step is one token of every beam: the model's call and ours. On a GPU a step's parts are timed by events on the
    stream, without waiting in between, so that time in which the GPU waits for Python counts for the part that waits;
    beside them stands our part alone, captured in a CUDA graph and replayed over the same number of random logits.

    Parameters
    ----------
    device
        Where to.
    beams, batches
        Beams of a prompt, and prompts of a request.
    rounds
        Requests of each.
    num_items, length, num_codes
        Random ids: ``length`` codes, each of ``num_codes``.
    prompt_length
        Random tokens of each prompt.
    shape, dtype
        Of the model, as for ``Qwen3Config``, without the codes' tokens.

    Returns
    -------
    For each figure ``name``, ``unit``, ``p50``, ``p95``, ``p99`` and ``note``.
    """
    place, rng = torch.device(device), np.random.default_rng(0)
    first_code = int(shape["vocab_size"])
    vocab_size = first_code + length * num_codes
    codes = rng.integers(0, num_codes, size=(num_items, length), dtype=np.int32)
    trie = TokenTrie.from_semantic_ids(codes, token_ids=(first_code, num_codes), vocab_size=vocab_size)
    resident, model = DeviceTrie(trie, place), _model(shape, vocab_size, place, dtype)
    columns = torch.from_numpy(trie.vocabulary.astype(np.int64)).to(place)
    runs, steppers = {}, {}
    for batch in batches:
        ids = torch.from_numpy(rng.integers(0, first_code, size=(batch, prompt_length))).to(place)
        for width in beams:
            stepper = DeviceBeamStepper(resident, num_prompts=batch, beam_width=width, fixed_length=True)
            name = f"batch {batch}, beam {width}"
            runs[name], steppers[name] = partial(_request, model, ids, columns, stepper), stepper
    taken: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    for turn, name in in_turns(list(runs), rounds + 1):
        one = runs[name]()
        if turn:  # the first compiles and allocates
            taken[name].append(one)
    note = f"{num_items:,} ids of {length} codes of {num_codes:,}, prompt {prompt_length}, {dtype}, {rounds} requests"
    found = []
    for name, requests in taken.items():
        latency, step, share = np.array(requests).T
        found += [
            _figure(f"request, {name}", "ms", latency, note),
            _figure(f"step, {name}", "ms", step, note),
            _figure(f"our share of a step, {name}", "%", 100 * share, note),
        ]
        if place.type == "cuda":
            alone = _replayed(steppers[name], len(columns), dtype, rounds)
            found.append(_figure(f"our part of a step in a CUDA graph, {name}", "us", 1e3 * alone, note))
    return found


def _request(
    model: Model, ids: torch.Tensor, columns: torch.Tensor, stepper: DeviceBeamStepper
) -> tuple[float, float, float]:
    """Milliseconds of one request and of a step in the mean, and the stepper's part of the steps."""
    _wait(stepper.device)
    start = time.perf_counter()
    stepper.reset()
    decoder = LockstepDecoder(
        model,
        ids,
        None,
        beam_width=stepper.beam_width,
        max_length=stepper.max_length,
        token_ids=columns,
        over_vocab=False,
    )
    tokens, parents = stepper.step(decoder.prompt_logits()[0])
    marks = [_mark(stepper.device)]
    for _ in range(stepper.max_length - 1):
        logits, _ = decoder.extend(tokens, parents)
        marks.append(_mark(stepper.device))
        tokens, parents = stepper.step(logits)
        marks.append(_mark(stepper.device))
    found = stepper.result()
    elapsed = 1e3 * (time.perf_counter() - start)
    if any(len(items.sequences) < 1 for items in found):
        raise RuntimeError("a request found no item")
    parts = np.array([_between(*pair) for pair in pairwise(marks)]).reshape(-1, 2)
    return elapsed, float(parts.sum(1).mean()), float(parts[:, 1].sum() / parts.sum())


def _replayed(stepper: DeviceBeamStepper, width: int, dtype: torch.dtype, rounds: int) -> Any:
    """Milliseconds of each step behind the first of some searches, [steps], replayed from a CUDA graph."""
    logits = torch.randn(len(stepper.states), width, device=stepper.device, dtype=dtype)
    stepper.step(logits)
    _wait(stepper.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stepper.step(logits)
    taken = []
    for _ in range(rounds):
        stepper.reset()
        stepper.step(logits)
        marks = [_mark(stepper.device)]
        for _ in range(stepper.max_length - 1):
            graph.replay()
            marks.append(_mark(stepper.device))
        _wait(stepper.device)
        taken += [_between(*pair) for pair in pairwise(marks)]
    return np.array(taken)


def _model(shape: Mapping[str, Any], vocab_size: int, device: torch.device, dtype: torch.dtype) -> Model:
    config = Qwen3Config(**{**shape, "vocab_size": vocab_size}, bos_token_id=None, eos_token_id=None)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def _figure(name: str, unit: str, values: Any, note: str) -> dict[str, Any]:
    percentiles = np.percentile(values, _PERCENTILES).tolist()
    named = {f"p{rank}": value for rank, value in zip(_PERCENTILES, percentiles, strict=True)}
    return {"name": name, "unit": unit, **named, "note": note}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _mark(device: torch.device) -> Any:
    """Now, in the order of the device's work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(begin: Any, end: Any) -> float:
    """Milliseconds between two marks that have passed."""
    return 1e3 * (end - begin) if isinstance(begin, float) else float(begin.elapsed_time(end))
