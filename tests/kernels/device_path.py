"""The losses as they run on CUDA tensors, with the kernels in Triton's interpreter; run by a test in its own process.

Tensors on the CPU say that they are on CUDA, and the operations' CPU implementations are those for CUDA: what these
decide, allocate and launch is what runs on a GPU. Prints how often each kernel was launched.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import sys
from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch

from gentrie import TokenTrie, training
from gentrie.kernels import (
    bear_loss,
    bear_loss_rows,
    label_nodes,
    log_prob_gradient,
    scale_rows,
    topb_threshold,
    trie_linear,
    trie_linear_forward,
    trie_linear_head,
    trie_linear_hidden,
)
from gentrie.training import _device

TRIE = TokenTrie.from_sequences([[a, b] for a in range(2, 14) for b in range(a, 20, 3)], vocab_size=20)
TITLES = torch.tensor([[2, 5, -100], [7, 7, 3], [11, 17, 4], [-100, -100, -100], [2, 8, 4]])
STATES = torch.cat([TRIE.token_states(torch.where(TITLES < 0, -1, TITLES))[:, :2], torch.full((5, 1), -2)], 1)
OPTIONS: list[dict[str, Any]] = [
    {},
    {"scope": "vocab", "beam_width": 2},
    {"form": "reweighted"},
    {"sign": "negative", "normalizer": 3.0, "tau": 1.5},
    {"reduction": "none"},
]
MODULES = (
    bear_loss,
    bear_loss_rows,
    label_nodes,
    log_prob_gradient,
    scale_rows,
    topb_threshold,
    trie_linear,
    trie_linear_forward,
    trie_linear_head,
    trie_linear_hidden,
)


def losses_and_gradients() -> list[torch.Tensor]:
    torch.manual_seed(0)
    found = []
    for options in OPTIONS:
        named = {"trie": TRIE, "states": STATES, **options}
        logits = torch.randn(*TITLES.shape, 20, requires_grad=True)
        loss = training.bear_loss(logits, TITLES, **named).sum()
        found += [loss.detach(), *torch.autograd.grad(loss * 2, logits)]
        leaves = [torch.randn(*shape, requires_grad=True) for shape in ((*TITLES.shape, 6), (20, 6), (20,))]
        head = {"lm_head_bias": leaves[2], "logit_softcap": 3.0}
        loss = training.linear_bear_loss(*leaves[:2], TITLES, **head, **named).sum()
        found += [loss.detach(), *torch.autograd.grad(loss * 2, leaves)]
    return found


def counted(launch: Any, name: str, launches: Counter[str]) -> Any:
    def count(*arguments: Any) -> Any:
        launches[name] += 1
        return launch(*arguments)

    return count


def pretend_cuda() -> Counter[str]:
    """From here on all tensors are taken for CUDA tensors; counts launches."""
    launches: Counter[str] = Counter()
    for module in MODULES:
        module.on_device = lambda tensor: nullcontext()
        module.usable = lambda: True
        for name in [name for name in vars(module) if name.startswith("launch_")]:
            setattr(module, name, counted(getattr(module, name), name, launches))
    topb_threshold.topb_threshold_op.register_kernel("cpu")(topb_threshold._topb_threshold_cuda)
    log_prob_gradient.log_prob_gradient_op.register_kernel("cpu")(log_prob_gradient._cuda_gradient)
    label_nodes.label_nodes.register_kernel("cpu")(label_nodes.launch_label_nodes)
    _device.takes = lambda tensor: True
    torch.Tensor.is_cuda = property(lambda tensor: True)
    return launches


if __name__ == "__main__":
    expected = losses_and_gradients()
    launches = pretend_cuda()
    for ours, wanted in zip(losses_and_gradients(), expected, strict=True):
        torch.testing.assert_close(ours, wanted)
    sys.stdout.write(" ".join(sorted(launches)))
