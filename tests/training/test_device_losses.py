"""Losses whose labels are looked up on the device: as on the host, as the dense reference, and without waiting.

On the CPU the operations behind them run in plain torch; the kernels have tests of their own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import LossCase, assert_same, gradients, loss_cases

from gentrie import TokenTrie
from gentrie.training import (
    _device,
    _device_rows,
    bear_loss,
    linear_bear_loss,
    linear_masked_softmax_loss,
    linear_sft_loss,
    masked_softmax_loss,
    sequence_logprobs,
    sft_loss,
    token_logprobs,
)

FORMS = st.sampled_from([("regularized", "positive"), ("regularized", "negative"), ("reweighted", "positive")])
OPTIONS = st.fixed_dictionaries(
    {
        "scope": st.sampled_from(["trie", "vocab"]),
        "tau": st.sampled_from([0.5, 1.0]),
        "beam_width": st.integers(1, 4),
        "reg_weight": st.sampled_from([0.0, 0.3]),
        "reg_temperature": st.sampled_from([0.7, 2.75]),
    }
)
REDUCTIONS = st.sampled_from(
    [("mean", kind) for kind in ("labels", "branching", "weights", 3.5, None)] + [("sum", None), ("none", None)]
)


@contextmanager
def kernels_taken(answer: bool = True) -> Iterator[None]:
    """CPU tensors go the way of CUDA tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_device, "takes", lambda tensor: answer)
        yield


def both(loss: Callable[[torch.Tensor], Any], logits: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Value and gradient of the sum, on the host and then on the device."""
    for answer in (False, True):
        with kernels_taken(answer):
            leaf = logits.detach().requires_grad_()
            value = loss(leaf * 1)
            yield value, *gradients(value.sum() * 2, leaf)


@settings(max_examples=60)
@given(loss_cases(), OPTIONS, FORMS, REDUCTIONS, st.booleans(), st.booleans(), st.booleans())
def test_bear(
    case: LossCase,
    options: dict[str, Any],
    form: tuple[str, str],
    reduction: tuple[str, Any],
    with_states: bool,
    weighted: bool,
    inplace: bool,
) -> None:
    """All forms, scopes, reductions and weights; those of labels that do not count may be anything."""
    options = options | {"form": form[0], "sign": form[1], "trie": case.trie, "on_invalid": "ignore"}
    options |= {"states": case.states if with_states else None, "inplace_backward": inplace}
    if weighted:
        weights = case.normal(*case.labels.shape).abs()
        weights[case.labels == reference.IGNORED] = torch.nan
        options |= {"token_weights": weights, "sequence_weights": case.normal(len(case.labels)).abs()}

    def loss(logits: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = bear_loss(logits, case.labels, reduction=reduction[0], normalizer=reduction[1], **options)
        return value

    host, device = both(loss, case.logits())
    for ours, theirs in zip(device, host, strict=True):
        assert_same(ours, theirs)


@settings(max_examples=30)
@given(loss_cases(), OPTIONS, FORMS)
def test_against_the_reference(case: LossCase, options: dict[str, Any], form: tuple[str, str]) -> None:
    options = options | {"form": form[0], "sign": form[1]}
    logits = case.logits()
    losses, _ = reference.bear(logits, case.expected, **options)
    expected = torch.stack(losses).sum() if losses else logits.sum() * 0
    with kernels_taken():
        loss = bear_loss(logits, case.labels, trie=case.trie, states=case.states, reduction="sum", **options)
    assert_same(loss, expected)
    assert_same(*gradients(loss, logits), *gradients(expected, logits))


@settings(max_examples=30)
@given(
    loss_cases(),
    st.sampled_from(["msl", "scope_mask_1", "scope_mask_2"]),
    st.booleans(),
    st.sampled_from([None, 1.5]),
    st.sampled_from(["trie", "vocab"]),
)
def test_other_losses(case: LossCase, variant: Any, end_in_scope: bool, gamma: float | None, scope: Any) -> None:
    """A focal loss is looked up on the host: it is none of one pass."""
    shared: dict[str, Any] = {"trie": case.trie, "states": case.states}
    for loss in (
        lambda logits: masked_softmax_loss(
            logits, case.labels, variant=variant, end_token_in_scope=end_in_scope, focal_gamma=gamma, **shared
        ),
        lambda logits: token_logprobs(logits, case.labels, scope=scope, tau=0.5, **shared),
        lambda logits: sequence_logprobs(logits, case.labels, scope=scope, **shared),
        lambda logits: sft_loss(logits, case.labels, normalizer="branching"),
    ):
        host, device = both(loss, case.logits())
        for ours, theirs in zip(device, host, strict=True):
            assert_same(ours, theirs)


TRIE = TokenTrie.from_sequences([[2, 3, 4], [2, 5, 6], [7]], vocab_size=9)
LOGITS = torch.randn(2, 3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
RIGHT = torch.tensor([[2, 3, 4], [7, -100, -100]])
WRONG = torch.tensor([[2, 3, 4], [2, 4, 4]])


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_label_that_is_not_valid(reduction: Any) -> None:
    """Its loss is nan, without a gradient, and the next call names it; then all is well."""
    logits = LOGITS.clone().requires_grad_()
    with kernels_taken():
        loss = bear_loss(logits, WRONG, trie=TRIE, reduction=reduction)
        wrong = loss.isnan()
        assert wrong.tolist() == (True if reduction == "mean" else [[False] * 3, [False, True, True]])
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert gradient.isfinite().all()
        assert not gradient[1, 1:].any()
        with pytest.raises(ValueError, match=r"at an earlier call labels.reshape\(-1, 3\)\[1\]\[1\]=4 was not a valid"):
            bear_loss(LOGITS, RIGHT, trie=TRIE)
        assert bear_loss(LOGITS, RIGHT, trie=TRIE).isfinite()
        assert token_logprobs(LOGITS, WRONG, trie=TRIE).isnan().tolist() == [[False] * 3, [False, True, True]]
        with pytest.raises(ValueError, match="labels"):
            sequence_logprobs(LOGITS, RIGHT, trie=TRIE)
        dropped = bear_loss(LOGITS, WRONG, trie=TRIE, on_invalid="ignore")
    assert_same(dropped, bear_loss(LOGITS, WRONG, trie=TRIE, on_invalid="ignore"))


def test_a_label_outside_the_logits() -> None:
    """Is an error whatever ``on_invalid`` says, in losses without a catalog too."""
    outside = torch.tensor([[2, 3, 4], [7, -100, 9]])
    with kernels_taken():
        assert sft_loss(LOGITS, outside).isnan()
        with pytest.raises(ValueError, match=r"\[1\]\[2\]=9 was not a valid token at state -2$"):
            sft_loss(LOGITS, RIGHT)
        states = torch.full_like(outside, -2)
        assert bear_loss(LOGITS, outside, trie=TRIE, states=states, on_invalid="ignore").isnan()
        with pytest.raises(ValueError, match=r"\[1\]\[2\]=9"):
            bear_loss(LOGITS, RIGHT, trie=TRIE)


@pytest.mark.parametrize(
    ("states", "error", "message"),
    [
        (torch.zeros(2, 3), TypeError, "states has dtype torch.float32"),
        (torch.zeros(3, 2, dtype=torch.int64), ValueError, r"states has shape \(3, 2\), labels has \(2, 3\)"),
        ([[0] * 3], ValueError, r"states has shape \(1, 3\)"),
    ],
)
def test_states_that_do_not_fit(states: Any, error: type[Exception], message: str) -> None:
    with kernels_taken(), pytest.raises(error, match=message):
        bear_loss(LOGITS, RIGHT, trie=TRIE, states=states)


def test_what_asks_for_the_host_gets_it() -> None:
    """Statistics and filtered catalogs: with an error at once."""
    for options in ({"return_stats": True}, {"item_filter": [0, 1, 2]}):
        with kernels_taken(), pytest.raises(ValueError, match=r"labels\[1\]\[1\]=4 is not a valid token"):
            bear_loss(LOGITS, WRONG, trie=TRIE, **options)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_no_labels(shape: tuple[int, ...]) -> None:
    logits = torch.randn(*shape, 9, requires_grad=True)
    with kernels_taken():
        loss = bear_loss(logits, torch.zeros(shape, dtype=torch.int64), trie=TRIE)
    assert loss == 0
    assert torch.autograd.grad(loss, logits)[0].shape == logits.shape


@pytest.mark.gpu
def test_rows_go_with_their_trie() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    trie = TokenTrie.from_sequences([[2, 3], [4]], vocab_size=9)
    rows = _device_rows.ResidentRows.of(trie, device)
    assert _device_rows.ResidentRows.of(trie, device) is rows
    count = len(_device_rows._RESIDENT)
    del trie
    gc.collect()
    assert len(_device_rows._RESIDENT) == count - 1


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "bear": lambda logits, labels, states: bear_loss(logits, labels, trie=TRIE, states=states, beam_width=2),
    "walked": lambda logits, labels, states: bear_loss(logits, labels, trie=TRIE, normalizer="branching"),
    "vocab": lambda logits, labels, states: bear_loss(logits, labels, trie=TRIE, scope="vocab", tau=0.5),
    "weights": lambda logits, labels, states: bear_loss(logits, labels, trie=TRIE, form="reweighted"),
    "msl": lambda logits, labels, states: masked_softmax_loss(logits, labels, trie=TRIE, states=states),
    "scope mask": lambda logits, labels, states: masked_softmax_loss(
        logits, labels, trie=TRIE, states=states, variant="scope_mask_1"
    ),
    "sft": lambda logits, labels, states: sft_loss(logits, labels),
    "log-probabilities": lambda logits, labels, states: token_logprobs(logits, labels, trie=TRIE, states=states).sum(),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_nothing_waits(name: str, dtype: torch.dtype) -> None:
    states = TRIE.token_states(torch.where(RIGHT < 0, -1, RIGHT))
    expected = LOGITS.to(dtype).requires_grad_()
    value = LOSSES[name](expected, RIGHT, states)
    value.backward()
    logits = LOGITS.to("cuda", dtype).requires_grad_()
    on = logits, RIGHT.cuda(), states.cuda()
    LOSSES[name](*on).backward()  # compiles, and brings the trie to the device
    logits.grad = None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = LOSSES[name](*on)
        loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(loss.detach().cpu(), value.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits.grad.cpu(), expected.grad)


@pytest.mark.gpu
@pytest.mark.parametrize("name", LOSSES)
def test_in_a_cuda_graph(name: str) -> None:
    """Forward and backward are captured once; replays see other logits, labels and states."""
    logits = torch.zeros(2, 3, 9, device="cuda", requires_grad=True)
    labels, states = torch.zeros(2, 3, dtype=torch.int64, device="cuda"), torch.zeros(2, 3, dtype=torch.int64).cuda()
    labels.copy_(RIGHT)
    states.copy_(TRIE.token_states(torch.where(RIGHT < 0, -1, RIGHT)))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        LOSSES[name](logits, labels, states).backward()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    logits.grad = None
    with torch.cuda.graph(graph):
        loss = LOSSES[name](logits, labels, states)
        loss.backward()
    for rows in (RIGHT, torch.tensor([[7, -100, -100], [2, 5, 6]]), torch.full((2, 3), -100)):
        numbers = torch.randn(2, 3, 9)
        found = TRIE.token_states(torch.where(rows < 0, -1, rows))
        with torch.no_grad():
            logits.copy_(numbers)
        labels.copy_(rows)
        states.copy_(found)
        graph.replay()
        torch.cuda.synchronize()
        leaf = numbers.requires_grad_()
        expected = LOSSES[name](leaf, rows, found)
        torch.testing.assert_close(loss.detach().cpu(), expected.detach())
        torch.testing.assert_close(logits.grad.cpu(), *gradients(expected, leaf))


HEAD_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "bear": lambda *given, states: linear_bear_loss(*given, trie=TRIE, states=states, beam_width=2),
    "vocab": lambda *given, states: linear_bear_loss(*given, trie=TRIE, scope="vocab", tau=0.5),
    "msl": lambda *given, states: linear_masked_softmax_loss(*given, trie=TRIE, states=states),
    "sft": lambda *given, states: linear_sft_loss(*given),
}


@pytest.mark.gpu
@pytest.mark.parametrize("name", HEAD_LOSSES)
@pytest.mark.parametrize("is_frozen", [False, True])
def test_nothing_waits_for_labels_on_the_host(name: str, is_frozen: bool) -> None:
    """From hidden states labels are looked up on the host, from where they need not be waited for."""
    states = TRIE.token_states(torch.where(RIGHT < 0, -1, RIGHT))
    numbers = torch.randn(2, 3, 16), torch.randn(9, 16)
    found = []
    for device in ("cpu", "cuda"):
        hidden, head = (number.to(device, copy=True).requires_grad_() for number in numbers)
        head.requires_grad_(not is_frozen)
        HEAD_LOSSES[name](hidden, head, RIGHT, states=states).backward()  # compiles
        hidden.grad = head.grad = None
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss = HEAD_LOSSES[name](hidden, head, RIGHT, states=states)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        found.append([loss.detach().cpu(), hidden.grad.cpu(), *([] if is_frozen else [head.grad.cpu()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
