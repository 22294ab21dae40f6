"""What losses hold at a time: never the logits of all tokens in float32."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gentrie import TokenTrie
from gentrie.training import bear_loss, linear_bear_loss, linear_sft_loss, sft_loss

TOKENS, VOCAB, HIDDEN = 4096, 16384, 8
DENSE = 4 * TOKENS * VOCAB
"""Bytes of the logits of all tokens in float32."""
TRIE = TokenTrie.from_sequences([[2, 5], [3, 5], [3, 6]], vocab_size=VOCAB)
LABELS = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(0))
FREE = {"trie": TRIE, "states": torch.full((TOKENS,), -2)}


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that tensors held at a time while something ran, of what was allocated by it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    kineto: Any = profile.profiler
    changes = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([event.nbytes() for event in changes]).max())


@pytest.mark.parametrize("loss", [lambda *a: linear_sft_loss(*a), lambda *a: linear_bear_loss(*a, **FREE)])
def test_free_text_from_hidden_states(loss: Callable[..., Any]) -> None:
    hidden, head = torch.randn(TOKENS, HIDDEN, requires_grad=True), torch.randn(VOCAB, HIDDEN)
    assert peak_bytes(lambda: loss(hidden, head, LABELS).backward()) < DENSE / 8
    dense = peak_bytes(lambda: torch.nn.functional.cross_entropy(hidden @ head.t(), LABELS).backward())
    assert dense > DENSE  # the measure sees what it should


@pytest.mark.parametrize("loss", [lambda *a: sft_loss(*a), lambda *a: bear_loss(*a, **FREE)])
def test_free_text_from_half_precision_logits(loss: Callable[..., Any]) -> None:
    """Their gradient is as large as they are, half of float32; beside it there are chunks only."""
    logits = torch.randn(TOKENS, VOCAB, dtype=torch.bfloat16, requires_grad=True)
    assert peak_bytes(lambda: loss(logits, LABELS).backward()) < DENSE * (1 / 2 + 1 / 8)


def grown(steps: int) -> int:
    """Bytes that the process holds more after so many training steps of every kind than after a tenth of them."""
    trie = TokenTrie.from_sequences([[2, 5], [3, 5], [3, 6]], vocab_size=16, end_token_id=1)
    labels, head = torch.tensor([[2, 5, 1], [3, 6, 1]]), torch.randn(16, HIDDEN)
    logits = torch.randn(2, 3, 16, requires_grad=True)
    hidden = torch.randn(2, 3, HIDDEN, requires_grad=True)
    before = 0
    for step in range(steps):
        if step == steps // 10:
            before = resident_bytes()
        bear_loss(logits, labels, trie=trie, beam_width=2).backward()
        linear_bear_loss(hidden, head, labels, trie=trie, beam_width=2).backward()
        logits.grad = hidden.grad = None
    return resident_bytes() - before


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_steps() -> None:
    assert grown(5000) < 16 << 20


if __name__ == "__main__":
    print(f"{grown(100_000):,} bytes more after 100,000 steps than after 10,000")
