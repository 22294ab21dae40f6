"""A catalog: items and their titles."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gentrie._catalog_files import read_titles
from gentrie.datasets import histories, tokenizer
from gentrie.tokenization import encode_titles, vocab_size_of

# Token ids kept free above those of a spread catalog, for the tokens that open and close an item.
_FREE_IDS = 2


class Catalog:
    """Items and their titles, in a fixed order.

    Parameters
    ----------
    name
        What tables call it.
    titles
        N non-empty strings. Titles may repeat.
    item_ids
        N different integers of 64 bits; by default the row numbers.

    Attributes
    ----------
    name
        As given.
    titles
        List of N strings.
    item_ids
        int64 [N].

    Raises
    ------
    TypeError
        If a title is not a string or the item ids are not integers.
    ValueError
        If there is no title, a title is empty, or the item ids are not N different ones; names the row.
    """

    def __init__(self, name: str, titles: Sequence[str], item_ids: npt.ArrayLike | None = None) -> None:
        if isinstance(titles, str):
            raise TypeError("titles must be a sequence of strings, got one string")
        self.name = name
        self.titles = list(titles)
        if not self.titles:
            raise ValueError("titles is empty: a catalog needs at least one title")
        for row, title in enumerate(self.titles):
            if not isinstance(title, str):
                raise TypeError(f"titles[{row}] must be a string, got {type(title).__name__}: {title!r}")
            if not title:
                raise ValueError(f"titles[{row}] is empty")
        self.item_ids = _checked_item_ids(item_ids, len(self.titles))

    def __len__(self) -> int:
        return len(self.titles)

    def __repr__(self) -> str:
        return f"Catalog({self.name!r}, {len(self)} items)"

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str], *, name: str | None = None) -> Catalog:
        """Read JSON lines with an ``item_id`` (integer) and a ``title`` each.

        Parameters
        ----------
        path
            File to read, UTF-8. Empty lines are skipped, other keys ignored.
        name
            Name of the catalog; by default that of the file's folder.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If a line (named by its number, from 1) is not such an object, an item id repeats, or there is no
            title.
        """
        path = Path(path)
        found = read_titles(path, file_format="jsonl", id_field="item_id")
        if isinstance(found.item_ids, list):
            raise ValueError(f"{path}, {found.places[0]}: item ids must be integers, got {found.item_ids[0]!r}")
        return cls(name or path.resolve().parent.name, found.titles, found.item_ids)

    def train_tokenizer(self, vocab_size: int = tokenizer.VOCAB_SIZE, *, progress: bool = False) -> Any:
        """Train a byte-level BPE tokenizer on the titles; see :func:`gentrie.datasets.tokenizer.train`."""
        return tokenizer.train(self.titles, vocab_size, progress=progress)

    def token_sequences(
        self, tokenizer: Any, *, vocab_size: int | None = None, progress: bool = False
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Encode the titles, and on request spread their token ids over a larger vocabulary.

        A tokenizer trained on a catalog has thousands of tokens; those of large models have 130,000, of which
        titles use some thousands all over the range. Spreading gives token id ``t`` the id
        ``t * (vocab_size - 2) // len(tokenizer)``: the order and the shape of the trie stay, and the two
        highest ids are left for the tokens that open and close an item.

        Parameters
        ----------
        tokenizer
            Any tokenizer that :meth:`gentrie.TokenTrie.from_titles` takes.
        vocab_size
            Vocabulary to spread over; by default ids stay as they are.
        progress
            Shows a progress bar.

        Returns
        -------
        values
            int32: the token ids of all titles, one title after the other, without end tokens.
        indptr
            int64 [N + 1]: where each title begins and ends in ``values``.

        Raises
        ------
        ValueError
            If ``vocab_size`` has no room for the tokenizer's ids and two more.
        """
        size = vocab_size_of(tokenizer)
        if vocab_size is not None and vocab_size < size + _FREE_IDS:
            raise ValueError(
                f"vocab_size must be at least {size + _FREE_IDS}, the tokenizer's {size} ids and "
                f"{_FREE_IDS} more, got {vocab_size}"
            )
        values, indptr = encode_titles(self.titles, tokenizer, progress=progress)
        if vocab_size is not None:
            values = (values.astype(np.int64) * (vocab_size - _FREE_IDS) // size).astype(np.int32)
        return values, indptr

    def histories(
        self, num_users: int, *, seed: int = 0, length: int = histories.LENGTH, test_share: float = 0.1
    ) -> histories.HistorySplit:
        """Draw what users bought, one item after the other; see :func:`gentrie.datasets.histories.draw`."""
        return histories.draw(self, num_users, seed=seed, length=length, test_share=test_share)


def _checked_item_ids(item_ids: npt.ArrayLike | None, count: int) -> npt.NDArray[np.int64]:
    if item_ids is None:
        return np.arange(count, dtype=np.int64)
    given = np.asarray(item_ids)
    if given.dtype.kind not in "iu":
        raise TypeError(f"item_ids must be integers, got dtype {given.dtype}")
    if given.shape != (count,):
        raise ValueError(f"item_ids must have shape ({count},), one for each title, got {given.shape}")
    ids = given.astype(np.int64)
    order = np.argsort(ids, kind="stable")
    repeated = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if repeated.size:
        first, second = order[repeated[0] : repeated[0] + 2]
        raise ValueError(f"item_ids[{second}] = {ids[second]} repeats item_ids[{first}]")
    return ids
