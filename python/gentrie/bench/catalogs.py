"""Catalogs as token ids, for benchmarks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gentrie import datasets
from gentrie._optional import require
from gentrie.tokenization import vocab_size_of

_logger = logging.getLogger("gentrie")


@dataclass(frozen=True)
class TokenisedCatalog:
    """Titles as token ids.

    Attributes
    ----------
    name
        What tables call it.
    values
        int32, the tokens of all titles, end tokens left out.
    indptr
        int64 [items + 1], where each title begins in ``values``.
    vocab_size
        Width of the vocabulary that the tokens come from.
    """

    name: str
    values: npt.NDArray[np.int32]
    indptr: npt.NDArray[np.int64]
    vocab_size: int

    @property
    def num_items(self) -> int:
        return len(self.indptr) - 1

    def titles(self) -> list[list[int]]:
        """Return the tokens of each title."""
        tokens, bounds = self.values.tolist(), self.indptr.tolist()
        return [tokens[start:stop] for start, stop in pairwise(bounds)]


def tokenised_catalogs(
    names: Sequence[str], vocab_size: int, real: Path | None = None, *, progress: bool = False
) -> list[TokenisedCatalog]:
    """Make the synthetic catalogs named and read a real one.

    Parameters
    ----------
    names
        Names that ``gentrie.datasets.load`` knows. Each gets a tokenizer trained on it.
    vocab_size
        Vocabulary over which the token ids of synthetic catalogs are spread.
    real
        JSON lines with an ``item_id`` and a ``title`` each, encoded with mistral-common's tokenizer; None for
        none. Where the file is absent, a warning is logged and the catalog left out.
    progress
        Show progress bars.

    Raises
    ------
    ImportError
        tokenizers is missing, or mistral-common for a real catalog.
    ValueError
        ``vocab_size`` is too small, or the file of the real catalog is malformed.
    """
    found = []
    for name in names:
        catalog = datasets.load(name)
        tokenizer = catalog.train_tokenizer()
        values, indptr = catalog.token_sequences(tokenizer, vocab_size=vocab_size, progress=progress)
        found.append(TokenisedCatalog(name, values, indptr, vocab_size))
    if real is not None and real.is_file():
        catalog = datasets.Catalog.from_jsonl(real)
        mistral = require("mistral_common.tokens.tokenizers.mistral", extra="mistral")
        tekken = mistral.MistralTokenizer.v3(is_tekken=True)
        values, indptr = catalog.token_sequences(tekken, progress=progress)
        found.append(TokenisedCatalog(f"real {catalog.name}", values, indptr, vocab_size_of(tekken)))
    elif real is not None:
        _logger.warning("%s is absent: the real catalog is left out", real)
    return found
