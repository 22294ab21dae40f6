"""Numbers that are not finite, or nearly so: every loss is finite, or an error that names the label."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gentrie import TokenTrie
from gentrie.training import (
    AdaptiveTau,
    LogitMoments,
    LossStats,
    beam_search_objective,
    bear_loss,
    linear_bear_loss,
    linear_sft_loss,
    linear_token_logprobs,
    masked_softmax_loss,
    sdpo_loss,
    sft_loss,
    token_logprobs,
)

TRIE = TokenTrie.from_sequences([[a, b] for a in range(2, 14) for b in range(a, 20, 3)], vocab_size=30)
LABELS = torch.tensor([[2, 5], [7, 13], [11, 17]])
EYE = torch.eye(30)
INF = math.inf

Loss = Callable[[torch.Tensor], torch.Tensor]
OVER_VALID: dict[str, Loss] = {
    "bear": lambda x: bear_loss(x, LABELS, trie=TRIE),
    "negative": lambda x: bear_loss(x, LABELS, trie=TRIE, sign="negative"),
    "reweighted": lambda x: bear_loss(x, LABELS, trie=TRIE, form="reweighted", reduction="none"),
    "msl": lambda x: masked_softmax_loss(x, LABELS, trie=TRIE),
    "focal": lambda x: masked_softmax_loss(x, LABELS, trie=TRIE, focal_gamma=2.0),
    "log-probabilities": lambda x: token_logprobs(x, LABELS, trie=TRIE),
    "preference": lambda x: sdpo_loss(x[None], LABELS[None], torch.zeros(1, 3), trie=TRIE, reg_weight=1.0),
    "beams": lambda x: beam_search_objective(x, LABELS, lambda p, s: x.detach()[p, s.shape[1]], trie=TRIE),
}
OVER_ALL: dict[str, Loss] = {
    "bear": lambda x: bear_loss(x, LABELS, trie=TRIE, scope="vocab"),
    "sft": lambda x: sft_loss(x, LABELS),
    "linear bear": lambda x: linear_bear_loss(x, EYE, LABELS, trie=TRIE),
    "linear sft": lambda x: linear_sft_loss(x, EYE, LABELS),
    "linear log-probabilities": lambda x: linear_token_logprobs(x, EYE, LABELS, trie=TRIE),
}


def logits_with(*changes: tuple[Any, float]) -> torch.Tensor:
    """Random logits [3, 2, 30]; changes are of the columns that predict label 7."""
    logits = torch.randn(3, 2, 30, generator=torch.Generator().manual_seed(0))
    for columns, value in changes:
        logits[1, 0, columns] = value
    return logits.requires_grad_()


BAD = {
    "nan at a valid token": [(3, math.nan)],
    "nan at the label": [(7, math.nan)],
    "inf at a valid token": [(3, INF)],
    "inf at the label": [(7, INF)],
    "-inf at the label": [(7, -INF)],
    "all -inf": [(slice(None), -INF)],
    "too far apart": [(slice(None), 3e38), (7, -3e38)],
}
FINE = {
    "-inf at another token": [(3, -INF)],
    "all 1e38": [(slice(None), 1e38)],
    "the label far above": [(7, 1e38)],
}


@pytest.mark.parametrize("numbers", BAD)
@pytest.mark.parametrize("loss", [*OVER_VALID.items(), *OVER_ALL.items()], ids=lambda pair: pair[0])
def test_refused_by_label(loss: tuple[str, Loss], numbers: str) -> None:
    name, function = loss
    place = r"\[0\]\[1\]\[0\]" if name == "preference" else r"\[1\]\[0\]"
    with pytest.raises(ValueError, match=rf"the log-probability of labels{place}=7 is -?(nan|inf)"):
        function(logits_with(*BAD[numbers]))


@pytest.mark.parametrize("numbers", FINE)
@pytest.mark.parametrize("loss", [*OVER_VALID.items(), *OVER_ALL.items()], ids=lambda pair: pair[0])
def test_finite_with_a_finite_gradient(loss: tuple[str, Loss], numbers: str) -> None:
    if loss[0].startswith("linear") and "inf" in numbers:
        pytest.skip("an infinite hidden state times zero is nan")
    logits = logits_with(*FINE[numbers])
    value = loss[1](logits).sum()
    assert value.isfinite()
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize("number", [math.nan, INF])
@pytest.mark.parametrize("loss", OVER_VALID)
def test_tokens_that_are_not_valid_may_be_anything(loss: str, number: float) -> None:
    logits = logits_with((25, number))
    value = OVER_VALID[loss](logits).sum()
    torch.testing.assert_close(value, OVER_VALID[loss](logits_with()).sum(), rtol=0, atol=0)
    assert torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: bear_loss(x, LABELS, trie=TRIE, token_weights=torch.full((3, 2), math.nan)),
        lambda x: bear_loss(x, LABELS, trie=TRIE, sequence_weights=torch.tensor([1.0, INF, 1.0])),
        lambda x: sdpo_loss(x[None], LABELS[None], torch.full((1, 3), math.nan), trie=TRIE),
        lambda x: bear_loss(x, LABELS, trie=TRIE, reg_temperature=1e-39),
    ],
)
def test_other_arguments_that_make_a_loss_not_finite(loss: Loss) -> None:
    with pytest.raises(ValueError, match=r"the loss is -?(nan|inf)"):
        loss(logits_with())


def test_beams_of_a_model_that_gives_nan() -> None:
    with pytest.raises(ValueError, match=r"next_logits gives no finite sum of probabilities behind the prefix \[\]"):
        beam_search_objective(
            logits_with(), LABELS, lambda prompts, _: torch.full((len(prompts), 30), math.nan), trie=TRIE
        )


def test_an_adaptive_temperature_is_not_spoilt() -> None:
    one = torch.ones((), dtype=torch.float64)
    moments = LogitMoments(12, one, one * math.nan, one, one)
    tau = AdaptiveTau()
    tau.update(LossStats(1, 1, 0, 0, one, one, first_logits=moments))
    assert float(tau.value) == 1.5
