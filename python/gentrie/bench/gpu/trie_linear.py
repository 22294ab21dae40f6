"""BEAR's loss from hidden states over valid tokens alone, beside losses over the vocabulary that fuse the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

import torch

from gentrie.bench.gpu.catalogs import labels_of_titles, title_trie
from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.gpu.peers import Peers, ratio
from gentrie.bench.gpu.timing import ROUNDS, Method, compare, extra_peak_bytes
from gentrie.kernels import reference_losses
from gentrie.training import linear_bear_loss
from gentrie.trie import TokenTrie

LIGER = "LigerFusedLinearCrossEntropyLoss"
CUT = "cut_cross_entropy.linear_cross_entropy"
_CHECKED_ROWS = 8
_UNCOUNTED = "the peer is not measured, or not on CUDA, where alone memory is counted"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    tokens
        Labels, all of them tokens of titles.
    hidden_size, vocab_size
        Of the head; the default is Llama-3.2-3B's.
    catalog, items
        A catalog of ``gentrie.datasets`` whose titles are the labels, and how many of them; None: all.
    """

    tokens: int = 4096
    hidden_size: int = 3072
    vocab_size: int = 128_256
    catalog: str = "toys"
    items: int | None = None


@dataclass(frozen=True)
class _Problem:
    """Hidden states, head and labels on a device."""

    trie: TokenTrie
    hidden: torch.Tensor
    head: torch.Tensor
    labels: torch.Tensor
    states: torch.Tensor

    @classmethod
    def of(cls, sizes: Sizes, device: torch.device) -> _Problem:
        trie = title_trie(sizes.catalog, sizes.vocab_size, sizes.items)
        labels, states = labels_of_titles(trie, sizes.tokens)
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, std: float) -> torch.Tensor:
            return torch.empty(shape, dtype=torch.bfloat16, device=device).normal_(std=std, generator=generator)

        return cls(
            trie,
            normal(sizes.tokens, sizes.hidden_size, std=1.0).requires_grad_(),
            normal(sizes.vocab_size, sizes.hidden_size, std=sizes.hidden_size**-0.5),
            labels.to(device),
            states.to(device),
        )

    def gradients(self, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """By the hidden states, and by the head where it is trained."""
        wanted = [leaf for leaf in (self.hidden, self.head) if leaf.requires_grad]
        return torch.autograd.grad(loss, wanted)

    def ours(self) -> tuple[torch.Tensor, ...]:
        return self.gradients(linear_bear_loss(self.hidden, self.head, self.labels, trie=self.trie, states=self.states))

    def check(self) -> None:
        """Raises AssertionError where the first rows' losses or gradients differ from those over dense float32 rows."""
        hidden = self.hidden.detach()[:_CHECKED_ROWS].clone().requires_grad_()
        labels, states = self.labels[:_CHECKED_ROWS], self.states[:_CHECKED_ROWS]
        ours = linear_bear_loss(hidden, self.head.detach(), labels, trie=self.trie, states=states, reduction="sum")
        dense = hidden.detach().float().requires_grad_()
        tokens, indptr = self.trie.next_tokens_batch(states.cpu().numpy())
        losses = reference_losses.bear_loss(
            (dense @ self.head.detach().float().t()).cpu().double(),
            labels.cpu(),
            beam_width=10,
            reg_weight=1.0,
            reg_temperature=1.0,
            form="regularized",
            sign="positive",
            tau=1.0,
            indptr=torch.from_numpy(indptr),
            tokens=torch.from_numpy(tokens),
        )
        expected = torch.stack(losses).sum()
        torch.testing.assert_close(ours.detach().cpu().double(), expected.detach(), rtol=1e-3, atol=1e-3)
        found, wanted = torch.autograd.grad(ours, hidden)[0].float(), torch.autograd.grad(expected, dense)[0]
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-2 * float(wanted.abs().max()))


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Forward and backward in bfloat16, with a head that is frozen and one that is trained.

    Raises
    ------
    AssertionError
        A loss or a gradient is wrong.
    """
    where = torch.device(device)
    problem = _Problem.of(sizes, where)
    problem.check()
    figures = []
    for is_trained in (False, True):
        problem.head.requires_grad_(is_trained)
        figures += _beside_peers(problem, "head trained" if is_trained else "head frozen", where, rounds)
    return figures


def _beside_peers(problem: _Problem, case: str, device: torch.device, rounds: int) -> list[GpuFigure]:
    hidden, head, labels = problem.hidden, problem.head, problem.labels
    expected = torch.nn.functional.cross_entropy(
        (hidden.detach()[:_CHECKED_ROWS] @ head.detach().t()).float(), labels[:_CHECKED_ROWS]
    )

    def peer(loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Method:
        found = loss_of(hidden.detach()[:_CHECKED_ROWS], labels[:_CHECKED_ROWS])
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
        return lambda: problem.gradients(loss_of(hidden, labels))

    def liger() -> Method:
        fused = import_module("liger_kernel.transformers").LigerFusedLinearCrossEntropyLoss()
        return peer(lambda rows, targets: fused(head, rows, targets))

    def cut() -> Method:
        fused = import_module("cut_cross_entropy").linear_cross_entropy
        return peer(lambda rows, targets: fused(rows, head, targets))

    name = f"linear_bear_loss forward and backward, {len(labels)} labels, head {list(head.shape)}, {case}"
    peers = Peers(device)
    peers.add(f"{LIGER}, {case}", "ms", liger)
    peers.add(f"{CUT}, {case}", "ms", cut)
    taken = compare({name: problem.ours, **peers.methods}, device, rounds=rounds)
    # Gradients are returned by all; what a method takes besides is its own.
    returned = sum(leaf.nbytes for leaf in (hidden, head) if leaf.requires_grad)
    extra = {method: extra_peak_bytes(run, device) for method, run in {name: problem.ours, **peers.methods}.items()}
    figures = []
    for other, goal in ((f"{LIGER}, {case}", 20), (f"{CUT}, {case}", None)):
        figures.append(ratio(f"{name}: times as fast as {other}", taken, other, name, goal=goal, at_least=True))
        label, most = f"{name}: extra memory over {other}", goal and 1 / goal
        ours, theirs = extra.get(name), extra.get(other)
        if ours is None or theirs is None:
            figures.append(GpuFigure.missing(label, "times", _UNCOUNTED, goal=most))
            continue
        note = f"{ours:,} and {theirs:,} bytes, less the gradients returned, {returned:,}"
        share = (ours - returned) / max(theirs - returned, 1)
        figures.append(GpuFigure.exact(label, "times", share, goal=most, note=note))
    return [*figures, GpuFigure.of(name, "ms", taken[name], scale=1e3), *peers.figures(taken, "ms", 1e3)]
