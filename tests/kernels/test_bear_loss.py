"""BEAR's loss and the log-probabilities under it, with gradients, against float64; as kernels and as plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_rows import DTYPES, RowCase, assert_within, row_cases
from strategies import examples

from gentrie import TokenTrie, training
from gentrie.kernels import reference_losses
from gentrie.kernels.bear_loss import bear_loss, bear_loss_op
from gentrie.kernels.bear_loss_rows import BearLosses, launch_bear_loss
from gentrie.kernels.label_log_probs import label_log_probs, label_log_probs_op
from gentrie.kernels.log_prob_gradient import launch_log_prob_gradient
from gentrie.kernels.scale_rows import launch_scale_rows, scale_rows_op
from gentrie.training import _device

FORMS = st.sampled_from([("regularized", "positive"), ("regularized", "negative"), ("reweighted", "positive")])
OPTIONS = st.tuples(st.sampled_from([1, 3, 10]), st.sampled_from([0.0, 0.5]), st.sampled_from([0.75, 2.75]), FORMS)
Options = tuple[int, float, float, tuple[str, str]]


def expected(case: RowCase, options: Options, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses times weights and the gradient of their sum, by autograd through the reference."""
    leaf = case.logits.to(dtype).requires_grad_()
    beam_width, reg_weight, reg_temperature, (form, sign) = options
    losses = reference_losses.bear_loss(
        case.meant(leaf),
        case.labels,
        beam_width=beam_width,
        reg_weight=reg_weight,
        reg_temperature=reg_temperature,
        form=form,
        sign=sign,
        tau=1.0 if case.tau is None else case.tau,
        indptr=case.indptr,
        tokens=case.tokens,
        node=case.node,
    )
    total = torch.stack(losses) if case.weights is None else torch.stack(losses) * case.weights.to(dtype)
    return total.detach(), torch.autograd.grad(total.sum(), leaf)[0]


@examples(12)
@given(row_cases(), OPTIONS)
def test_kernel(device: str, case: RowCase, options: Options) -> None:
    truth, naive = (expected(case, options, dtype) for dtype in (torch.float64, case.logits.dtype))
    logits = case.placed(device)
    weights = None if case.weights is None else case.weights.to(device)
    beam_width, reg_weight, reg_temperature, form = options

    def launch(into: torch.Tensor) -> BearLosses:
        results = BearLosses(*(case.poisoned(device) for _ in range(3)))
        launch_bear_loss(
            logits,
            case.labels.to(device),
            *case.on(device).values(),
            weights,
            beam_width,
            reg_weight,
            reg_temperature,
            *form,
            into,
            results,
        )
        return results

    into = torch.full_like(logits, torch.nan, memory_format=torch.contiguous_format)
    results = launch(into)
    assert_within(results.losses, naive[0], truth[0], case.largest)
    assert_within(into, naive[1], truth[1], case.largest)
    in_place = launch(logits)
    assert torch.equal(logits, into)
    assert all(torch.equal(one, other) for one, other in zip(in_place, results, strict=True))


@examples(30)
@given(row_cases(), OPTIONS, st.booleans())
def test_plain(case: RowCase, options: Options, inplace: bool) -> None:
    truth, naive = (expected(case, options, dtype) for dtype in (torch.float64, case.logits.dtype))
    beam_width, reg_weight, reg_temperature, (form, sign) = options
    leaf = case.logits.detach().requires_grad_()
    found = bear_loss(
        leaf * 1,
        case.labels,
        beam_width=beam_width,
        reg_weight=reg_weight,
        reg_temperature=reg_temperature,
        form=form,
        sign=sign,
        weights=case.weights,
        inplace_backward=inplace,
        **case.on("cpu"),
    )
    assert_within(found.losses, naive[0], truth[0], case.largest)
    (gradient,) = torch.autograd.grad(found.losses.sum(), leaf)
    assert gradient.dtype == leaf.dtype
    assert_within(gradient, naive[1], truth[1], case.largest)


@examples(12)
@given(row_cases())
def test_gradient_of_log_probs(device: str, case: RowCase) -> None:
    """Kernel and plain form, each with factors of its own for the rows."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.randn(len(case.labels), generator=generator, dtype=torch.float64)
    tau, rows = case.tau or 1.0, range(len(case.labels))

    def naive(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        leaf = case.logits.to(dtype).requires_grad_()
        meant, chosen = case.meant(leaf), []
        _, totals = reference_losses.topb_threshold(meant, 1, case.indptr, case.tokens, case.node, tau)
        for row, label in zip(rows, case.labels.tolist(), strict=True):
            free = case.node is not None and case.node[row] == -2
            chosen.append(meant[row, label] / (1.0 if free else tau) - totals[row])
        log_probs = torch.stack(chosen)
        gradient = torch.autograd.grad((log_probs * scales.to(dtype)).sum(), leaf)[0]
        return log_probs.detach(), gradient, totals.detach()

    truth, plain = naive(torch.float64), naive(case.logits.dtype)
    leaf = case.logits.detach().requires_grad_()
    log_probs, _ = label_log_probs(leaf, case.labels, **case.on("cpu"))
    assert_within(log_probs, plain[0], truth[0], case.largest)
    assert_within(torch.autograd.grad((log_probs * scales).sum(), leaf)[0], plain[1], truth[1], case.largest)
    into = torch.full_like(case.placed(device), torch.nan, memory_format=torch.contiguous_format)
    launch_log_prob_gradient(
        case.placed(device),
        case.labels.to(device),
        *case.on(device).values(),
        truth[2].to(device, case.sums),
        scales.to(device, case.sums),
        into,
    )
    assert_within(into, plain[1], truth[1], case.largest)


@pytest.mark.parametrize("tau", [None, 2.0])
def test_ragged_log_probs(device: str, tau: float | None) -> None:
    counts, labels = torch.tensor([3, 1, 2000]), torch.tensor([2, 0, 77])
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    leaf = torch.randn(int(indptr[-1]), dtype=torch.float64, requires_grad=True)
    rows = leaf.split(counts.tolist())
    chosen = [(row / (tau or 1)).log_softmax(0)[label] for row, label in zip(rows, labels, strict=True)]
    scales = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    (truth,) = torch.autograd.grad((torch.stack(chosen) * scales).sum(), leaf)
    temperature = None if tau is None else torch.tensor(tau, dtype=torch.float64)
    found, threshold = label_log_probs(leaf, labels, beam_width=2, indptr=indptr, tau=temperature)
    torch.testing.assert_close(found, torch.stack(chosen))
    ordered = [(row / (tau or 1)).log_softmax(0).sort(descending=True).values for row in rows]
    torch.testing.assert_close(threshold, torch.stack([row[min(1, len(row) - 1)] for row in ordered]))
    torch.testing.assert_close(torch.autograd.grad((found * scales).sum(), leaf)[0], truth)
    totals = torch.stack([(row / (tau or 1)).logsumexp(0) for row in rows]).detach()
    into = torch.full_like(leaf.detach(), torch.nan, device=device)
    on = [None if tensor is None else tensor.to(device) for tensor in (None, indptr, None, None, temperature)]
    values = leaf.detach().to(device)
    launch_log_prob_gradient(values, labels.to(device), *on, totals.to(device), scales.to(device), into)
    torch.testing.assert_close(into.cpu(), truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [None, torch.tensor([2, 0])])
def test_rows_are_scaled(device: str, dtype: torch.dtype, rows: torch.Tensor | None) -> None:
    values = torch.randn(3, 5000).to(dtype)
    factors = torch.tensor([0.5, 1.0, -2.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    factors = factors if rows is None else factors[: len(rows)]
    wanted = values.clone()
    for i, row in enumerate(range(3) if rows is None else rows.tolist()):
        wanted[row] *= float(factors[i])  # powers of two: exact in any type
    scaled = values.to(device, copy=True)
    launch_scale_rows(scaled, None if rows is None else rows.to(device), factors.to(device))
    assert torch.equal(scaled.cpu(), wanted)
    assert torch.equal(scale_rows_op(values, rows, factors), wanted)


LOGITS = torch.randn(4, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 7, 0, 29])
CSR: dict[str, Any] = {
    "indptr": torch.tensor([0, 2, 22]),
    "tokens": torch.cat([torch.tensor([3, 9]), torch.arange(5, 25)]),
    "node": torch.tensor([0, 1, -1, -2]),
    "tau": torch.tensor(0.5, dtype=torch.float64),
}


def test_operations() -> None:
    """Schema, fake, autograd and torch.compile on CPU tensors."""
    leaf, rows = LOGITS.clone().requires_grad_(), None
    shared = (leaf, LABELS, rows, *CSR.values())
    torch.library.opcheck(label_log_probs_op, (*shared, 3))
    torch.library.opcheck(bear_loss_op, (*shared, None, 3, 0.5, 2.0, "regularized", "positive"))
    torch.library.opcheck(scale_rows_op, (LOGITS, torch.tensor([2, 0]), torch.randn(2, dtype=torch.float64)))

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return (bear_loss(logits, LABELS, beam_width=3, **CSR).losses * torch.arange(4)).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(leaf)
    assert torch.equal(compiled, loss(leaf))
    assert torch.equal(*(torch.autograd.grad(value, leaf)[0] for value in (compiled, loss(leaf))))


def test_gradcheck() -> None:
    """With nothing constant to the gradient in it: no regulariser."""
    leaf = LOGITS.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: bear_loss(x, LABELS, reg_weight=0.0, **CSR).losses, (leaf,))
    assert torch.autograd.gradcheck(lambda x: label_log_probs(x, LABELS, **CSR)[0], (leaf,))


def test_second_backward() -> None:
    """It computes the gradient again; where the logits gave their place away it raises."""
    leaf = LOGITS.clone().requires_grad_()
    losses = bear_loss(leaf, LABELS, **CSR).losses
    first, second = (torch.autograd.grad(losses.sum() * 2, leaf, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(leaf, LOGITS)
    scaled = leaf * 2
    losses = bear_loss(scaled, LABELS, inplace_backward=True, **CSR).losses
    (gradient,) = torch.autograd.grad(losses.sum(), scaled, retain_graph=True)
    assert gradient.data_ptr() == scaled.data_ptr()
    with pytest.raises(RuntimeError, match="has one backward"):
        torch.autograd.grad(losses.sum(), scaled)


def test_another_user_of_overwritten_logits_is_refused() -> None:
    leaf = LOGITS.clone().requires_grad_()
    scaled = leaf * 2
    square = scaled.square().sum()
    losses = bear_loss(scaled, LABELS, inplace_backward=True, **CSR).losses
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (losses.sum() + square).backward()


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"labels": LABELS[:3]}, r"labels has shape \(3,\), expected \[4\]"),
        ({"beam_width": 0}, "beam_width=0 is below 1"),
        ({"form": "other"}, "form='other'"),
        ({"weights": torch.ones(2)}, r"weights has shape \(2,\)"),
        ({"logits": LOGITS[0], "indptr": torch.tensor([0, 1, 2, 3, 4])}, r"expected \[rows, vocabulary\]"),
    ],
)
def test_what_does_not_fit_is_named(named: dict[str, Any], message: str) -> None:
    arguments = {"logits": LOGITS, "labels": LABELS} | named
    with pytest.raises(ValueError, match=message):
        bear_loss(arguments.pop("logits"), arguments.pop("labels"), **arguments)


# --- behind the losses of gentrie.training ---

TRIE = TokenTrie.from_sequences([[a, b] for a in range(2, 14) for b in range(a, 20, 3)], vocab_size=20)
TITLES = torch.tensor([[2, 5, -100], [7, 7, 3], [11, 17, 4], [-100, -100, -100]])
STATES = torch.cat([TRIE.token_states(torch.where(TITLES < 0, -1, TITLES))[:, :2], torch.full((4, 1), -2)], 1)


@pytest.mark.parametrize("normalizer", ["labels", "branching", "weights", 3.5, None])
@pytest.mark.parametrize("scope", ["trie", "vocab"])
@pytest.mark.parametrize(("form", "sign"), [("regularized", "positive"), ("reweighted", "positive")])
@pytest.mark.parametrize("inplace", [False, True])
def test_loss_of_training(
    monkeypatch: pytest.MonkeyPatch, normalizer: Any, scope: Any, form: Any, sign: Any, inplace: bool
) -> None:
    """The operations give what the losses give on the CPU by themselves, and the same statistics."""
    options: dict[str, Any] = {"scope": scope, "form": form, "sign": sign, "tau": torch.tensor(1.5), "beam_width": 2}
    options |= {"normalizer": normalizer, "token_weights": torch.rand(TITLES.shape), "return_stats": True}
    options |= {"trie": TRIE, "states": STATES}
    numbers = torch.randn(*TITLES.shape, 20, dtype=torch.float64)
    found = []
    for takes in (False, True):
        monkeypatch.setattr(_device, "takes", lambda tensor, answer=takes: answer)
        leaf = numbers.clone().requires_grad_()
        loss, stats = training.bear_loss(leaf * 1, TITLES, inplace_backward=inplace, **options)
        found.append((loss.detach(), *torch.autograd.grad(loss * 3, leaf), stats))
    for ours, theirs in zip(found[0][:2], found[1][:2], strict=True):
        torch.testing.assert_close(ours, theirs)
    for name in ("normalizer", "mean_log_prob", "violation_rate", "mean_weight"):
        torch.testing.assert_close(*(getattr(stats, name) for *_, stats in found))
    torch.testing.assert_close(*(stats.first_logits.total for *_, stats in found))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_other_losses_of_training(monkeypatch: pytest.MonkeyPatch, reduction: Any) -> None:
    numbers = torch.randn(*TITLES.shape, 20, dtype=torch.float64)
    named: dict[str, Any] = {"trie": TRIE, "states": STATES}
    for loss in (
        lambda logits: training.sft_loss(logits, TITLES, reduction=reduction),
        lambda logits: training.masked_softmax_loss(logits, TITLES, reduction=reduction, **named),
        lambda logits: training.masked_softmax_loss(logits, TITLES, reduction=reduction, focal_gamma=2.0, **named),
        lambda logits: training.token_logprobs(logits, TITLES, scope="vocab", **named),
    ):
        found = []
        for takes in (False, True):
            monkeypatch.setattr(_device, "takes", lambda tensor, answer=takes: answer)
            leaf = numbers.clone().requires_grad_()
            value = loss(leaf)
            found.append((value.detach(), *torch.autograd.grad(value.sum() * 2, leaf)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_on_a_gpu(dtype: torch.dtype, scope: Any) -> None:
    numbers = torch.randn(*TITLES.shape, 20).to(dtype)
    found = []
    for device in ("cpu", "cuda"):
        leaf = numbers.to(device, copy=True).requires_grad_()
        loss = training.bear_loss(leaf, TITLES.to(device), trie=TRIE, states=STATES, scope=scope)
        found.append((loss.detach().cpu(), *(gradient.cpu() for gradient in torch.autograd.grad(loss, leaf))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("inplace", [False, True])
def test_memory_on_a_gpu(inplace: bool) -> None:
    """One gradient beside the logits, or none; the logits stay what they were; nothing waits for the device."""
    logits = torch.randn(256, 131072, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, 131072, (256,), device="cuda")
    bear_loss(logits, labels).losses.sum().backward()  # compiles
    logits.grad = None
    before = logits.detach().clone()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    used = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        bear_loss(logits, labels, inplace_backward=inplace).losses.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    size = 0 if inplace else logits.numel() * logits.element_size()
    assert torch.cuda.max_memory_allocated() - used <= size + (1 << 20)
    assert torch.equal(logits, before) is not inplace


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    """A replay sees changed logits and labels, and gives equal bits for equal ones."""
    logits = torch.randn(16, 50000, device="cuda", dtype=torch.bfloat16)
    labels = torch.randint(0, 50000, (16,), device="cuda")
    arguments = (None, None, None, None, None, None, 10, 1.0, 1.0, "regularized", "positive")
    bear_loss_op(logits, labels, *arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = bear_loss_op(logits, labels, *arguments)
    for _ in range(3):
        logits.normal_()
        labels.random_(0, 50000)
        graph.replay()
        for ours, wanted in zip(captured, bear_loss_op(logits, labels, *arguments), strict=True):
            assert torch.equal(ours, wanted)
