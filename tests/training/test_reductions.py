"""Weights, normalizers and reductions; several small batches, or processes, against one big batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from loss_cases import LossCase, assert_same, gradients, loss_cases

from gentrie import TokenTrie
from gentrie.training import bear_loss, linear_bear_loss, masked_softmax_loss

ROWS = [[2, 5], [2, 6, 7], [3, 5], [4, 6, 8], [4, 7]]


def make_batch() -> tuple[TokenTrie, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Trie, labels [4, 3], hidden states [4, 3, 6] and head [10, 6] in float64."""
    trie = TokenTrie.from_sequences(ROWS, vocab_size=10)
    labels = torch.tensor([[2, 6, 7], [3, 5, -100], [4, 7, -100], [4, 6, 8]])
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 3, 6, dtype=torch.float64, generator=generator)
    return trie, labels, hidden, torch.randn(10, 6, dtype=torch.float64, generator=generator)


def whole_gradient(form: Any) -> tuple[torch.Tensor, float]:
    """Of the head for the whole batch divided by its own normalizer, and that normalizer."""
    trie, labels, hidden, weight = make_batch()
    weight.requires_grad_()
    loss, stats = linear_bear_loss(hidden, weight, labels, trie=trie, form=form, beam_width=2, return_stats=True)
    return torch.autograd.grad(loss, weight)[0], float(stats.normalizer)


@pytest.mark.parametrize("form", ["regularized", "reweighted"])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_gradient_accumulation_equals_one_big_batch(form: Any, as_tensor: bool) -> None:
    trie, labels, hidden, weight = make_batch()
    weight.requires_grad_()
    expected, normalizer = whole_gradient(form)
    for part in (slice(0, 1), slice(1, 4)):
        divisor = torch.tensor(normalizer) if as_tensor else normalizer
        loss = linear_bear_loss(
            hidden[part], weight, labels[part], trie=trie, form=form, beam_width=2, normalizer=divisor
        )
        loss.backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, expected, rtol=1e-6 if as_tensor else 1e-9, atol=1e-12)


def test_each_micro_batch_by_its_own_weights_is_another_loss() -> None:
    trie, labels, hidden, weight = make_batch()
    weight.requires_grad_()
    expected, _ = whole_gradient("reweighted")
    for part in (slice(0, 1), slice(1, 4)):
        loss = linear_bear_loss(hidden[part], weight, labels[part], trie=trie, form="reweighted", beam_width=2)
        (loss / 2).backward()
    assert weight.grad is not None
    assert (weight.grad - expected).abs().max() > 0.01 * expected.abs().max()


def _rank(rank: int, store: str, form: Any, results: str) -> None:
    """One of two processes: its half of the batch, gradients summed."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    trie, labels, hidden, weight = make_batch()
    weight.requires_grad_()
    part = slice(2 * rank, 2 * rank + 2)
    _, stats = linear_bear_loss(
        hidden[part], weight, labels[part], trie=trie, form=form, beam_width=2, return_stats=True
    )
    normalizer = stats.normalizer.clone()
    torch.distributed.all_reduce(normalizer)
    loss = linear_bear_loss(
        hidden[part], weight, labels[part], trie=trie, form=form, beam_width=2, normalizer=normalizer
    )
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.distributed.all_reduce(gradient)
    if rank == 0:
        torch.save(gradient, results)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["regularized", "reweighted"])
def test_two_processes_equal_one_big_batch(tmp_path: Path, form: Any) -> None:
    results = tmp_path / "gradient.pt"
    torch.multiprocessing.spawn(_rank, (str(tmp_path / "store"), form, str(results)), nprocs=2)
    torch.testing.assert_close(torch.load(results), whole_gradient(form)[0], rtol=1e-9, atol=1e-12)


@settings(max_examples=30)
@given(loss_cases())
def test_weights_multiply_token_losses(case: LossCase) -> None:
    logits = case.logits()
    token_weights = case.normal(*case.labels.shape).abs()
    sequence_weights = case.normal(case.labels.shape[0]).abs()
    common: dict[str, Any] = {"trie": case.trie, "states": case.states, "form": "reweighted", "beam_width": 2}
    plain = bear_loss(logits, case.labels, reduction="none", **common)
    assert plain.shape == case.labels.shape
    weighted = plain * token_weights * sequence_weights[:, None]
    options = common | {"token_weights": token_weights, "sequence_weights": sequence_weights}
    assert_same(bear_loss(logits, case.labels, reduction="none", **options), weighted)
    expected = weighted.sum()
    wanted = gradients(expected, logits)
    summed = bear_loss(logits, case.labels, reduction="sum", **options)
    assert_same(summed, expected)
    assert_same(*gradients(summed, logits), *wanted)
    for kind in ("labels", "branching"):
        mean = bear_loss(logits, case.labels, normalizer=kind, **options)
        assert_same(mean, expected / max(1, case.count(kind, "trie")))


def test_sum_of_weights_counts_weights() -> None:
    """Twice the weight everywhere changes a mean by weights in nothing, and doubles a mean by labels."""
    trie, labels, hidden, weight = make_batch()
    logits = hidden @ weight.T
    twice = torch.full(labels.shape, 2.0)
    for loss, options in (
        (bear_loss, {"form": "reweighted"}),
        (bear_loss, {"form": "regularized", "normalizer": "weights"}),
        (masked_softmax_loss, {"normalizer": "weights"}),
    ):
        once = loss(logits, labels, trie=trie, **options)
        torch.testing.assert_close(loss(logits, labels, trie=trie, token_weights=twice, **options), once)
    once = bear_loss(logits, labels, trie=trie)
    torch.testing.assert_close(bear_loss(logits, labels, trie=trie, token_weights=twice), 2 * once)


def test_weights_of_zero_divide_by_nothing() -> None:
    trie, labels, hidden, weight = make_batch()
    hidden.requires_grad_()
    nothing = torch.zeros(labels.shape)
    loss = linear_bear_loss(hidden, weight, labels, trie=trie, form="reweighted", token_weights=nothing)
    loss.backward()
    assert loss == 0
    assert hidden.grad is not None
    assert not hidden.grad.any()
