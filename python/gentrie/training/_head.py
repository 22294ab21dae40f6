"""The LM head of a model: weight, bias, scale and soft-cap, in blocks of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gentrie.training._scores import sum_dtype

BLOCK = 3 << 18
"""Weights in one block of the head: few enough for the caches."""


@dataclass(frozen=True)
class Head:
    """``logits = cap(scale * (hidden @ weight.T + bias))``, ``cap(x) = softcap * tanh(x / softcap)``.

    Attributes
    ----------
    weight
        [V, D].
    bias
        [V] or None.
    softcap
        None for none.
    scale
        1.0 for none.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    softcap: float | None
    scale: float

    def block(self, tokens: torch.Tensor | slice, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weights [n, D] and bias [n] of some tokens."""
        if isinstance(tokens, slice):
            weight, bias = self.weight[tokens], None if self.bias is None else self.bias[tokens]
        else:  # more than twice as fast on the CPU as weight[tokens]
            weight = self.weight.index_select(0, tokens)
            bias = None if self.bias is None else self.bias.index_select(0, tokens)
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    def logits(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Logits [rows, n] of a block."""
        raw = hidden @ weight.t() if bias is None else torch.addmm(bias, hidden, weight.t())
        if self.scale != 1.0:
            raw *= self.scale
        return raw if self.softcap is None else (raw / self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | float:
        """Derivative of the logits by ``hidden @ weight.T + bias``."""
        if self.softcap is None:
            return self.scale
        return (1 - (logits / self.softcap).square()) * self.scale

    @property
    def block_size(self) -> int:
        """Tokens whose weights make a block."""
        return max(16, BLOCK // max(1, self.weight.shape[1]))

    def blocks(self, start: int, stop: int) -> Iterator[slice]:
        """Ranges [start, stop) of so many rows that their weights make a block."""
        for first in range(start, stop, self.block_size):
            yield slice(first, min(first + self.block_size, stop))

    def dtype_with(self, hidden: torch.Tensor) -> torch.dtype:
        given = (hidden, self.weight) if self.bias is None else (hidden, self.weight, self.bias)
        return sum_dtype(*given)
