"""MSL, RecLM-cgen's scope masks, the focal factor and log-probabilities against the dense reference."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_cases import END, LossCase, assert_same, gradients, loss_cases

from gentrie import TokenTrie
from gentrie.training import (
    linear_masked_softmax_loss,
    linear_sequence_logprobs,
    linear_sft_loss,
    linear_token_logprobs,
    masked_softmax_loss,
    sequence_logprobs,
    token_logprobs,
)

VARIANTS = st.sampled_from(["msl", "scope_mask_1", "scope_mask_2", "scope_mask_3"])
SHARED_BLOCKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@settings(max_examples=40, suppress_health_check=SHARED_BLOCKS)
@given(loss_cases(), VARIANTS, st.booleans(), st.sampled_from([None, 0.5, 2.0]), st.sampled_from(["restricted", "all"]))
def test_losses(
    block_size: int, case: LossCase, variant: Any, end_in_scope: bool, gamma: float | None, focal_rows: Any
) -> None:
    hidden = case.normal(*case.labels.shape, 3).requires_grad_()
    weight = case.normal(case.width, 3, spread=2.0).requires_grad_()
    logits = hidden @ weight.T
    losses = reference.masked_softmax(
        logits,
        case.expected,
        variant=variant,
        end=END,
        end_in_scope=end_in_scope,
        gamma=gamma,
        focal_rows=focal_rows,
        tau=1.5,
    )
    expected = torch.stack(losses).sum() if losses else logits.sum() * 0
    expected = expected / (case.count("branching" if variant == "msl" else "labels", "trie") or 1)
    options: dict[str, Any] = {"trie": case.trie, "states": case.states, "tau": 1.5, "variant": variant}
    options |= {"end_token_in_scope": end_in_scope, "focal_gamma": gamma, "focal_rows": focal_rows}
    wanted = torch.autograd.grad(expected, (hidden, weight), retain_graph=True)
    from_logits = masked_softmax_loss(logits, case.labels, **options)
    straight = linear_masked_softmax_loss(hidden, weight, case.labels, **options)
    for loss in (from_logits, straight):
        assert_same(loss, expected)
        for actual, gradient in zip(gradients(loss, hidden, weight), wanted, strict=True):
            assert_same(actual, gradient)


def test_msl_divides_by_branching_labels_of_items_and_free_text() -> None:
    trie = TokenTrie.from_sequences([[2, 3], [2, 4]], vocab_size=5)
    labels = torch.tensor([[2, 3, 0]])
    states = torch.tensor([[0, trie.walk([2]), -2]])
    logits = torch.zeros(1, 3, 5)
    expected = (torch.tensor(2.0).log() + torch.tensor(5.0).log()) / 2
    assert masked_softmax_loss(logits, labels, trie=trie, states=states).item() == pytest.approx(float(expected))


@settings(max_examples=40, suppress_health_check=SHARED_BLOCKS)
@given(loss_cases(), st.sampled_from(["trie", "vocab"]))
def test_logprobs(block_size: int, case: LossCase, scope: Any) -> None:
    hidden = case.normal(*case.labels.shape, 3).requires_grad_()
    weight = case.normal(case.width, 3, spread=2.0).requires_grad_()
    logits = hidden @ weight.T
    expected = torch.zeros(case.labels.shape, dtype=torch.float64)
    for label in case.expected:
        chosen = reference.log_prob(logits, label, scope, 1.5)
        expected = expected.index_put((torch.tensor(label.row), torch.tensor(label.column)), chosen)
    options: dict[str, Any] = {"trie": case.trie, "states": case.states, "tau": 1.5, "scope": scope}
    towards = case.normal(*case.labels.shape)
    by_sequence = case.normal(case.labels.shape[0])
    found = token_logprobs(logits, case.labels, **options)
    straight = linear_token_logprobs(hidden, weight, case.labels, **options)
    sums = sequence_logprobs(logits, case.labels, **options)
    straight_sums = linear_sequence_logprobs(hidden, weight, case.labels, **options)
    assert found.shape == case.labels.shape
    for actual, wanted, factor in (
        (found, expected, towards),
        (straight, expected, towards),
        (sums, expected.sum(-1), by_sequence),
        (straight_sums, expected.sum(-1), by_sequence),
    ):
        assert_same(actual, wanted)
        total = (wanted * factor).sum() + 0 * logits.sum()
        reference_gradients = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
        actual_gradients = torch.autograd.grad((actual * factor).sum(), (hidden, weight), retain_graph=True)
        for gradient, reference_gradient in zip(actual_gradients, reference_gradients, strict=True):
            assert_same(gradient, reference_gradient)


@settings(max_examples=20)
@given(loss_cases())
def test_states_are_found_from_labels(case: LossCase) -> None:
    """A row that is one item needs no states."""
    item = torch.tensor([[-100, *case.rows[0], -100]])
    logits = case.normal(1, item.shape[1], case.width)
    states = torch.tensor([[-2, *(case.trie.walk(case.rows[0][:i]) for i in range(len(case.rows[0]))), -2]])
    given_states = token_logprobs(logits, item, trie=case.trie, states=states)
    assert torch.equal(token_logprobs(logits, item, trie=case.trie), given_states)
    ignored_otherwise = torch.where(item == -100, 0, item)
    assert torch.equal(token_logprobs(logits, ignored_otherwise, trie=case.trie, ignore_index=0), given_states)


@settings(max_examples=20, suppress_health_check=SHARED_BLOCKS)
@given(loss_cases())
def test_linear_sft(block_size: int, case: LossCase) -> None:
    hidden = case.normal(*case.labels.shape, 3).requires_grad_()
    weight = case.normal(case.width, 3, spread=2.0).requires_grad_()
    flat = (hidden @ weight.T).reshape(-1, case.width)
    expected = torch.nn.functional.cross_entropy(flat, case.labels.reshape(-1), reduction="sum")
    expected = expected / max(1, len(case.expected))
    loss = linear_sft_loss(hidden, weight, case.labels)
    assert_same(loss, expected)
    for actual, wanted in zip(gradients(loss, hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert_same(actual, wanted)
