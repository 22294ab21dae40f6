"""Random draws that come out the same on every platform and Python version."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import Generic, TypeVar

T = TypeVar("T")

_WEIGHT_SCALE = 1 << 20


class Stream:
    """A seeded stream of draws.

    Only ``random.Random.random`` is used: it is the one method whose sequence Python promises to keep for a
    given integer seed. Every draw is one such double, scaled and truncated, which IEEE arithmetic fixes.

    Raises
    ------
    ValueError
        If the seed is negative, which would give the draws of the positive one.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise ValueError(f"seed must not be negative, got {seed}")
        self.uniform = random.Random(seed).random

    def below(self, limit: int) -> int:
        """Return an integer in ``[0, limit)``."""
        return int(self.uniform() * limit)

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.uniform() < probability

    def pick(self, values: Sequence[T]) -> T:
        """Return one of ``values``, all equally likely."""
        return values[int(self.uniform() * len(values))]

    def permutation(self, count: int) -> list[int]:
        """Return the numbers below ``count`` in a random order."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return order


class Weighted(Generic[T]):
    """Values drawn in proportion to whole-number weights."""

    def __init__(self, values: Sequence[T], weights: Sequence[int]) -> None:
        self._values = values
        self._cumulative = list(accumulate(weights))

    @classmethod
    def zipf(cls, values: Sequence[T], shift: int) -> Weighted[T]:
        """Weights proportional to ``1 / (rank + shift)``: the larger the shift, the flatter the head."""
        return cls(values, [_WEIGHT_SCALE // (rank + shift) for rank in range(1, len(values) + 1)])

    def pick(self, stream: Stream) -> T:
        """Draw one value."""
        return self._values[bisect(self._cumulative, stream.below(self._cumulative[-1]))]
