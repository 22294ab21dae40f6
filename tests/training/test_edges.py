"""Where losses usually break: huge gaps, one valid token, few valid tokens, ties, nothing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gentrie import TokenTrie
from gentrie.training import bear_loss, linear_bear_loss, masked_softmax_loss, sft_loss, token_logprobs

TRIE = TokenTrie.from_sequences([[2, 5], [3, 5], [3, 6], [4, 7, 8]], vocab_size=9)

Loss = Callable[..., Any]


def linear(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
    """The linear form with the logits as hidden states and the identity as head."""
    return linear_bear_loss(logits, torch.eye(logits.shape[-1], dtype=logits.dtype), labels, **options)


FORMS = [
    pytest.param(loss, {"scope": scope, **form}, id=f"{name} {scope} {' '.join(form.values())}")
    for name, loss in (("logits", bear_loss), ("hidden", linear))
    for scope in ("trie", "vocab")
    for form in ({"form": "regularized"}, {"form": "reweighted"}, {"sign": "negative"})
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gap", [1e4, -1e4])
@pytest.mark.parametrize(("loss", "options"), FORMS)
def test_gaps_of_ten_thousand(loss: Loss, options: dict[str, Any], gap: float, dtype: torch.dtype) -> None:
    """The published code's gradient is not a number from a gap of 95 on."""
    logits = torch.zeros(2, 9, dtype=dtype)
    logits[0, 2] = gap
    logits[1, 3] = gap
    logits.requires_grad_()
    value = loss(logits, torch.tensor([3, 6]), trie=TRIE, states=torch.tensor([0, TRIE.walk([3])]), **options)
    (gradient,) = torch.autograd.grad(value, logits)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    if gap > 0 and options.get("sign") != "negative":
        # The label at the root lies 1e4 below: to raise it is worth 1 (and what the regulariser adds) over 2 labels.
        assert gradient[0, 3] < -0.3


@pytest.mark.parametrize(("loss", "options"), FORMS)
def test_one_valid_token(loss: Loss, options: dict[str, Any]) -> None:
    """Nothing at all over the valid tokens, whatever the logits; over the vocabulary it is a label as any other."""
    logits = torch.full((2, 9), torch.nan if options["scope"] == "trie" else 0.5, requires_grad=True)
    states = torch.tensor([TRIE.walk([2]), TRIE.walk([4, 7])])
    value = loss(logits, torch.tensor([5, 8]), trie=TRIE, states=states, **options)
    (gradient,) = torch.autograd.grad(value, logits)
    assert bool(value == 0) is (options["scope"] == "trie")
    assert bool((gradient == 0).all()) is (options["scope"] == "trie")


@pytest.mark.parametrize("loss", [bear_loss, linear])
@pytest.mark.parametrize(
    ("beam_width", "threshold"),
    [(1, 2.0), (2, 1.0), (3, 1.0), (4, 0.0), (10**6, 0.0)],
    ids=["B = 1", "first of a tie", "second of a tie", "all", "more than there are"],
)
def test_threshold_is_the_bth_in_order_with_repeats(loss: Loss, beam_width: int, threshold: float) -> None:
    trie = TokenTrie.from_sequences([[2], [3], [4], [5]], vocab_size=7)
    logits = torch.tensor([[9.0, 9.0, 1.0, 2.0, 0.0, 1.0, 9.0]], dtype=torch.float64)
    margin = torch.tensor(threshold - 1.0, dtype=torch.float64)
    value = loss(logits, torch.tensor([2]), trie=trie, beam_width=beam_width, sign="negative", reduction="sum")
    assert value.item() == pytest.approx(-torch.nn.functional.logsigmoid(margin).item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (2, 0), (2, 3)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("loss", "options"), FORMS)
def test_empty_batch_and_all_labels_ignored(
    loss: Loss, options: dict[str, Any], shape: tuple[int, ...], reduction: str
) -> None:
    logits = torch.randn(*shape, 9, requires_grad=True)
    value = loss(logits, torch.full(shape, -100), trie=TRIE, reduction=reduction, **options)
    assert value.shape == (shape if reduction == "none" else ())
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert not value.any()
    assert gradient.shape == logits.shape
    assert not gradient.any()


def test_invalid_label_is_named() -> None:
    labels = torch.tensor([[2, 5, -100], [3, 7, 8]])
    logits = torch.zeros(2, 3, 9)
    for loss in (bear_loss, masked_softmax_loss, token_logprobs):
        with pytest.raises(ValueError) as error:
            loss(logits, labels, trie=TRIE)
        assert f"labels[1][1]=7 is not a valid token at state {TRIE.walk([3])}" in str(error.value)
    with pytest.raises(ValueError, match=r"labels\[0\]\[0\]=8 is not .* -1: the labels before it have left the trie"):
        bear_loss(logits[:1, :1], torch.tensor([[8]]), trie=TRIE, states=torch.tensor([[-1]]))
    with pytest.raises(ValueError, match=r"labels\[0\]\[1\]=9 is outside \[0, 9\)"):
        bear_loss(logits, torch.tensor([[2, 9, -100]] * 2), trie=TRIE)
    with pytest.raises(ValueError, match=r"labels\[0\]\[1\]=-1 is outside"):
        sft_loss(logits, torch.tensor([[2, -1, -100]] * 2))


def test_invalid_labels_are_dropped_and_counted() -> None:
    labels = torch.tensor([[2, 5, -100], [3, 7, 8]])
    logits = torch.randn(2, 3, 9, dtype=torch.float64)
    value, stats = bear_loss(logits, labels, trie=TRIE, on_invalid="ignore", return_stats=True)
    kept = torch.tensor([[2, 5, -100], [3, -100, -100]])
    assert torch.equal(value, bear_loss(logits, kept, trie=TRIE))
    assert (stats.num_labels, stats.num_invalid) == (3, 2)


def test_logits_wider_than_the_trie() -> None:
    """Over the vocabulary the whole width counts, as labels of free text may lie there."""
    logits = torch.zeros(2, 16, dtype=torch.float64)
    labels, states = torch.tensor([2, 15]), torch.tensor([0, -2])
    found = token_logprobs(logits, labels, trie=TRIE, states=states, scope="vocab")
    torch.testing.assert_close(found.exp(), torch.tensor([1 / 16, 1 / 16], dtype=torch.float64))
    found = token_logprobs(logits, labels, trie=TRIE, states=states)
    torch.testing.assert_close(found.exp(), torch.tensor([1 / 3, 1 / 16], dtype=torch.float64))


def test_logits_need_not_be_contiguous() -> None:
    labels, states = torch.tensor([[2, 5], [3, 6]]), torch.tensor([[0, TRIE.walk([2])], [0, -2]])
    wide = torch.randn(2, 2, 20, dtype=torch.float64)
    view = wide[:, :, ::2].requires_grad_()
    copy = view.detach().contiguous().requires_grad_()
    values = [bear_loss(logits, labels, trie=TRIE, states=states) for logits in (view, copy)]
    assert values[0] == values[1]
    gradients = [torch.autograd.grad(value, logits)[0] for value, logits in zip(values, (view, copy), strict=True)]
    assert torch.equal(*gradients)


def test_no_gradient_where_none_is_wanted() -> None:
    hidden, weight = torch.randn(2, 4), torch.randn(9, 4, requires_grad=True)
    labels = torch.tensor([2, 3])
    frozen = linear_bear_loss(hidden.requires_grad_(), weight.detach(), labels, trie=TRIE, states=torch.zeros(2).long())
    frozen.backward()
    assert hidden.grad is not None
    head_only = linear_bear_loss(hidden.detach(), weight, labels, trie=TRIE, states=torch.zeros(2).long())
    head_only.backward()
    # Three tokens may begin an item; only their rows of the head learn.
    assert weight.grad is not None
    assert weight.grad.any(1).nonzero().flatten().tolist() == [2, 3, 4]
