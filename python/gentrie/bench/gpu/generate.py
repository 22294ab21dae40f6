"""What the logits processor costs ``generate`` at batch 1, beside the published processor."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from gentrie.bench.baselines.dict_trie import DictTrie
from gentrie.bench.baselines.published import PublishedLookup, PublishedProcessor
from gentrie.bench.gpu.catalogs import some_sequences, title_trie
from gentrie.bench.gpu.figures import GpuFigure, Percentiles
from gentrie.bench.gpu.timing import ROUNDS, HostClock, Method, captured, compare, synchronize
from gentrie.bench.harness import in_turns
from gentrie.bench.models import build_model, shape_of
from gentrie.generation import TrieLogitsProcessor
from gentrie.trie import TokenTrie

OURS, PUBLISHED = "TrieLogitsProcessor", "published processor"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    model
        A model of ``gentrie.bench.models``, with random weights; it sets the width of the vocabulary.
    catalog, items
        A catalog of ``gentrie.datasets``, and how many of its titles; None: all.
    prompt_tokens, new_tokens
        Of each call of ``generate``: the item begins behind the prompt, free text follows it.
    calls
        Calls of ``generate`` with each processor, after one that is not timed.
    profiled
        Calls of the processor under the profiler.
    """

    model: str = "small"
    catalog: str = "toys"
    items: int | None = None
    prompt_tokens: int = 300
    new_tokens: int = 24
    calls: int = 7
    profiled: int = 20


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Host time of each step inside ``generate``; device time and operations of one step inside an item.

    Raises
    ------
    AssertionError
        The two processors lead ``generate`` to different tokens.
    """
    where = torch.device(device)
    vocab_size = shape_of(sizes.model)["vocab_size"]
    trie = title_trie(sizes.catalog, vocab_size, sizes.items)
    begin, end = vocab_size - 2, vocab_size - 1
    unused = np.setdiff1d(np.arange(vocab_size - 2), trie.vocabulary)
    eos, text = int(unused[0]), unused[1:200]
    ours: Any = TrieLogitsProcessor(trie, begin_token_id=begin, eos_token_id=eos)
    published = _published(trie, begin, end, eos)
    processors = {OURS: ours, PUBLISHED: published}
    prompt = [*np.random.default_rng(0).choice(text, sizes.prompt_tokens - 1).tolist(), begin]
    steps = _inside_generate(sizes, processors, torch.tensor([prompt], device=where), eos)

    item = max(some_sequences(trie, 50), key=len)
    ids = torch.tensor([[*prompt, *item[: len(item) // 2]]], device=where)
    scores = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(0)).to(where)
    assert torch.equal(ours(ids, scores), published(ids, scores)), "the two processors differ"
    methods: dict[str, Method] = {
        OURS: captured(lambda: ours(ids, scores), where),
        PUBLISHED: lambda: published(ids, scores),
    }
    on_device = compare(methods, where, rounds=rounds)
    operations, launches = operations_per_call(lambda: ours(ids, scores), where, sizes.profiled)
    name = f"{OURS} in generate, batch 1"
    return [
        GpuFigure.exact(f"{name}: fused operations of ours a step", "operations", operations, goal=1),
        GpuFigure.of(f"{name}: host time a step", "us", steps[OURS], scale=1e6, goal=40),
        GpuFigure.of(
            f"{name}: device time a step", "us", on_device[OURS], scale=1e6, note="inside an item, in a CUDA graph"
        ),
        GpuFigure.exact(f"{name}: kernels and copies on the device a step", "launches", launches),
        GpuFigure.of(f"{PUBLISHED} in generate, batch 1: host time a step", "us", steps[PUBLISHED], scale=1e6),
        GpuFigure.of(
            f"{PUBLISHED}: a step, from its first to its last work on the device",
            "us",
            on_device[PUBLISHED],
            scale=1e6,
            note="inside an item; it waits for the host in between",
        ),
    ]


def operations_per_call(method: Method, device: torch.device, calls: int) -> tuple[float, float]:
    """How many of gentrie's operations a call runs, and how many kernels and copies it starts on a CUDA device."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    method()
    synchronize(device)
    with profile(activities=activities) as profiled:
        for _ in range(calls):
            method()
        synchronize(device)
    events = profiled.events() or []
    ours = sum(event.device_type.name == "CPU" and event.name.startswith("gentrie::") for event in events)
    launches = sum(event.device_type.name == "CUDA" for event in events)
    return ours / calls, launches / calls


def _published(trie: TokenTrie, begin: int, end: int, eos: int) -> PublishedProcessor:
    values, indptr, _, _ = trie.to_sequences()
    rows = (values[start:stop].tolist() for start, stop in pairwise(indptr))
    return PublishedProcessor(PublishedLookup(DictTrie(rows), begin_token_id=begin, end_token_id=end, eos_token_id=eos))


def _inside_generate(
    sizes: Sizes, processors: dict[str, Any], prompt: torch.Tensor, pad: int
) -> dict[str, Percentiles]:
    """Seconds of the host in each step, the device having nothing to do when it starts."""
    model = build_model(sizes.model, prompt.device)
    clocks = {name: HostClock(prompt.device) for name in processors}
    outputs = {}
    for turn, name in in_turns(tuple(processors), 1 + sizes.calls):
        clock = clocks[name] if turn else HostClock(prompt.device)
        outputs[name] = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            logits_processor=[_Timed(processors[name], clock)],
            do_sample=False,
            max_new_tokens=sizes.new_tokens,
            pad_token_id=pad,
        )
    assert torch.equal(outputs[OURS], outputs[PUBLISHED]), "the two processors lead to different tokens"
    return {name: Percentiles.of(clock.seconds()) for name, clock in clocks.items()}


class _Timed:
    """A processor whose calls are timed."""

    def __init__(self, processor: Any, clock: HostClock) -> None:
        self._processor, self._clock = processor, clock

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found: list[torch.Tensor] = []
        self._clock.measure(lambda: found.append(self._processor(input_ids, scores)))
        return found[0]
