"""Mean and variance of the valid logits where an item begins, for MSL's adaptive temperature."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gentrie.training._rows import FilteredTrie, Scope
from gentrie.training._scores import Source

_CHUNK = 1 << 20
"""Most logits gathered at a time."""


@dataclass(frozen=True)
class LogitMoments:
    """Sums over the labels at the first branching place of the catalog; float64 tensors of no dimensions.

    Attributes
    ----------
    num_tokens
        Tokens valid there.
    num_rows
        Labels there, as a tensor, so that ranks can add theirs.
    total, squares
        Sum of all valid logits at these labels, before the temperature, and of their squares.
    target_total
        Sum of the labels' own logits.
    """

    num_tokens: int
    num_rows: torch.Tensor
    total: torch.Tensor
    squares: torch.Tensor
    target_total: torch.Tensor

    def __add__(self, other: LogitMoments) -> LogitMoments:
        if self.num_tokens != other.num_tokens:
            raise ValueError(f"moments of {self.num_tokens} and of {other.num_tokens} tokens belong to two catalogs")
        return LogitMoments(
            self.num_tokens,
            self.num_rows + other.num_rows,
            self.total + other.total,
            self.squares + other.squares,
            self.target_total + other.target_total,
        )


def first_logits(source: Source, scope: Scope, catalog: FilteredTrie) -> LogitMoments:
    """Gather the logits of the labels at the first branching place, in float64."""
    state, tokens = catalog.first_choice()
    rows = scope.rows
    here = rows.node >= 0
    here[here] = rows.states[rows.node[here]] == state
    device = source.device
    columns = torch.from_numpy(tokens.astype("int64")).to(device)
    place = torch.from_numpy(rows.row[here]).to(device)
    label = torch.from_numpy(rows.place[here]).to(device)
    zero = torch.zeros((), dtype=torch.float64, device=device)
    moments = LogitMoments(len(tokens), zero, zero, zero, zero)
    step = max(1, _CHUNK // max(1, len(tokens)))
    for start in range(0, place.numel(), step):
        logits = source.gather(place[start : start + step], columns).double()
        moments += LogitMoments(
            len(tokens),
            zero + logits.shape[0],
            logits.sum(),
            logits.square().sum(),
            logits.gather(1, label[start : start + step, None]).sum(),
        )
    return moments
