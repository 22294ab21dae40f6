"""STATIC (arXiv 2602.22647, github.com/youtube/static-constraint-decoding), where it is importable, as a peer.

The step around its lookups is written from its description: log-softmax over the vocabulary, candidates of each beam,
the best of each prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True)
class StaticIndex:
    """What its builder made, on a device: dense tables over the first two levels, as it recommends.

    Attributes
    ----------
    packed, indptr
        Its transitions and where those of each state begin.
    max_branches
        Most children of a state, by depth.
    dense_mask, dense_states
        [V, V], by the first two tokens.
    """

    packed: torch.Tensor
    indptr: torch.Tensor
    max_branches: tuple[int, ...]
    dense_mask: torch.Tensor
    dense_states: torch.Tensor

    @classmethod
    def build(cls, ids: npt.NDArray[np.int32], num_codes: int, device: torch.device) -> StaticIndex:
        """Build it from ids [items, length].

        Raises
        ------
        ImportError
            Its checkout is not on the path.
        """
        builder = import_module("static_decoding.csr_utils").build_static_index
        rows = ids[np.lexsort(ids.T[::-1])]  # unsorted, it would lose items
        packed, indptr, branches, _, mask, states = builder(rows, num_codes)
        tables = (torch.from_numpy(table).to(device) for table in (packed, indptr, mask, states))
        packed, indptr, mask, states = tables
        return cls(packed, indptr, tuple(map(int, branches)), mask, states)

    def states_after(self, prefixes: list[list[int]]) -> torch.Tensor:
        """Its states [rows] after prefixes of one length, at least 1."""
        starts, pairs, dense = self.indptr.cpu(), self.packed.cpu(), self.dense_states.cpu()
        states = []
        for first, *rest in prefixes:
            state = first + 1
            if rest:
                state = int(dense[first, rest[0]])
            for token in rest[1:]:
                begin, end = int(starts[state]), int(starts[state + 1])
                at = begin + int((pairs[begin:end, 0] == token).nonzero())
                state = int(pairs[at, 1])
            states.append(state)
        return torch.tensor(states, device=self.packed.device)


class StaticStep(torch.nn.Module):
    """The same step as ours, after prefixes of one length.

    The tables are buffers, whose addresses stay: a CUDA graph then reads them where they are.

    Parameters
    ----------
    index
        Its index.
    depth
        Length of the prefixes, at least 1.
    num_beams
        Beams of a prompt.
    """

    packed: torch.Tensor
    indptr: torch.Tensor
    dense_mask: torch.Tensor
    dense_states: torch.Tensor

    def __init__(self, index: StaticIndex, depth: int, num_beams: int) -> None:
        super().__init__()
        for name in ("packed", "indptr", "dense_mask", "dense_states"):
            self.register_buffer(name, getattr(index, name))
        self._lookup = import_module("static_decoding.decoding_pt").generate_and_apply_logprobs_mask
        self._depth, self._num_beams = depth, num_beams
        self._limit = index.max_branches[depth]

    def forward(self, logits: torch.Tensor, states: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Best scores, tokens, states and parents [prompts, num_beams]."""
        log_probs = logits.log_softmax(-1)
        if self._depth == 1:  # the dense level
            masked = log_probs.masked_fill(~self.dense_mask[states - 1], -torch.inf)
            values, tokens = masked.topk(self._num_beams)
            after = self.dense_states[(states - 1)[:, None], tokens]
        else:
            values, tokens, after = self._lookup(
                log_probs, states, self.packed, self.indptr, self._limit, logits.shape[1], logits.device
            )
        prompts, count = len(logits) // self._num_beams, values.shape[1]
        best, at = (scores[:, None] + values).view(prompts, self._num_beams * count).topk(self._num_beams)
        flat = (tokens.reshape(prompts, -1).gather(1, at), after.reshape(prompts, -1).gather(1, at))
        return best, *flat, at // count
