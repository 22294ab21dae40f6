"""What a beam search on a device has chosen at each depth, written there and read by the host at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from gentrie.item_filter import ItemFilter
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FoundItems:
    """The complete sequences that a prompt found, best first.

    Attributes
    ----------
    sequences
        Token ids of each, end token included.
    scores
        float64 [found]: log-probability, summed in float32, over ``length ** length_penalty``.
    token_scores
        For each float64 [tokens], log-probabilities; 0 for forced tokens under ``scope="trie"``.
    item_ids
        For each int64 [n], the items that share the sequence, less those that the filter denies.
    """

    sequences: list[list[int]]
    scores: Float64Array
    token_scores: list[Float64Array]
    item_ids: list[Int64Array]


class BeamHistory:
    """The continuations that were kept at each depth, ``columns`` a prompt, and which of them lived on as beams.

    Which row is written next is counted on the device, so that one captured step serves every depth. Steps behind the
    last row are written to a spare one.

    Parameters
    ----------
    num_prompts, beam_width
        Prompts, and beams of each.
    columns
        Continuations kept at each depth: ``beam_width`` where all of them live on, in their order.
    max_length
        Depths.
    device
        Where it is.

    Attributes
    ----------
    depth
        int64 [1] on the device: rows written.
    """

    def __init__(
        self, num_prompts: int, beam_width: int, columns: int, max_length: int, device: torch.device | str
    ) -> None:
        shape = (max_length + 1, num_prompts, columns)
        self.depth = torch.zeros(1, dtype=torch.int64, device=device)
        self.max_length, self._columns = max_length, columns
        self._scores = torch.empty(shape, dtype=torch.float32, device=device)
        self._chosen = torch.empty(shape[0], 2, *shape[1:], dtype=torch.int64, device=device)
        self._ranks: torch.Tensor | None = None
        if columns != beam_width:
            self._ranks = torch.empty(*shape[:2], beam_width, dtype=torch.int64, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        parts = (self._scores, self._chosen, self._ranks)
        return sum(part.nbytes for part in parts if part is not None)

    def reset(self) -> None:
        """Begin again."""
        self.depth.zero_()

    def write(self, scores: torch.Tensor, chosen: torch.Tensor) -> None:
        """Continuations: scores [prompts, columns], and int64 [2, prompts, columns] their tokens and the beams that
        they continue."""
        self._scores.index_copy_(0, self.depth, scores[None])
        self._chosen.index_copy_(0, self.depth, chosen[None])

    def write_ranks(self, ranks: torch.Tensor) -> None:
        """int64 [prompts, beam_width], the continuation that became each beam, where not all of them did."""
        assert self._ranks is not None
        self._ranks.index_copy_(0, self.depth, ranks[None])

    def advance(self) -> None:
        """Go on to the next depth."""
        self.depth.add_(1).clamp_(max=self.max_length)

    def read(self) -> HostHistory:
        """All rows written so far. Waits for the device."""
        depth = int(self.depth)
        ranks = None if self._ranks is None else self._ranks[:depth].cpu().numpy()
        scores, chosen = (part[:depth].cpu().numpy() for part in (self._scores, self._chosen))
        return HostHistory(scores, chosen[:, 0], chosen[:, 1], ranks)


class HostHistory(NamedTuple):
    """A :class:`BeamHistory` on the host: float32 and int64 [depths, prompts, columns], ranks [.., beam_width]."""

    scores: npt.NDArray[np.float32]
    tokens: Int64Array
    parents: Int64Array
    ranks: Int64Array | None

    def found(
        self,
        prompt: int,
        ends: list[tuple[int, int]],
        trie: TokenTrie,
        item_filter: ItemFilter | None,
        length_penalty: float,
        limit: int | None,
    ) -> FoundItems:
        """The items that end with the continuations ``ends``, pairs of a depth, counted from 0, and a column."""
        depths, columns = np.array(ends, dtype=np.int64).reshape(-1, 2).T
        tokens, totals = self._paths(prompt, depths, columns)
        states = np.zeros(len(ends), dtype=np.int64)
        for at, chosen in enumerate(tokens.T):
            states = np.where(at <= depths, trie.advance_batch(states, chosen), states)
        scores = totals[np.arange(len(ends)), depths] / (depths + 1.0) ** length_penalty
        best = [at for at in np.argsort(-scores, kind="stable").tolist() if trie.is_leaf(int(states[at]))][:limit]
        owner, added, lengths = item_filter or trie, np.diff(totals, axis=1, prepend=0.0), (depths + 1).tolist()
        return FoundItems(
            sequences=[tokens[at, : lengths[at]].tolist() for at in best],
            scores=scores[best],
            token_scores=[added[at, : lengths[at]] for at in best],
            item_ids=[owner.items_below(int(states[at])) for at in best],
        )

    def num_beams(self) -> list[int]:
        """Beams of all prompts that each step left alive."""
        alive = self.scores != -np.inf if self.ranks is None else self.ranks >= 0
        return [int(count) for count in np.count_nonzero(alive, axis=(1, 2))]

    def _paths(self, prompt: int, depths: Int64Array, columns: Int64Array) -> tuple[Int64Array, Float64Array]:
        """Tokens from the root to each end, and the log-probability of the path that ends with each: [ends, deepest],
        with anything behind an end."""
        shape = (len(depths), int(depths.max(initial=-1)) + 1)
        tokens, totals, at_column = np.zeros(shape, dtype=np.int64), np.zeros(shape), columns
        for at in range(shape[1] - 1, -1, -1):
            inside = at <= depths
            own = np.where(inside, at_column, 0)
            tokens[:, at], totals[:, at] = self.tokens[at, prompt, own], self.scores[at, prompt, own]
            parents = self.parents[at, prompt, own]
            if self.ranks is not None and at:
                parents = self.ranks[at - 1, prompt, np.where(inside, parents, 0)]
            at_column = np.where(inside, parents, columns)
        return tokens, totals
