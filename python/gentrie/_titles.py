"""Titles on their way into a trie: errors that name them, and titles whose tokens are the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie

_SHOWN = 200  # characters of a title in a message


@contextmanager
def errors_name_titles(titles: Sequence[str]) -> Iterator[None]:
    """Rewrite ``sequences[row]`` in errors of the builder to the row's title."""
    try:
        yield
    except ValueError as error:
        message = re.sub(r"sequences\[(\d+)\]", lambda found: named(titles, int(found[1])), str(error))
        raise ValueError(message) from None


def named(titles: Sequence[str], row: int) -> str:
    """A row and its title, for messages."""
    title = titles[row]
    return f"titles[{row}]={title[:_SHOWN]!r}{'...' if len(title) > _SHOWN else ''}"


def refuse_title_collisions(
    trie: TokenTrie, titles: Sequence[str], item_ids: npt.NDArray[Any] | None, unknown_token_id: int | None
) -> None:
    """Raise for the first sequence that stands for several items.

    Parameters
    ----------
    trie
        Built from the titles.
    titles
        One an item.
    item_ids
        [N] integers or strings, or None for the row numbers.
    unknown_token_id
        Token of characters that the tokenizer lacks, or None.
    """
    if trie.num_items == trie.num_sequences:
        return
    values, indptr, items, item_indptr = trie.collisions()
    ids = np.arange(len(titles)) if item_ids is None else item_ids
    shared = items[item_indptr[0] : item_indptr[1]]
    rows = [int(np.flatnonzero(ids == item)[0]) for item in shared[:2]]
    tokens = values[: indptr[1]].tolist()
    lacking = "; the tokenizer lacks characters of theirs" if unknown_token_id in tokens else ""
    raise ValueError(
        f"{trie.num_items - trie.num_sequences} items have the tokens of an earlier one, such as "
        f"{named(titles, rows[0])} and {named(titles, rows[1])}, tokens {tokens}{lacking} "
        f"({indptr.size - 1} such sequences); on_collision='keep' lets one sequence stand for all of them"
    )


def unknown_counts(trie: TokenTrie, unknown_token_id: int) -> tuple[int, int]:
    """Return how many items of a trie of titles hold the tokenizer's unknown token, and how many sequences do."""
    values, indptr, _, item_indptr = trie.to_sequences()
    places = np.flatnonzero(values == unknown_token_id)
    if trie.end_token_id == unknown_token_id:  # some models end texts with it
        places = np.setdiff1d(places, indptr[1:] - 1, assume_unique=True)
    sequences = np.unique(np.searchsorted(indptr, places, side="right") - 1)
    return int(np.diff(item_indptr)[sequences].sum()), sequences.size
