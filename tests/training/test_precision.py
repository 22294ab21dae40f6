"""Lower precisions: no further from the float64 truth than the naive path in the same dtype."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from loss_cases import gradients

from gentrie import TokenTrie
from gentrie.training import bear_loss, linear_bear_loss

VOCAB, SIZE = 40, 32
TRIE = TokenTrie.from_sequences([[a, b] for a in range(2, 30) for b in range(a, 40, 3)], vocab_size=VOCAB)
LABELS = torch.tensor([[2, 5], [7, 7], [11, 20], [29, 38]])
LOW = [torch.float32, torch.bfloat16, torch.float16]


def naive(logits: torch.Tensor, labels: torch.Tensor, scope: str, dtype: torch.dtype) -> torch.Tensor:
    """The regularised form with a dense mask, in ``dtype`` throughout."""
    losses = []
    for row, states in zip(range(len(labels)), TRIE.token_states(labels).tolist(), strict=True):
        for column, state in enumerate(states):
            values = logits[row, column].to(dtype)
            if scope == "trie":
                values = torch.full_like(values, -torch.inf).index_put(
                    (torch.from_numpy(TRIE.next_tokens(state)).long(),), values[TRIE.next_tokens(state).tolist()]
                )
            log_probs = values.log_softmax(0)
            chosen = log_probs[labels[row, column]]
            ordered = log_probs.detach().sort(descending=True).values
            threshold = ordered[min(3, int((ordered > -torch.inf).sum())) - 1]
            losses.append(torch.nn.functional.logsigmoid(threshold - chosen) - chosen)
    return torch.stack(losses).sum() / labels.numel()


def assert_within(actual: torch.Tensor, naive_value: torch.Tensor, truth: torch.Tensor) -> None:
    """Ours may be as wrong as the naive path, or by two roundings of the result."""
    truth = truth.detach()
    rounding = torch.finfo(actual.dtype).eps * float(truth.abs().max())
    error = float((actual.detach().double() - truth).abs().max())
    assert error <= float((naive_value.detach().double() - truth).abs().max()) + 2 * rounding


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_from_logits(dtype: torch.dtype, scope: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(4, 2, VOCAB, generator=generator)).to(dtype).requires_grad_()
    truth = naive(logits, LABELS, scope, torch.float64)
    plain = naive(logits, LABELS, scope, dtype)
    loss = bear_loss(logits, LABELS, trie=TRIE, scope=scope, beam_width=3)
    assert loss.dtype == torch.float32
    assert_within(loss, plain, truth)
    wide = logits.detach().double().requires_grad_()
    (exact,) = gradients(naive(wide, LABELS, scope, torch.float64), wide)
    (ours,), (theirs,) = gradients(loss, logits), gradients(plain, logits)
    assert ours.dtype == dtype
    assert_within(ours, theirs, exact)


@pytest.mark.parametrize("head_dtype", LOW)
@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_from_hidden_states(dtype: torch.dtype, head_dtype: torch.dtype, scope: Any) -> None:
    """Also where hidden states and head differ, as under k-bit training; the naive path promotes them."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, 2, SIZE, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, SIZE, generator=generator).to(head_dtype).requires_grad_()
    common = torch.promote_types(dtype, head_dtype)
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    truth = naive(exact_leaves[0] @ exact_leaves[1].T, LABELS, scope, torch.float64)
    plain = naive(hidden.to(common) @ weight.to(common).T, LABELS, scope, common)
    loss = linear_bear_loss(hidden, weight, LABELS, trie=TRIE, scope=scope, beam_width=3)
    assert loss.dtype == torch.float32
    assert_within(loss, plain, truth)
    for ours, theirs, exact in zip(
        gradients(loss, hidden, weight), gradients(plain, hidden, weight), gradients(truth, *exact_leaves), strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert_within(ours, theirs, exact)


def test_autocast_changes_nothing() -> None:
    """Products are formed in float32, also of a float32 head under bfloat16 autocast."""
    hidden = torch.randn(4, 2, SIZE).bfloat16().requires_grad_()
    weight = torch.randn(VOCAB, SIZE).requires_grad_()
    expected = linear_bear_loss(hidden, weight, LABELS, trie=TRIE, beam_width=3)
    wanted = gradients(expected, hidden, weight)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_bear_loss(hidden, weight, LABELS, trie=TRIE, beam_width=3)
    assert torch.equal(loss, expected)
    for actual, gradient in zip(gradients(loss, hidden, weight), wanted, strict=True):
        assert torch.equal(actual, gradient)


@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_gradcheck(scope: Any) -> None:
    """With nothing constant to the gradient in it: no regulariser."""
    hidden = torch.randn(4, 2, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(VOCAB, 5, dtype=torch.float64, requires_grad=True)
    options: dict[str, Any] = {"trie": TRIE, "scope": scope, "reg_weight": 0.0, "tau": torch.tensor(1.5)}

    def linear(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_bear_loss(hidden, weight, LABELS, logit_softcap=3.0, **options)

    assert torch.autograd.gradcheck(linear, (hidden, weight))
    logits = torch.randn(4, 2, VOCAB, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: bear_loss(values, LABELS, **options), (logits,))
