"""STATIC (arXiv 2602.22647, github.com/youtube/static-constraint-decoding) where it is importable, as a peer."""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from _fresh import PeakMemory

BYTES_A_TOKEN = 55
"""Memory that its builder takes for each token of the input, about."""


def is_importable() -> bool:
    return importlib.util.find_spec("static_decoding") is not None


@dataclass(frozen=True)
class StaticIndex:
    """What its builder made of ids, sorted before; dense tables over the first two levels, as it recommends."""

    packed: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int32]
    max_branches: tuple[int, ...]
    start_mask: npt.NDArray[np.bool_]
    dense_mask: npt.NDArray[np.bool_]
    dense_states: npt.NDArray[np.int32]
    nbytes: int
    seconds: float
    peak_bytes: int

    @classmethod
    def build(cls, codes: npt.NDArray[np.int32], vocab_size: int) -> StaticIndex:
        from static_decoding.csr_utils import build_static_index

        rows = codes[np.lexsort(codes.T[::-1])]  # unsorted, it would lose items; not counted
        with PeakMemory() as peak:
            started = time.perf_counter()
            packed, indptr, branches, start_mask, mask, states = build_static_index(rows, vocab_size)
            seconds = time.perf_counter() - started
        nbytes = sum(array.nbytes for array in (packed, indptr, start_mask, mask, states))
        return cls(packed, indptr, branches, start_mask, mask, states, nbytes, seconds, peak.bytes)

    def step(self, prefixes: npt.NDArray[np.int32], scores: Any) -> Any:
        """A function that masks scores [rows, vocabulary] after prefixes [rows, 2]: its first sparse level."""
        import torch
        from static_decoding.decoding_pt import generate_and_apply_logprobs_mask

        packed, indptr = torch.from_numpy(self.packed), torch.from_numpy(self.indptr)
        states = torch.from_numpy(self.dense_states[prefixes[:, 0], prefixes[:, 1]])
        limit, vocab_size, cpu = self.max_branches[2], scores.shape[1], torch.device("cpu")
        return lambda: generate_and_apply_logprobs_mask(scores, states, packed, indptr, limit, vocab_size, cpu)
