"""The B-th largest score of each row, beside sorting methods and one read of the scores."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch

from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.gpu.peers import Peers, ratio
from gentrie.bench.gpu.timing import ROUNDS, Method, captured, compare
from gentrie.kernels.topb_threshold import topb_threshold

FLASHINFER = "flashinfer.top_k"


@dataclass(frozen=True)
class Sizes:
    """What is measured: rows and columns of the scores, and B."""

    rows: int = 1024
    vocab_size: int = 131_072
    beam_width: int = 10


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Bfloat16 scores. Ours gives the rows' logsumexp besides; one read of them is ``amax``.

    Raises
    ------
    AssertionError
        A threshold or a logsumexp is wrong.
    """
    where = torch.device(device)
    generator = torch.Generator(where).manual_seed(0)
    logits = torch.empty(sizes.rows, sizes.vocab_size, dtype=torch.bfloat16, device=where).normal_(generator=generator)
    expected = logits.topk(sizes.beam_width).values[:, -1].float()
    threshold, logsumexp = topb_threshold(logits, sizes.beam_width)
    torch.testing.assert_close(threshold, expected, rtol=0, atol=0)
    for row in (0, sizes.rows // 2, sizes.rows - 1):
        torch.testing.assert_close(logsumexp[row], logits[row].float().logsumexp(0), rtol=1e-5, atol=1e-5)

    def flashinfer() -> Method:
        top_k = import_module("flashinfer").top_k
        values = top_k(logits, sizes.beam_width)[0].float().amin(1)
        torch.testing.assert_close(values, expected, rtol=0, atol=0)
        return lambda: top_k(logits, sizes.beam_width)

    peers = Peers(where)
    peers.add(FLASHINFER, "us", flashinfer, capture=True)
    methods: dict[str, Method] = {
        "ours": lambda: topb_threshold(logits, sizes.beam_width),
        "torch.topk": lambda: logits.topk(sizes.beam_width),
        "amax": lambda: logits.amax(1),
    }
    taken = compare(
        {**{name: captured(method, where) for name, method in methods.items()}, **peers.methods}, where, rounds=rounds
    )
    name = f"topb_threshold, B={sizes.beam_width}, on [{sizes.rows}, {sizes.vocab_size}] bfloat16"
    return [
        ratio(f"{name}: times as fast as torch.topk", taken, "torch.topk", "ours", goal=2, at_least=True),
        ratio(f"{name} over one read (amax)", taken, "ours", "amax", goal=1.3),
        ratio(f"{name}: times as fast as {FLASHINFER}", taken, FLASHINFER, "ours"),
        GpuFigure.of(name, "us", taken["ours"], scale=1e6),
        GpuFigure.of("torch.topk", "us", taken["torch.topk"], scale=1e6),
        GpuFigure.of("one read: amax", "us", taken["amax"], scale=1e6),
        *peers.figures(taken, "us", 1e6),
    ]
