"""S-DPO, alone and with BEAR on both sides, against the formula written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from loss_cases import assert_same, gradients

from gentrie import TokenTrie
from gentrie.training import bear_loss, linear_sdpo_loss, sdpo_loss, sequence_logprobs

TRIE = TokenTrie.from_sequences([[2, 5], [2, 6, 7], [3, 5], [4, 6, 8], [4, 7]], vocab_size=9)
LABELS = torch.tensor(
    [
        [[2, 5, -100], [3, 5, -100], [4, 6, 8]],
        [[4, 7, -100], [2, 6, 7], [-100, -100, -100]],
    ]
)
REJECTED = [2, 1]


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("reg_weight", [0.0, 0.4])
@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_formula(scope: Any, reg_weight: float) -> None:
    hidden, weight = numbers(2, 3, 3, 4).requires_grad_(), numbers(10, 4, seed=1).requires_grad_()
    logits = hidden @ weight.T
    options: dict[str, Any] = {"trie": TRIE, "scope": scope}
    reference = sequence_logprobs(numbers(2, 3, 3, 10, seed=2), LABELS, **options)
    beta = 0.7
    logprobs = sequence_logprobs(logits, LABELS, **options)
    losses = []
    for row, count in enumerate(REJECTED):
        rewards = beta * (logprobs[row] - reference[row])
        inside = sum(torch.exp(rewards[1 + k] - rewards[0]) for k in range(count))
        losses.append(-torch.log(torch.sigmoid(-torch.log(inside))))
        regularisers = [
            bear_loss(logits[row, k], LABELS[row, k], reduction="sum", sign="negative", beam_width=2, **options)
            for k in range(1 + count)
        ]
        losses[-1] = losses[-1] + reg_weight * (sum(regularisers[1:]) - regularisers[0])
    expected = torch.stack(losses)
    wanted = gradients(expected.mean(), hidden, weight)
    common = options | {"beta": beta, "reg_weight": reg_weight, "beam_width": 2}
    for loss in (
        sdpo_loss(logits, LABELS, reference, **common),
        linear_sdpo_loss(hidden, weight, LABELS, reference, **common),
    ):
        assert_same(loss, expected.mean())
        for actual, gradient in zip(gradients(loss, hidden, weight), wanted, strict=True):
            assert_same(actual, gradient)
    assert_same(sdpo_loss(logits, LABELS, reference, reduction="none", **common), expected)
    assert_same(sdpo_loss(logits, LABELS, reference, reduction="sum", **common), expected.sum())


def test_the_reference_itself_loses_by_chance() -> None:
    """Equal to the reference every reward is 0: log(1 + K) a prompt."""
    logits = numbers(2, 3, 3, 9)
    reference = sequence_logprobs(logits, LABELS, trie=TRIE)
    loss, stats = sdpo_loss(logits, LABELS, reference, trie=TRIE, reduction="none", return_stats=True)
    assert_same(loss, torch.tensor([math.log(3), math.log(2)], dtype=torch.float64))
    assert not stats.rewards.any()
    assert stats.accuracy == 0
    assert torch.equal(stats.logprobs, reference)
    better = logits.clone()
    better[0, 0, 0, 2] += 5
    _, stats = sdpo_loss(better, LABELS, reference, trie=TRIE, return_stats=True)
    assert float(stats.accuracy) == pytest.approx(2 / 3)


def test_finite_at_huge_gaps() -> None:
    logits = torch.zeros(2, 3, 3, 9)
    logits[:, 0] = torch.tensor([0, 0, -1e4, 1e4, 1e4, -1e4, 0, 0, 0])
    logits.requires_grad_()
    loss = sdpo_loss(logits, LABELS, torch.zeros(2, 3), trie=TRIE, reg_weight=1.0)
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()
