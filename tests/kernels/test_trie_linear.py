"""The logits of valid tokens and their gradients against one row after the other, as kernels and as plain torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from loss_rows import assert_within
from strategies import examples

from gentrie import TokenTrie, training
from gentrie.kernels import reference_losses
from gentrie.kernels.trie_linear import trie_linear, trie_linear_op
from gentrie.kernels.trie_linear_forward import launch_trie_linear
from gentrie.kernels.trie_linear_head import distinct_slots, head_gradient
from gentrie.kernels.trie_linear_hidden import launch_hidden_gradient
from gentrie.training import _device

PAIRS = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16),
]


@dataclass(frozen=True)
class LinearCase:
    """Hidden states, head and groups as :func:`trie_linear` names them, and a gradient [E] from behind."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    rows: torch.Tensor | None
    group_rows: torch.Tensor
    group_tokens: torch.Tensor
    tokens: torch.Tensor
    softcap: float | None
    scale: float
    gradient: torch.Tensor

    @property
    def leaves(self) -> list[torch.Tensor]:
        return [self.hidden, self.weight] + ([] if self.bias is None else [self.bias])

    def truth(self, *dtypes: torch.dtype) -> list[torch.Tensor]:
        """Logits, and the gradients of ``leaves``, by autograd through the reference in one dtype for each."""
        leaves = [leaf.to(dtype).requires_grad_() for leaf, dtype in zip(self.leaves, dtypes, strict=False)]
        common = torch.promote_types(leaves[0].dtype, leaves[1].dtype)
        hidden, weight, *bias = (leaf.to(common) for leaf in leaves)
        hidden = hidden if self.rows is None else hidden[self.rows]
        shared = (self.group_rows, self.group_tokens, self.tokens)
        values = reference_losses.trie_linear(
            hidden, weight, bias[0] if bias else None, self.softcap, self.scale, *shared
        )
        if not values.numel():
            return [values, *map(torch.zeros_like, self.leaves)]
        return [values.detach(), *torch.autograd.grad((values * self.gradient.to(common)).sum(), leaves)]

    @property
    def largest(self) -> list[float]:
        """The same of absolute values, uncapped: what the sums of each result are sums of."""
        names = ("hidden", "weight", "bias", "gradient")
        absolute = {name: number.abs() for name in names if (number := getattr(self, name)) is not None}
        found = replace(self, softcap=None, **absolute).truth(*(torch.float64,) * 3)
        return [float(values.max()) if values.numel() else 0.0 for values in found]


@st.composite
def linear_cases(draw: st.DrawFn) -> LinearCase:
    """Groups of 0 to 20 rows and 1 to 150 tokens, sizes on either side of a tile, strides, some rows left out."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    hidden_dtype, head_dtype = draw(st.sampled_from(PAIRS))
    size, vocabulary = draw(st.sampled_from([1, 24, 70])), 160
    sizes = draw(st.lists(st.tuples(st.sampled_from([0, 1, 3, 20]), st.sampled_from([1, 2, 60, 150])), max_size=3))
    group_rows = torch.tensor([0, *(rows for rows, _ in sizes)]).cumsum(0)
    group_tokens = torch.tensor([0, *(tokens for _, tokens in sizes)]).cumsum(0)
    chosen = [torch.randperm(vocabulary, generator=generator)[:count].sort().values for _, count in sizes]
    tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *chosen]).to(
        draw(st.sampled_from([torch.int32, torch.int64]))
    )
    count = int(group_rows[-1])
    rows = torch.randperm(count + 2, generator=generator)[:count] if draw(st.booleans()) else None
    step = draw(st.sampled_from([1, 2]))
    hidden = torch.randn(count + (0 if rows is None else 2), size * step, generator=generator)[:, ::step]
    weight = torch.randn(vocabulary, size, generator=generator)
    if draw(st.booleans()):
        weight = weight.t().contiguous().t()
    bias = torch.randn(vocabulary, generator=generator).to(head_dtype) if draw(st.booleans()) else None
    return LinearCase(
        hidden.to(hidden_dtype),
        weight.to(head_dtype),
        bias,
        rows,
        group_rows,
        group_tokens,
        tokens,
        draw(st.sampled_from([None, 2.0])),
        draw(st.sampled_from([1.0, 0.25])),
        torch.randn(int((group_rows.diff() * group_tokens.diff()).sum()), generator=generator),
    )


def tiles_of_a_tensor_core() -> LinearCase:
    """bfloat16 with more rows, tokens and features than one tile has."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(count, 200, generator=generator).bfloat16() for count in (150, 300))
    tokens = torch.cat([torch.randperm(300, generator=generator)[:count].sort().values for count in (170, 40)])
    group_rows, group_tokens = torch.tensor([0, 130, 150]), torch.tensor([0, 170, 210])
    gradient = torch.randn(130 * 170 + 20 * 40, generator=generator)
    return LinearCase(hidden, weight, None, None, group_rows, group_tokens, tokens, None, 1.0, gradient)


def one_row_of_one_feature() -> LinearCase:
    """A gradient of a bfloat16 hidden state whose size tells rounding to the nearest number from truncation."""
    tokens = torch.arange(2)
    weight = torch.tensor([[1.0], [2.0]]).bfloat16()
    gradient = torch.tensor([26.6186, 0.0])
    ends = torch.tensor([0, 1]), torch.tensor([0, 2])
    return LinearCase(torch.ones(1, 1).bfloat16(), weight, None, None, *ends, tokens, None, 1.0, gradient)


@examples(12)
@given(linear_cases())
@example(tiles_of_a_tensor_core())
@example(one_row_of_one_feature())
def test_kernels(device: str, case: LinearCase) -> None:
    truth = case.truth(*(torch.float64,) * 3)
    naive = case.truth(case.hidden.dtype, case.weight.dtype, case.weight.dtype)
    hidden, weight, gradient = (tensor.to(device) for tensor in (case.hidden, case.weight, case.gradient))
    bias = None if case.bias is None else case.bias.to(device)
    rows = None if case.rows is None else case.rows.to(device)
    shared = tuple(tensor.to(device) for tensor in (case.group_rows, case.group_tokens, case.tokens))
    values = torch.full((len(case.gradient),), torch.nan, device=device)
    launch_trie_linear(hidden, weight, bias, rows, *shared, case.softcap, case.scale, values)
    largest = case.largest
    assert_within(values, naive[0], truth[0], largest[0])
    by_hidden = torch.full(hidden.shape, torch.nan, dtype=hidden.dtype, device=device)
    launch_hidden_gradient(gradient, values, weight, rows, *shared, case.softcap, case.scale, by_hidden)
    meant = torch.arange(len(hidden)) if rows is None else rows.cpu()
    assert_within(by_hidden.cpu()[meant], naive[1][meant], truth[1][meant], largest[1])
    if rows is not None:
        left = torch.ones(len(hidden), dtype=torch.bool).index_fill(0, meant, False)
        assert by_hidden.cpu()[left].isnan().all()
    by_bias = torch.zeros(0 if bias is None else len(bias), device=device)
    by_weight = head_gradient(gradient, values, hidden, weight, rows, *shared, case.softcap, case.scale, by_bias)
    assert_within(by_weight, naive[2], truth[2], largest[2])
    if bias is not None:
        assert_within(by_bias, naive[3], truth[3], largest[3])


@examples(40)
@given(linear_cases())
def test_plain(case: LinearCase) -> None:
    truth = case.truth(*(torch.float64,) * 3)
    naive = case.truth(case.hidden.dtype, case.weight.dtype, case.weight.dtype)
    leaves = [leaf.detach().requires_grad_() for leaf in case.leaves]
    values = trie_linear(
        leaves[0],
        leaves[1],
        case.group_rows,
        case.group_tokens,
        case.tokens,
        len(case.gradient),
        bias=leaves[2] if case.bias is not None else None,
        rows=case.rows,
        softcap=case.softcap,
        scale=case.scale,
    )
    largest = case.largest
    assert_within(values, naive[0], truth[0], largest[0])
    found = torch.autograd.grad((values * case.gradient).sum(), leaves)
    for ours, theirs, exact, leaf, size in zip(found, naive[1:], truth[1:], leaves, largest[1:], strict=True):
        assert ours.dtype == leaf.dtype
        assert_within(ours, theirs, exact, size)


@pytest.mark.parametrize("tokens", [[], [4], [7, 7, 7], [5, 2, 9, 2, 5, 0]])
def test_distinct_slots(tokens: list[int]) -> None:
    given = torch.tensor(tokens, dtype=torch.int64)
    slots, distinct = distinct_slots(given)
    wanted, inverse = given.unique(return_inverse=True)
    assert torch.equal(slots, inverse)
    assert distinct.tolist() == wanted.tolist() + [-1] * (len(tokens) - len(wanted))


GROUPS = (torch.tensor([0, 2, 3]), torch.tensor([0, 3, 5]), torch.tensor([1, 4, 6, 0, 4]), 8)


def leaves_of(*needed: bool) -> list[torch.Tensor]:
    """Hidden states [4, 5], head [8, 5] and bias [8] in float64."""
    shapes = ((4, 5), (8, 5), (8,))
    return [torch.randn(*shape).double().requires_grad_(need) for shape, need in zip(shapes, needed, strict=True)]


def test_operation() -> None:
    """Schema, fake, autograd and torch.compile on CPU tensors."""
    hidden, weight, bias = leaves_of(True, True, True)
    rows = torch.tensor([3, 0, 1])
    torch.library.opcheck(trie_linear_op, (hidden, weight, bias, rows, *GROUPS, 2.0, 0.5))
    torch.library.opcheck(trie_linear_op, (hidden, weight.detach(), None, None, *GROUPS, None, 1.0))

    def total(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return trie_linear(hidden, weight, *GROUPS, rows=rows, softcap=2.0).square().sum()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")(hidden, weight)
    assert torch.equal(compiled, total(hidden, weight))
    both = [torch.autograd.grad(value, (hidden, weight)) for value in (compiled, total(hidden, weight))]
    assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))


@pytest.mark.parametrize(
    "needed", [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]
)
def test_gradcheck(needed: tuple[bool, bool, bool]) -> None:
    """Each gradient by itself too, as heads and bodies are frozen."""
    hidden, weight, bias = leaves_of(*needed)
    values = trie_linear(hidden, weight, *GROUPS, bias=bias, softcap=2.0, scale=0.5)
    wanted = [leaf for leaf, need in zip((hidden, weight, bias), needed, strict=True) if need]
    torch.autograd.grad(values.sum(), wanted)

    def of_leaves(*given: torch.Tensor) -> torch.Tensor:
        rest = iter(given)
        full = [next(rest) if need else leaf for leaf, need in zip((hidden, weight, bias), needed, strict=True)]
        return trie_linear(full[0], full[1], *GROUPS, bias=full[2], softcap=2.0, scale=0.5)

    assert torch.autograd.gradcheck(of_leaves, tuple(wanted))


def test_what_does_not_fit_is_named() -> None:
    hidden, weight, bias = leaves_of(False, False, False)
    with pytest.raises(ValueError, match=r"hidden has shape \(4, 5\) and weight \(8, 4\)"):
        trie_linear(hidden, weight[:, 1:], *GROUPS)
    with pytest.raises(ValueError, match=r"bias has shape \(7,\), expected \[8\]"):
        trie_linear(hidden, weight, *GROUPS, bias=bias[1:])
    with pytest.raises(ValueError, match=r"group_rows has shape \(2,\) and group_tokens \(3,\)"):
        trie_linear(hidden, weight, GROUPS[0][1:], *GROUPS[1:])


# --- behind the losses of gentrie.training ---

TRIE = TokenTrie.from_sequences([[a, b] for a in range(2, 14) for b in range(a, 20, 3)], vocab_size=20)
TITLES = torch.tensor([[2, 5, -100], [7, 7, 3], [11, 17, 4], [-100, -100, -100], [2, 8, 4]])
STATES = torch.cat([TRIE.token_states(torch.where(TITLES < 0, -1, TITLES))[:, :2], torch.full((5, 1), -2)], 1)


@pytest.mark.parametrize("states", ["with free text", "items only"])
@pytest.mark.parametrize("head", [{}, {"logit_softcap": 2.0, "logit_scale": 0.5}])
@pytest.mark.parametrize(
    "loss",
    [
        lambda *given, **named: training.linear_bear_loss(*given, beam_width=2, tau=1.5, **named),
        lambda *given, **named: training.linear_bear_loss(*given, form="reweighted", **named),
        lambda *given, **named: training.linear_masked_softmax_loss(*given, variant="scope_mask_1", **named),
        lambda *given, **named: training.linear_token_logprobs(*given, **named).sum(),
    ],
)
def test_losses_of_training(monkeypatch: pytest.MonkeyPatch, loss: Any, head: dict[str, Any], states: str) -> None:
    """The operations give what the losses give on the CPU by themselves."""
    numbers = [torch.randn(*shape, dtype=torch.float64) for shape in ((*TITLES.shape, 6), (20, 6), (20,))]
    labels = TITLES if states == "with free text" else torch.where(STATES == -2, -100, TITLES)
    found = []
    for takes in (False, True):
        monkeypatch.setattr(_device, "takes", lambda tensor, answer=takes: answer)
        leaves = [number.clone().requires_grad_() for number in numbers]
        value = loss(*leaves[:2], labels, trie=TRIE, states=STATES, lm_head_bias=leaves[2], **head)
        found.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    numbers = [torch.randn(*shape).to(dtype) for shape in ((*TITLES.shape, 300), (20, 300))]
    found = []
    for device in ("cpu", "cuda"):
        leaves = [number.to(device, copy=True).requires_grad_() for number in numbers]
        loss = training.linear_bear_loss(*leaves, TITLES.to(device), trie=TRIE, states=STATES)
        found.append((loss.detach().cpu(), *(gradient.cpu() for gradient in torch.autograd.grad(loss, leaves))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2 * torch.finfo(dtype).eps, atol=1e-4)


@pytest.mark.gpu
def test_nothing_waits_and_bits_are_equal() -> None:
    """Twice the same logits and gradient of the hidden states, in a CUDA graph too; a frozen head gets none."""
    hidden = torch.randn(64, 512, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(5000, 512, device="cuda", dtype=torch.bfloat16)
    group_rows, group_tokens = (torch.tensor(ends, device="cuda") for ends in ([0, 40, 64], [0, 3000, 3200]))
    tokens = torch.arange(3200, device="cuda")

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        values = trie_linear(hidden, weight, group_rows, group_tokens, tokens, 40 * 3000 + 24 * 200)
        return values.detach(), *torch.autograd.grad(values.square().sum(), hidden)

    first = run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    arguments = (hidden.detach(), weight, None, None, group_rows, group_tokens, tokens, 124800, None, 1.0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = trie_linear_op(*arguments)
    hidden.detach().normal_()
    graph.replay()
    assert torch.equal(captured, trie_linear_op(*arguments))
