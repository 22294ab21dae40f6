"""A depth-first walk over prefixes, cut into pieces of one model call each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gentrie.evaluation.prefixes import Int64Array, Prefixes


@dataclass(frozen=True)
class Window:
    """Nodes fed in one call, and what is scored behind them.

    Attributes
    ----------
    nodes, parents
        int64 [W]: nodes in depth-first order, and the node before each.
    inside
        int64 [W], the row of the parent in this window, -1 where it is in an earlier one.
    tokens
        int64 [W].
    path
        int64, nodes of this and earlier windows that the next one hangs from.
    scored
        int64 [S], rows whose distribution is needed; -1 stands for the prompt itself.
    scored_children, owner, child_tokens
        int64 [E]: nodes behind them, which of the S each is behind, and its token.
    """

    nodes: Int64Array
    parents: Int64Array
    inside: Int64Array
    tokens: Int64Array
    path: Int64Array
    scored: Int64Array
    scored_children: Int64Array
    owner: Int64Array
    child_tokens: Int64Array


@dataclass(frozen=True)
class Walk:
    """Nodes to feed (depth first, without the root), and which of all need their distribution."""

    fed: Int64Array
    scored: npt.NDArray[np.bool_]

    @classmethod
    def over(cls, prefixes: Prefixes, wanted: npt.NDArray[np.bool_], scope: str) -> Walk:
        least = 2 if scope == "trie" else 1
        scored = wanted & (prefixes.num_children >= least)
        fed = prefixes.with_ancestors(scored)
        fed[0] = False
        return cls(np.flatnonzero(fed), scored)

    def window(self, prefixes: Prefixes, start: int, stop: int) -> Window:
        nodes = self.fed[start:stop]
        parents = prefixes.parent[nodes]
        place = np.minimum(np.searchsorted(nodes, parents), max(nodes.size - 1, 0))
        inside = np.where(nodes[place] == parents, place, -1) if nodes.size else parents
        path = []
        at = int(prefixes.parent[self.fed[stop]]) if stop < self.fed.size else 0
        while at > 0:
            path.append(at)
            at = int(prefixes.parent[at])
        scored = np.flatnonzero(self.scored[nodes])
        if start == 0 and self.scored[0]:
            scored = np.concatenate([[-1], scored])
        behind = np.where(scored < 0, 0, nodes[scored]) if nodes.size else np.zeros(scored.size, dtype=np.int64)
        order, indptr = prefixes.children
        counts = indptr[behind + 1] - indptr[behind]
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        children = order[np.repeat(indptr[behind], counts) + offsets]
        owner = np.repeat(np.arange(scored.size), counts)
        return Window(
            nodes,
            parents,
            inside,
            prefixes.token[nodes],
            np.array(path, dtype=np.int64),
            scored,
            children,
            owner,
            prefixes.token[children],
        )
