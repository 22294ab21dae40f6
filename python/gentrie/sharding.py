"""A catalog in parts by first token, each built and served on its own; ``docs/howto/sharding.md`` is the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate


def first_token_ranges(first_tokens: Sequence[int] | npt.NDArray[Any], num_shards: int) -> npt.NDArray[np.int64]:
    """Ranges of first tokens that split a catalog into parts of about the same number of sequences.

    Whatever begins with the same token stays together, so that a part is a trie of its own below the root and every
    sequence lies in exactly one.

    Parameters
    ----------
    first_tokens
        The first token of each sequence [N], or of a fair sample.
    num_shards
        At most the number of distinct first tokens.

    Returns
    -------
    int64 [num_shards + 1], ascending from 0: shard i holds the first tokens in ``[ranges[i], ranges[i + 1])``, the last
    one also whatever comes behind.

    Raises
    ------
    ValueError, TypeError
        For too few distinct first tokens, negative ones, and other dtypes or shapes.
    """
    tokens, counts = np.unique(_validate.token_row("first_tokens", first_tokens), return_counts=True)
    if tokens.size and tokens[0] < 0:
        raise ValueError(f"first_tokens holds {tokens[0]}, expected token ids")
    shards = _validate.integer("num_shards", num_shards, 1, 2**31 - 1)
    if shards > tokens.size:
        raise ValueError(f"num_shards={shards}, but first_tokens holds only {tokens.size} distinct tokens")
    before = np.concatenate([[0], np.cumsum(counts)])  # sequences before each distinct token
    targets = before[-1] * np.arange(1, shards) / shards
    cuts = np.searchsorted((before[1:] + before[:-1]) / 2, targets)  # where the sum comes nearest
    steps = np.arange(1, shards)
    cuts = np.minimum(np.maximum.accumulate(np.maximum(cuts, steps) - steps) + steps, tokens.size - shards + steps)
    ranges: npt.NDArray[np.int64] = np.concatenate([[0], tokens[cuts], [tokens[-1] + 1]]).astype(np.int64)
    return ranges


def shard_of(first_tokens: Sequence[int] | npt.NDArray[Any], ranges: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Which shard holds the sequences that begin with each of ``first_tokens`` [N]; int64 [N]."""
    tokens, limits = _validate.token_row("first_tokens", first_tokens), _validate.token_row("ranges", ranges)
    if limits.size < 2 or (np.diff(limits) <= 0).any():
        raise ValueError(f"ranges={limits.tolist()} is not ascending")
    return np.searchsorted(limits[1:-1], tokens, side="right").astype(np.int64)


def merge_top(
    results: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    count: int,
    *,
    offsets: Sequence[float] | npt.NDArray[Any] | None = None,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[Any], npt.NDArray[np.int64]]:
    """The best of what several shards found.

    Exact if each shard's results hold its own best ``count`` (or all it has), and scores mean the same in all of them.
    They do where log-probabilities are taken over the vocabulary. Taken over the valid tokens, they differ in the first
    step, whose valid tokens each shard has only some of: give ``offsets``.

    Parameters
    ----------
    results
        ``(scores, items)`` of each shard: float [n] and whatever names its findings [n], such as item ids.
    count
        How many to return at most.
    offsets
        Added to the scores of each shard: the log of its share of the first step's probability,
        ``logsumexp(logits of its first tokens) - logsumexp(logits of all first tokens)``.

    Returns
    -------
    ``(scores, items, shards)``, best first, equal scores in the order of the shards.

    Raises
    ------
    ValueError
        For results whose lengths differ, and offsets that are not one a shard.
    """
    limit = _validate.integer("count", count, 1, 2**31 - 1)
    added = np.zeros(len(results)) if offsets is None else np.asarray(offsets, dtype=np.float64)
    if added.shape != (len(results),):
        raise ValueError(f"offsets has shape {added.shape}, expected one for each of {len(results)} shards")
    for shard, (scores, items) in enumerate(results):
        if len(scores) != len(items):
            raise ValueError(f"results[{shard}] has {len(scores)} scores for {len(items)} items")
    shards = np.repeat(np.arange(len(results)), [len(scores) for scores, _ in results])
    if shards.size == 0:
        return np.empty(0), np.empty(0, dtype=np.int64), shards
    every = np.concatenate([np.asarray(scores, dtype=np.float64) for scores, _ in results]) + added[shards]
    best = np.argsort(-every, kind="stable")[:limit]
    return every[best], np.concatenate([items for _, items in results])[best], shards[best]
