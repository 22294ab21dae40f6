"""Every prefix of a catalog as a node of the plain trie, in the order of a depth-first walk."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gentrie.item_filter import ItemFilter
    from gentrie.trie import TokenTrie

Int64Array = npt.NDArray[np.int64]


def allowed_sequences(trie: TokenTrie, item_filter: ItemFilter | None) -> npt.NDArray[np.bool_]:
    """Bool [num_sequences] in the order of ``trie.to_sequences()``: whether the filter leaves a sequence an item; None
    leaves all."""
    if item_filter is None:
        return np.ones(trie.num_sequences, dtype=bool)
    return item_filter._core.allowed_sequences()


@dataclass(frozen=True)
class Prefixes:
    """Node 0 is the empty prefix; a node comes before those below it.

    Attributes
    ----------
    token
        int64 [nodes], the last token; -1 for the root.
    parent
        int64 [nodes]; -1 for the root.
    depth
        int64 [nodes], number of tokens.
    leaf
        int64 [num_sequences], the node of each sequence of ``trie.to_sequences()``; -1 where a filter closes it.
    """

    token: Int64Array
    parent: Int64Array
    depth: Int64Array
    leaf: Int64Array

    @classmethod
    def of(cls, trie: TokenTrie, item_filter: ItemFilter | None = None) -> Prefixes:
        """All prefixes of the trie's sequences that the filter leaves."""
        values, indptr, _, _ = trie.to_sequences()
        allowed = allowed_sequences(trie, item_filter)
        lengths = np.diff(indptr)[allowed]
        column = np.arange(int(lengths.max(initial=0)))
        real = column < lengths[:, None]
        tokens = np.full(real.shape, -1, dtype=np.int64)
        tokens[real] = values[np.repeat(allowed, np.diff(indptr))]
        same = np.cumprod(tokens[1:] == tokens[:-1], axis=1, dtype=np.int64).astype(bool)
        new = real.copy()
        new[1:] &= ~same
        node = np.zeros((real.shape[0], real.shape[1] + 1), dtype=np.int64)
        node[:, 1:][new] = np.arange(1, np.count_nonzero(new) + 1)
        node = np.maximum.accumulate(node, axis=0)  # a prefix that is not new is the latest one of its length
        leaf = np.full(allowed.size, -1, dtype=np.int64)
        leaf[allowed] = node[np.arange(lengths.size), lengths]
        return cls(
            token=np.concatenate([[-1], tokens[new]]),
            parent=np.concatenate([[-1], node[:, :-1][new]]),
            depth=np.concatenate([[0], np.broadcast_to(column + 1, new.shape)[new]]),
            leaf=leaf,
        )

    @property
    def num_nodes(self) -> int:
        """Distinct prefixes, the empty one included."""
        return self.token.size

    @cached_property
    def children(self) -> tuple[Int64Array, Int64Array]:
        """``(nodes, indptr)``: node i's children are ``nodes[indptr[i]:indptr[i + 1]]``."""
        order = np.argsort(self.parent[1:], kind="stable") + 1
        counts = np.bincount(self.parent[1:], minlength=self.num_nodes)
        return order, np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def num_children(self) -> Int64Array:
        """int64 [nodes]."""
        return np.diff(self.children[1])

    def with_ancestors(self, chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Bool [nodes]: chosen, or above a chosen one."""
        marked = chosen.copy()
        for depth in range(int(self.depth.max()), 0, -1):
            at = np.flatnonzero(marked & (self.depth == depth))
            marked[self.parent[at]] = True
        return marked
