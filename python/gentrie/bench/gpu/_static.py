"""STATIC (arXiv 2602.22647, github.com/youtube/static-constraint-decoding), where it is importable, as a peer.

The step around its lookups is written from its description: log-softmax over the vocabulary, candidates of each beam,
the best of each prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gentrie.bench.gpu._steps import Step


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

    def step(self, step: Step, prefixes: list[list[int]]) -> tuple[Callable[..., Any], tuple[torch.Tensor, ...]]:
        """The same step after prefixes of one length: a function that gives best scores, tokens, states and parents of
        each prompt, and its arguments."""
        lookup = import_module("static_decoding.decoding_pt").generate_and_apply_logprobs_mask
        depth, num_beams = len(prefixes[0]), step.num_beams
        states, prompts = self.states_after(prefixes), len(prefixes) // num_beams
        num_codes, device = step.logits.shape[1], step.logits.device

        def run(logits: torch.Tensor, states: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, ...]:
            log_probs = logits.log_softmax(-1)
            if depth == 1:  # the dense level
                masked = log_probs.masked_fill(~self.dense_mask[states - 1], -torch.inf)
                values, tokens = masked.topk(num_beams)
                after = self.dense_states[(states - 1)[:, None], tokens]
            else:
                values, tokens, after = lookup(
                    log_probs, states, self.packed, self.indptr, self.max_branches[depth], num_codes, device
                )
            count = values.shape[1]
            best, at = (scores[:, None] + values).view(prompts, num_beams * count).topk(num_beams)
            flat = (tokens.reshape(prompts, -1).gather(1, at), after.reshape(prompts, -1).gather(1, at))
            return best, *flat, at // count

        return run, (step.logits, states, step.scores)
