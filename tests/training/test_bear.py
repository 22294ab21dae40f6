"""BEAR in every form against the dense reference: value and all gradients, from logits and from hidden states."""

from __future__ import annotations

from typing import Any

import pytest
import reference
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_cases import LossCase, assert_same, gradients, loss_cases

from gentrie import TokenTrie
from gentrie.training import bear_loss, linear_bear_loss, sft_loss

OPTIONS = st.fixed_dictionaries(
    {
        "scope": st.sampled_from(["trie", "vocab"]),
        "form": st.sampled_from(["regularized", "reweighted"]),
        "sign": st.sampled_from(["positive", "negative"]),
        "tau": st.sampled_from([0.5, 1.0, 2.5]),
        "beam_width": st.integers(1, 5),
        "reg_weight": st.sampled_from([0.0, 0.3, 1.0]),
        "reg_temperature": st.sampled_from([0.7, 2.75]),
    }
).filter(lambda options: options["form"] == "regularized" or options["sign"] == "positive")
NORMALIZERS = st.sampled_from(["labels", "branching", "weights", 3.5, None])
SHARED_BLOCKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def expected_loss(case: LossCase, logits: torch.Tensor, normalizer: Any, options: dict[str, Any]) -> torch.Tensor:
    losses, weights = reference.bear(logits, case.expected, **options)
    total = torch.stack(losses).sum() if losses else logits.sum() * 0
    kind = normalizer or ("weights" if options["form"] == "reweighted" else "labels")
    if kind == "weights":
        divisor = float(sum(weights))
    else:
        divisor = case.count(kind, options["scope"]) if isinstance(kind, str) else kind
    return total / (divisor or 1)


@settings(max_examples=40, suppress_health_check=SHARED_BLOCKS)
@given(loss_cases(), OPTIONS, NORMALIZERS)
def test_from_logits(block_size: int, case: LossCase, options: dict[str, Any], normalizer: Any) -> None:
    logits = case.logits()
    expected = expected_loss(case, logits, normalizer, options)
    loss = bear_loss(logits, case.labels, trie=case.trie, states=case.states, normalizer=normalizer, **options)
    assert_same(loss, expected)
    assert_same(*gradients(loss, logits), *gradients(expected, logits))


@settings(max_examples=40, suppress_health_check=SHARED_BLOCKS)
@given(
    loss_cases(),
    OPTIONS,
    NORMALIZERS,
    st.booleans(),
    st.sampled_from([None, 2.0]),
    st.sampled_from([None, 0.25]),
    st.integers(1, 5),
)
def test_from_hidden_states(
    block_size: int,
    case: LossCase,
    options: dict[str, Any],
    normalizer: Any,
    with_bias: bool,
    softcap: float | None,
    scale: float | None,
    hidden_size: int,
) -> None:
    numbers = case.normal(case.labels.numel() * hidden_size + case.width * (hidden_size + 1), spread=2.0)
    hidden, weight, bias = numbers.split([case.labels.numel() * hidden_size, case.width * hidden_size, case.width])
    hidden = hidden.reshape(*case.labels.shape, hidden_size).clone().requires_grad_()
    weight = weight.reshape(case.width, hidden_size).clone().requires_grad_()
    leaves = [hidden, weight]
    head: dict[str, Any] = {"logit_softcap": softcap, "logit_scale": scale}
    if with_bias:
        head["lm_head_bias"] = bias.clone().requires_grad_()
        leaves.append(head["lm_head_bias"])
    logits = reference.head_logits(hidden, weight, head.get("lm_head_bias"), softcap, scale)
    expected = expected_loss(case, logits, normalizer, options)
    loss = linear_bear_loss(
        hidden, weight, case.labels, trie=case.trie, states=case.states, normalizer=normalizer, **head, **options
    )
    assert_same(loss, expected)
    for actual, wanted in zip(gradients(loss, *leaves), gradients(expected, *leaves), strict=True):
        assert_same(actual, wanted)


@settings(max_examples=30)
@given(loss_cases(), st.sampled_from(["trie", "vocab"]), st.sampled_from([0.25, 2.0]))
def test_the_two_forms_have_one_gradient(case: LossCase, scope: Any, reg_weight: float) -> None:
    """Reweighted by ``reg_weight`` is regularised by ``reg_temperature * reg_weight``, over the sum of weights."""
    temperature = 2.75
    common: dict[str, Any] = {"trie": case.trie, "states": case.states, "scope": scope, "beam_width": 2}
    common |= {"reg_temperature": temperature, "reduction": "sum"}
    logits = case.logits()
    paper = bear_loss(logits, case.labels, reg_weight=temperature * reg_weight, **common)
    code = bear_loss(logits, case.labels, reg_weight=reg_weight, form="reweighted", **common)
    assert_same(*gradients(code, logits), *gradients(paper, logits))


@settings(max_examples=30)
@given(loss_cases())
def test_without_regulariser_over_the_vocabulary_it_is_cross_entropy(case: LossCase) -> None:
    logits = case.logits()
    flat, labels = logits.reshape(-1, case.width), case.labels.reshape(-1)
    expected = torch.nn.functional.cross_entropy(flat, labels, reduction="sum") / max(1, len(case.expected))
    limit = bear_loss(logits, case.labels, trie=case.trie, states=case.states, scope="vocab", reg_weight=0.0)
    plain = sft_loss(logits, case.labels)
    wanted = gradients(expected, logits)
    for loss in (limit, plain):
        assert_same(loss, expected)
        assert_same(*gradients(loss, logits), *wanted)


@pytest.mark.parametrize("form", ["regularized", "reweighted"])
def test_statistics(form: Any) -> None:
    rows = [[2, 4], [2, 5], [2, 6], [3, 7]]
    trie = TokenTrie.from_sequences(rows, vocab_size=8, end_token_id=1)
    labels = torch.tensor([[2, 4, 1, -100, 0], [3, 7, 1, 3, 3]])
    states = trie.token_states(torch.tensor([[2, 4, 1, -1, -1], [3, 7, 1, 3, 3]]))
    states[0, 4], states[1, 3:] = -2, -1
    logits = torch.zeros(2, 5, 8, dtype=torch.float64)
    logits[0, 0, 2], logits[0, 1, 4] = 1.0, -1.0
    loss, stats = bear_loss(
        logits, labels, trie=trie, states=states, beam_width=1, form=form, on_invalid="ignore", return_stats=True
    )
    assert (stats.num_labels, stats.num_branching, stats.num_free, stats.num_invalid) == (7, 4, 1, 2)
    # Of the three branching labels in items, "4" is below the largest; "3" ties with nothing above it but "2".
    assert float(stats.violation_rate) == pytest.approx(1 / 3)
    lse = torch.tensor([1.0, 0.0]).double().logsumexp(0)
    below = torch.tensor([-1.0, 0.0, 0.0]).double().logsumexp(0)
    chosen = torch.stack([1 - lse, -1 - below, -torch.tensor(2.0).log().double(), -torch.tensor(8.0).log().double()])
    assert float(stats.mean_log_prob) == pytest.approx(float(chosen.sum() / 7), rel=1e-6)
    weights = 1 + torch.sigmoid(torch.tensor([0.0, -1.0, 0.0]))
    assert float(stats.mean_weight) == pytest.approx(float(weights.mean()), rel=1e-6)
    expected = float(weights.sum() + 1) if form == "reweighted" else 7.0
    assert float(stats.normalizer) == pytest.approx(expected, rel=1e-6)
    first = stats.first_logits
    assert (first.num_tokens, float(first.num_rows)) == (2, 2.0)
    assert (float(first.total), float(first.squares), float(first.target_total)) == (1.0, 1.0, 1.0)
    assert torch.isfinite(loss)
