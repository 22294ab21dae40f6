"""Whole requests to a semantic-id recommender: a Qwen3-1.7B shape with random weights, from prompts to item ids."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from gentrie.bench.gpu.catalogs import random_ids
from gentrie.bench.gpu.figures import GpuFigure, Percentiles
from gentrie.bench.gpu.timing import ROUNDS, Method, captured, synchronize
from gentrie.device import DeviceBeamStepper, DeviceTrie
from gentrie.device._lockstep_decoder import LockstepDecoder
from gentrie.trie import TokenTrie

Model: TypeAlias = Any
"""A ``Qwen3ForCausalLM``; transformers' own annotations do not let one call it."""

QWEN3_1_7B: dict[str, Any] = {
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


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    shape, dtype
        Of the model, as for ``Qwen3Config``, without the codes' tokens.
    beams, batches
        Beams of a prompt, and prompts of a request.
    items, length, num_codes
        Random ids: ``length`` codes, each of ``num_codes``.
    prompt_tokens
        Of each prompt, at random.
    requests
        Of each batch and beam width, after one that is not timed.
    """

    shape: Mapping[str, Any] = field(default_factory=lambda: dict(QWEN3_1_7B))
    dtype: str = "bfloat16"
    beams: tuple[int, ...] = (50, 128)
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    items: int = 20_000_000
    length: int = 4
    num_codes: int = 8192
    prompt_tokens: int = 1000
    requests: int = 100


QUICK = Sizes(batches=(1, 8), items=1_000_000, requests=20)


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Latency of requests, time of a decoding step, and how much of it is ours, for each batch and beam width.

    A request is a batch of prompts: from token ids on the device, every prompt encoded anew, to item ids on the host.
    A step is one token of every beam: the model's call and ours. On a GPU a step is one CUDA graph, which the requests
    replay, and ``rounds`` replays of another that holds our part alone give its share. Where a step cannot be captured
    it is run as it stands, and the figure's note says why; its parts are then timed by events on the stream, so that
    time in which the GPU waits for Python counts for the part that waits.
    """
    where, rng = torch.device(device), np.random.default_rng(0)
    first_code = int(sizes.shape["vocab_size"])
    vocab_size = first_code + sizes.length * sizes.num_codes
    trie = TokenTrie.from_semantic_ids(
        random_ids(sizes.items, sizes.length, sizes.num_codes),
        token_ids=(first_code, sizes.num_codes),
        vocab_size=vocab_size,
    )
    resident, model = DeviceTrie(trie, where), _model(sizes, vocab_size, where)
    figures = []
    for batch in sizes.batches:
        prompts = torch.from_numpy(rng.integers(0, first_code, size=(batch, sizes.prompt_tokens))).to(where)
        for width in sizes.beams:
            name = f"batch {batch}, beam {width}"
            figures += _Server(model, resident, prompts, width).figures(name, sizes.requests, rounds)
    return figures


class _Server:
    """Answers requests of one shape in memory that it keeps; its step is a CUDA graph where that is possible."""

    def __init__(self, model: Model, resident: DeviceTrie, prompts: torch.Tensor, beam_width: int) -> None:
        self.device, self.prompts = resident.device, prompts
        self.stepper = DeviceBeamStepper(resident, num_prompts=len(prompts), beam_width=beam_width, fixed_length=True)
        self.decoder = LockstepDecoder(
            model,
            prompts,
            None,
            beam_width=beam_width,
            max_length=self.stepper.max_length,
            token_ids=torch.from_numpy(resident.trie.vocabulary.astype(np.int64)).to(self.device),
            over_vocab=False,
        )
        self._logits = self.decoder.prompt_logits()[0]
        self._replay: Method | None = None
        self.note = ""
        expected, _, _ = self.request()
        try:
            self._replay = captured(self._step, self.device)
            found, _, _ = self.request()
            _check_same(found, expected)
        except (RuntimeError, ValueError) as problem:  # of torch, or of what was found
            self.note = f"not in a CUDA graph: {problem}".splitlines()[0]
            self._replay = None

    def figures(self, name: str, requests: int, rounds: int) -> list[GpuFigure]:
        """Latency, step and our share of it."""
        taken = [self.request()[1:] for _ in range(requests)]
        latency = [elapsed for elapsed, _ in taken]
        steps = [float(times.sum(1).mean()) for _, times in taken]
        found = [
            GpuFigure.of(f"request, {name}", "ms", Percentiles.of(latency), scale=1e3, note=self.note),
            GpuFigure.of(f"step, {name}", "ms", Percentiles.of(steps), scale=1e3, note=self.note),
        ]
        if self._replay is None:
            ours = [float(times[:, 1].mean()) for _, times in taken]
            share = [part / whole for part, whole in zip(ours, steps, strict=True)]
        else:
            ours = self._alone(rounds)
            share = [part / float(np.median(steps)) for part in ours]
        return [
            *found,
            GpuFigure.of(f"our part of a step, {name}", "us", Percentiles.of(ours), scale=1e6, note=self.note),
            GpuFigure.of(f"our share of a step, {name}", "%", Percentiles.of(share), scale=1e2, note=self.note),
        ]

    def request(self) -> tuple[list[Any], float, npt.NDArray[np.float64]]:
        """The items, seconds of the request, and seconds [steps, parts] of the parts of each step."""
        synchronize(self.device)
        start = time.perf_counter()
        self.decoder.replace_prompts(self.prompts)
        self.stepper.reset()
        self.stepper.step(self.decoder.prompt_logits()[0])
        parts = [self._model_part, self._our_part] if self._replay is None else [self._replay]
        marks = [_mark(self.device)]
        for _ in range(self.stepper.max_length - 1):
            for part in parts:
                part()
                marks.append(_mark(self.device))
        items = self.stepper.result()
        elapsed = time.perf_counter() - start
        if any(len(found.sequences) < 1 for found in items):
            raise RuntimeError("a request found no item")
        times = np.array([_between(*pair) for pair in pairwise(marks)]).reshape(-1, len(parts))
        return items, elapsed, times

    def _model_part(self) -> None:
        self._logits, _ = self.decoder.extend(self.stepper.tokens, self.stepper.parents)

    def _our_part(self) -> None:
        self.stepper.step(self._logits)

    def _step(self) -> None:
        self._model_part()
        self._our_part()

    def _alone(self, rounds: int) -> list[float]:
        """Seconds of our part of a step in the mean of a search, over random logits, replayed from a CUDA graph."""
        self._logits = torch.randn(self._logits.shape, device=self.device).to(self._logits.dtype)
        replay, taken = captured(self._our_part, self.device), []
        for _ in range(rounds):
            self.stepper.reset()
            self._our_part()
            marks = [_mark(self.device)]
            for _ in range(self.stepper.max_length - 1):
                replay()
                marks.append(_mark(self.device))
            synchronize(self.device)
            taken.append(_between(marks[0], marks[-1]) / (self.stepper.max_length - 1))
        return taken


def _check_same(found: list[Any], expected: list[Any]) -> None:
    """ValueError where the scores differ by more than the rounding of bfloat16 explains."""
    for prompt, (ours, wanted) in enumerate(zip(found, expected, strict=True)):
        if ours.scores.shape != wanted.scores.shape or not np.allclose(ours.scores, wanted.scores, rtol=2e-2):
            raise ValueError(f"replayed, prompt {prompt} gets other items")


def _model(sizes: Sizes, vocab_size: int, device: torch.device) -> Model:
    config = Qwen3Config(**{**sizes.shape, "vocab_size": vocab_size}, bos_token_id=None, eos_token_id=None)
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, sizes.dtype))
    try:
        with device:
            model: Model = Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def _mark(device: torch.device) -> Any:
    """Now, in the order of the device's work."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(begin: Any, end: Any) -> float:
    """Seconds between two marks that have passed."""
    return float(end - begin) if isinstance(begin, float) else float(begin.elapsed_time(end)) / 1e3
