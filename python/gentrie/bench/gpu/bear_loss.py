"""BEAR's loss from logits, forward and backward, beside Liger's cross entropy of the same logits."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch

from gentrie import training
from gentrie.bench.gpu.catalogs import labels_of_titles, title_trie
from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.gpu.peers import Peers, ratio
from gentrie.bench.gpu.timing import ROUNDS, Method, compare, extra_peak_bytes
from gentrie.kernels import reference_losses
from gentrie.kernels.bear_loss import bear_loss

LIGER = "LigerCrossEntropyLoss"
WHOLE_CALL = "gentrie.training.bear_loss, scope='vocab'"
_CHECKED_ROWS = 8
_SLACK = 0.01  # vectors of one number a row


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    tokens, vocab_size
        Rows and columns of the logits.
    beam_width
        B.
    catalog, items
        A catalog of ``gentrie.datasets`` whose titles are the labels, and how many of them; None: all.
    """

    tokens: int = 4096
    vocab_size: int = 128_256
    beam_width: int = 10
    catalog: str = "toys"
    items: int | None = None


QUICK = Sizes(tokens=1024)


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Bfloat16 logits over the whole vocabulary; Liger's writes the gradient into them, ours leaves them.

    Raises
    ------
    AssertionError
        A loss or a gradient is wrong, or the logits are not what they were.
    """
    where = torch.device(device)
    trie = title_trie(sizes.catalog, sizes.vocab_size, sizes.items)
    labels, states = (part.to(where) for part in labels_of_titles(trie, sizes.tokens))
    generator = torch.Generator(where).manual_seed(0)
    shape = (sizes.tokens, sizes.vocab_size)
    logits = torch.empty(shape, dtype=torch.bfloat16, device=where).normal_(std=3, generator=generator).requires_grad_()
    weights = torch.full((sizes.tokens,), 1 / sizes.tokens, device=where)

    def ours(inplace: bool = False) -> torch.Tensor:
        found = bear_loss(logits, labels, beam_width=sizes.beam_width, weights=weights, inplace_backward=inplace)
        return torch.autograd.grad(found.losses.sum(), logits)[0]

    def whole_call() -> torch.Tensor:
        loss = training.bear_loss(logits, labels, trie=trie, states=states, beam_width=sizes.beam_width, scope="vocab")
        return torch.autograd.grad(loss, logits)[0]

    _check(logits, labels, ours(), sizes)
    torch.testing.assert_close(whole_call()[:_CHECKED_ROWS], ours()[:_CHECKED_ROWS])

    def liger() -> Method:
        loss_of = import_module("liger_kernel.transformers").LigerCrossEntropyLoss()
        theirs = logits.detach().clone().requires_grad_()
        expected = torch.nn.functional.cross_entropy(logits.detach()[:_CHECKED_ROWS].float(), labels[:_CHECKED_ROWS])
        found = loss_of(theirs.detach()[:_CHECKED_ROWS].clone(), labels[:_CHECKED_ROWS])
        torch.testing.assert_close(found.float(), expected, rtol=1e-2, atol=1e-2)
        return lambda: torch.autograd.grad(loss_of(theirs, labels), theirs)

    peers = Peers(where)
    peers.add(LIGER, "ms", liger)
    name = f"bear_loss forward and backward from [{sizes.tokens}, {sizes.vocab_size}] bfloat16 logits"
    taken = compare({name: ours, WHOLE_CALL: whole_call, **peers.methods}, where, rounds=rounds)
    checks = "with the checks of labels and states on the host"
    figures = [
        ratio(f"{name} over {LIGER}", taken, name, LIGER, goal=1.1),
        ratio(f"{WHOLE_CALL}, over {LIGER}", taken, WHOLE_CALL, LIGER, note=checks),
    ]
    figures += [GpuFigure.of(each, "ms", taken[each], scale=1e3) for each in (name, WHOLE_CALL)]
    figures += peers.figures(taken, "ms", 1e3)
    for label, goal, extra in (
        (f"{name}: extra memory", 1, extra_peak_bytes(ours, where)),
        (f"{name}, inplace_backward: extra memory", 0, extra_peak_bytes(lambda: ours(inplace=True), where)),
    ):
        if extra is None:
            figures.append(GpuFigure.missing(label, "times the logits", "is counted on CUDA alone"))
        else:
            note = f"{extra:,} bytes; the goal leaves a hundredth for numbers of each row"
            size = extra / logits.nbytes
            figures.append(GpuFigure.exact(label, "times the logits", size, goal=goal + _SLACK, note=note))
    return figures


def _check(logits: torch.Tensor, labels: torch.Tensor, gradient: torch.Tensor, sizes: Sizes) -> None:
    """The first rows' gradient of the mean, against float64; and the logits, against the way they were made."""
    rows = logits.detach()[:_CHECKED_ROWS].cpu().double().requires_grad_()
    losses = reference_losses.bear_loss(
        rows,
        labels[:_CHECKED_ROWS].cpu(),
        beam_width=sizes.beam_width,
        reg_weight=1.0,
        reg_temperature=1.0,
        form="regularized",
        sign="positive",
        tau=1.0,
    )
    (expected,) = torch.autograd.grad(torch.stack(losses).sum() / sizes.tokens, rows)
    found = gradient[:_CHECKED_ROWS].cpu().double()
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2 / sizes.tokens)
    generator = torch.Generator(logits.device).manual_seed(0)
    assert torch.equal(logits.detach(), torch.empty_like(logits.detach()).normal_(std=3, generator=generator)), (
        "the logits are not what they were"
    )
