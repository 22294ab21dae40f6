"""What a catalog looks like as a trie: how much of it is forced, how widely it branches, what repeats.

Everything is derived from the sorted distinct sequences alone. Neighbours with a common prefix of length d
part at a node of depth d, so the lengths of the common prefixes of neighbours say where every branch is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gentrie import _validate

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie

__all__ = ["CatalogStatistics", "Level", "catalog_statistics", "common_prefix_lengths"]

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Level:
    """One position of fixed-length identifiers.

    Attributes
    ----------
    distinct_tokens
        Tokens that occur at this position.
    distinct_prefixes
        Different prefixes that end with this position.
    """

    distinct_tokens: int
    distinct_prefixes: int


@dataclass(frozen=True)
class CatalogStatistics:
    """Counts over the items, distinct sequences and nodes of a catalog; the end token is part of a sequence.

    Attributes
    ----------
    items, sequences
        Items (pairs of an item and its sequence) and distinct sequences.
    tokens_per_item
        Mean over items.
    branching_tokens_per_item
        Mean number of an item's tokens that were chosen among several.
    forced_share
        Share of the items' tokens that were the only valid one.
    mean_valid_tokens
        Mean over the items' tokens of how many tokens were valid there.
    distinct_tokens
        Token ids that occur.
    nodes, unary_nodes, branching_nodes
        Nodes with children of the uncompressed trie, its root included; those with one child; with more.
    max_depth, max_branching
        The longest sequence, and the most children of a node.
    shared_sequences, items_sharing, max_items_per_sequence
        Sequences that stand for several items, the items they stand for, and the most for one sequence.
    collision_rate
        1 - sequences / items: the share of items whose sequence another item has first.
    length_histogram
        Items by length of their sequence.
    branching_histogram
        Branching nodes by number of children.
    levels
        One entry for each position if all sequences have the same length (semantic ids), else empty.
    """

    items: int
    sequences: int
    tokens_per_item: float
    branching_tokens_per_item: float
    forced_share: float
    mean_valid_tokens: float
    distinct_tokens: int
    nodes: int
    unary_nodes: int
    branching_nodes: int
    max_depth: int
    max_branching: int
    shared_sequences: int
    items_sharing: int
    max_items_per_sequence: int
    collision_rate: float
    length_histogram: dict[int, int]
    branching_histogram: dict[int, int]
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, trie: TokenTrie, *, progress: bool = False) -> CatalogStatistics:
        """Compute the statistics of a trie, with progress bars on stderr where asked for."""
        _validate.trie("trie", trie)
        values, indptr, _, item_indptr = trie._core.to_sequences(False)
        return catalog_statistics(values, indptr, np.diff(item_indptr), progress=progress)


def catalog_statistics(
    values: npt.NDArray[np.integer], indptr: _Ints, items_per_sequence: _Ints, *, progress: bool = False
) -> CatalogStatistics:
    """Compute statistics from sorted distinct sequences, in time linear in their tokens.

    Parameters
    ----------
    values
        Token ids of S distinct, prefix-free sequences in lexicographic order, one after the other.
    indptr
        int64 [S + 1]: where each sequence begins and ends in ``values``.
    items_per_sequence
        int64 [S], at least 1: the items that each sequence stands for.
    progress
        Show progress bars on stderr.
    """
    lengths = np.diff(indptr)
    shared = common_prefix_lengths(values, indptr, progress=progress)
    chosen_steps = np.zeros(lengths.size + 1, dtype=np.int64)
    valid_over_branching = 0
    children_counts = []
    items_before = np.concatenate([[0], np.cumsum(items_per_sequence)])
    # A node of depth d is a run of neighbours that share at least d tokens; each neighbour in it that shares
    # exactly d begins another child.
    for depth in _watched(np.unique(shared), "counting branches", progress):
        ends_run = np.flatnonzero(np.concatenate([shared < depth, [True]]))
        parting = np.flatnonzero(shared == depth)
        run, extra_children = np.unique(np.searchsorted(ends_run, parting), return_counts=True)
        last = ends_run[run]
        first = np.where(run > 0, ends_run[run - 1] + 1, 0)
        children = extra_children + 1
        children_counts.append(children)
        items_below = items_before[last + 1] - items_before[first]
        valid_over_branching += int((children * items_below).sum())
        chosen_steps[first] += 1
        chosen_steps[last + 1] -= 1

    branching = np.concatenate(children_counts) if children_counts else np.zeros(0, dtype=np.int64)
    items = int(items_per_sequence.sum())
    tokens = int((lengths * items_per_sequence).sum())
    chosen = int((np.cumsum(chosen_steps[:-1]) * items_per_sequence).sum())
    nodes = 1 + int((lengths - 1).sum() - shared.sum())
    sharing = items_per_sequence[items_per_sequence > 1]
    return CatalogStatistics(
        items=items,
        sequences=lengths.size,
        tokens_per_item=tokens / items,
        branching_tokens_per_item=chosen / items,
        forced_share=1 - chosen / tokens,
        mean_valid_tokens=(tokens - chosen + valid_over_branching) / tokens,
        distinct_tokens=np.unique(values).size,
        nodes=nodes,
        unary_nodes=nodes - branching.size,
        branching_nodes=branching.size,
        max_depth=int(lengths.max()),
        max_branching=int(branching.max(initial=1)),
        shared_sequences=sharing.size,
        items_sharing=int(sharing.sum()),
        max_items_per_sequence=int(items_per_sequence.max()),
        collision_rate=1 - lengths.size / items,
        length_histogram=_histogram(lengths, items_per_sequence),
        branching_histogram=_histogram(branching, np.ones_like(branching)),
        levels=_levels(values, lengths, shared),
    )


def _watched(depths: Iterable[int], description: str, progress: bool) -> Iterable[int]:
    if not progress:
        return depths
    from tqdm import tqdm

    bar: Iterable[int] = tqdm(depths, desc=description, unit="depth")
    return bar


def common_prefix_lengths(values: npt.NDArray[np.integer], indptr: _Ints, *, progress: bool = False) -> _Ints:
    """Return int64 [S - 1]: how many first tokens each of S sequences has in common with the next one."""
    lengths = np.diff(indptr)
    shared = np.zeros(max(lengths.size - 1, 0), dtype=np.int64)
    pairs = np.arange(shared.size)
    limit = np.minimum(lengths[:-1], lengths[1:])
    for depth in _watched(range(int(limit.max(initial=0))), "comparing neighbours", progress):
        if not pairs.size:
            break
        pairs = pairs[limit[pairs] > depth]
        pairs = pairs[values[indptr[pairs] + depth] == values[indptr[pairs + 1] + depth]]
        shared[pairs] = depth + 1
    return shared


def _histogram(numbers: _Ints, weights: _Ints) -> dict[int, int]:
    if not numbers.size:
        return {}
    counts = np.bincount(numbers, weights=weights).astype(np.int64)
    return {int(number): int(counts[number]) for number in np.flatnonzero(counts)}


def _levels(values: npt.NDArray[np.integer], lengths: _Ints, shared: _Ints) -> tuple[Level, ...]:
    if lengths.min() != lengths.max():
        return ()
    by_position = values.reshape(lengths.size, lengths[0])
    return tuple(
        Level(np.unique(by_position[:, level]).size, 1 + int((shared <= level).sum()))
        for level in range(by_position.shape[1])
    )
