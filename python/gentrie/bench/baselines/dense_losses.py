"""BEAR's loss as published (SIGIR 2026): a dense mask of the vocabulary for every label.

Written from its description and from what its code was seen to do, not copied. Logits outside the mask become -inf,
whole rows go through softmax, and whole rows are searched for one threshold, and again for the smallest probability.
Keep these costs: they are what is measured.
"""

from __future__ import annotations

import torch


def dense_bear_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    mask: torch.Tensor,
    *,
    tau: float = 1.0,
    beam_width: int = 10,
    reg_weight: float = 1.0,
    reg_temperature: float = 1.0,
    ignore_index: int = -100,
) -> torch.Tensor:
    """The reweighted form of BEAR.

    Parameters
    ----------
    logits
        [batch, 1 + length, V]: each position predicts the next label.
    labels
        int64 [batch, 1 + length].
    mask
        bool [batch, length, V], True where a token is a valid next label.
    tau, beam_width, reg_weight, reg_temperature, ignore_index
        As in :func:`gentrie.training.bear_loss`.
    """
    logits, labels = logits[:, :-1].contiguous(), labels[:, 1:]
    logits[~mask] = -torch.inf
    width = logits.shape[-1]
    counts = labels.reshape(-1) != ignore_index
    rows, valid = logits.view(-1, width)[counts], mask.view(-1, width)[counts]
    targets = labels.reshape(-1)[counts]

    probabilities = torch.softmax(rows / tau, dim=-1)
    chosen = probabilities.gather(1, targets[:, None]).squeeze(1).log()
    threshold = probabilities.topk(beam_width, dim=-1).values[:, -1].detach()
    smallest = probabilities.masked_fill(~valid, torch.inf).min(dim=-1).values
    threshold = torch.where(threshold == 0, smallest, threshold).detach().log()
    weights = 1 + reg_weight * torch.sigmoid((chosen - threshold) / reg_temperature).detach()
    branching = valid.sum(dim=-1) > 1
    weights[branching] = weights[branching] / (weights[branching].sum() + 1e-8)
    return -(weights * chosen).sum()
