"""Items whose semantic ids are the same: refused, or told apart by one more code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie


def refuse_collisions(trie: TokenTrie) -> None:
    """Raise for the first sequence that stands for several items."""
    if trie.num_items == trie.num_sequences:
        return
    values, indptr, item_ids, _ = trie.collisions()
    raise ValueError(
        f"codes: {trie.num_items - trie.num_sequences} items have the codes of an earlier one, such as items "
        f"{item_ids[0]} and {item_ids[1]} with tokens {values[: indptr[1]].tolist()} "
        f"({indptr.size - 1} such sequences); on_collision='suffix' tells them apart"
    )


def suffixed(
    trie: TokenTrie, suffix_tokens: range | npt.NDArray[np.int64]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Rows [num_items, L + 1] of a trie of fixed-length rows, end tokens left out, and their items' numbers.

    The last token is ``suffix_tokens[r]`` for the item that is the r-th by id among those of its sequence.
    """
    values, _, item_ids, item_indptr = trie._core.to_sequences(False)
    counts = np.diff(item_indptr)
    widest = int(counts.argmax())
    if counts[widest] > len(suffix_tokens):
        begin = item_indptr[widest]
        named = trie._named(item_ids[begin : begin + 1])[0]
        raise ValueError(
            f"codes: {counts[widest]} items, such as item {named}, have the same codes, more "
            f"than the {len(suffix_tokens)} codes that a suffix may take"
        )
    rows = values.reshape(trie.num_sequences, -1)
    rows = np.repeat(rows if trie.end_token_id is None else rows[:, :-1], counts, axis=0)
    rank = np.arange(item_ids.size) - np.repeat(item_indptr[:-1], counts)
    tokens = np.asarray(suffix_tokens[: counts[widest]], dtype=np.int64)  # of a wide range only what is used
    return np.column_stack([rows.astype(np.int64), tokens[rank]]), item_ids
