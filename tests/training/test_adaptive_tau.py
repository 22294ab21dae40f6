"""MSL's adaptive temperature against its formula, and its state."""

from __future__ import annotations

import math

import pytest
import torch

from gentrie import TokenTrie
from gentrie.training import AdaptiveTau, bear_loss, linear_bear_loss, sft_loss

TRIE = TokenTrie.from_sequences([[9, a, b] for a in range(2, 8) for b in (2, 3)], vocab_size=10)
"""Every item begins with 9, so that the first choice is after it, among six tokens."""


def wanted(logits: torch.Tensor, labels: torch.Tensor, eta: float) -> float:
    valid = logits[:, 1, 2:8].double()
    chosen = logits[:, 1].double().gather(1, labels[:, 1:2])
    gap = float(chosen.mean() - valid.mean())
    strength = math.log(6 * eta)
    return (gap + math.sqrt(max(gap**2 - 2 * strength * float(valid.var()), 0))) / (2 * strength)


def test_formula_and_moving_average() -> None:
    labels = torch.tensor([[9, 3, 2], [9, 7, 3], [9, 2, 2]])
    adaptive = AdaptiveTau(1.2, eta=0.5, alpha=0.3, low=0.1, high=50.0)
    expected = 1.2
    for step in range(3):
        logits = torch.randn(3, 3, 10, generator=torch.Generator().manual_seed(step))
        logits[torch.arange(3), 1, labels[:, 1]] += 6
        _, stats = bear_loss(logits, labels, trie=TRIE, tau=adaptive.value, return_stats=True)
        expected = 0.7 * expected + 0.3 * wanted(logits, labels, 0.5)
        assert float(adaptive.update(stats)) == pytest.approx(expected, rel=1e-6)
        _, linear_stats = linear_bear_loss(logits, torch.eye(10), labels, trie=TRIE, return_stats=True)
        assert torch.allclose(linear_stats.first_logits.squares, stats.first_logits.squares)
    restored = AdaptiveTau(eta=0.5, alpha=0.3, low=0.1, high=50.0)
    restored.load_state_dict(adaptive.state_dict())
    assert float(restored.value) == float(adaptive.value)
    assert float(restored.update(stats)) == float(adaptive.update(stats))
    halves = [
        bear_loss(logits[part], labels[part], trie=TRIE, return_stats=True)[1].first_logits
        for part in (slice(0, 1), slice(1, 3))
    ]
    both = halves[0] + halves[1]
    assert float(both.total) == pytest.approx(float(stats.first_logits.total))
    assert float(both.num_rows) == 3


def test_limits_warm_up_and_steps_without_items() -> None:
    labels = torch.tensor([[9, 3, 2]])
    logits = torch.zeros(1, 3, 10)
    logits[0, 1, 3] = 1000.0
    _, stats = bear_loss(logits, labels, trie=TRIE, return_stats=True)
    adaptive = AdaptiveTau(2.0, eta=0.5, alpha=1.0, high=4.0, warm_up=1)
    assert float(adaptive.update(stats)) == 2.0
    assert float(adaptive.update(stats)) == 4.0
    _, nothing = bear_loss(logits, torch.full_like(labels, -100), trie=TRIE, return_stats=True)
    assert float(adaptive.update(nothing)) == 4.0
    with pytest.raises(ValueError, match="without a trie"):
        adaptive.update(sft_loss(logits, labels, return_stats=True)[1])
    with pytest.raises(ValueError, match=r"eta=0.1 times the 6 tokens"):
        AdaptiveTau(eta=0.1).update(stats)
    with pytest.raises(TypeError, match="value"):
        adaptive.load_state_dict({"num_updates": 1})
