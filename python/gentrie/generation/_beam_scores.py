"""Log-probabilities of children, picked from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gentrie.generation._beam import Beam, Float64Array, Int64Array
from gentrie.generation._beam_request import BeamRequest
from gentrie.trie import TokenTrie


@dataclass(frozen=True)
class AskedRow:
    """A row that the model has been asked for, the beams that wait for it and the children to score behind its last
    tokens."""

    request: int
    search: BeamRequest
    beams: list[Beam]
    handle: int
    places: list[Int64Array]


def log_probabilities(
    trie: TokenTrie, asked: Sequence[AskedRow], logits: torch.Tensor, normalizers: torch.Tensor | None
) -> list[list[Float64Array]]:
    """For each row and place the children's log-probabilities, fetched from the device at once; arguments and errors
    are those of :meth:`BeamStepper.step`."""
    vocabulary = trie.vocabulary
    count = sum(len(row.places) for row in asked)
    if logits.ndim != 2 or len(logits) != count:
        raise ValueError(f"logits has shape {tuple(logits.shape)}, expected [{count}, V]")
    narrow = logits.shape[1] == len(vocabulary) and len(vocabulary) < trie.vocab_size
    if not narrow and logits.shape[1] < trie.vocab_size:
        raise ValueError(
            f"logits has {logits.shape[1]} columns, expected the vocabulary's {trie.vocab_size} or the "
            f"catalog's {len(vocabulary)}"
        )
    if normalizers is not None and normalizers.shape != (count,):
        raise ValueError(f"normalizers has shape {tuple(normalizers.shape)}, expected [{count}]")
    if not count:
        return []
    over_all = [row.search.rules.scope == "vocab" for row in asked]
    if normalizers is None and any(over_all):
        if narrow:
            raise ValueError('normalizers is missing: scope="vocab" needs it beside the catalog\'s columns')
        normalizers = logits.float().logsumexp(-1)
    places = [tokens for row in asked for tokens in row.places]
    lengths = [len(tokens) for tokens in places]
    columns = np.concatenate(places)
    if narrow:
        columns = np.searchsorted(vocabulary, columns)
    at_row = torch.from_numpy(np.repeat(np.arange(count), lengths)).to(logits.device)
    chosen = logits[at_row, torch.from_numpy(columns).to(logits.device)].double()
    both = [chosen] if normalizers is None else [chosen, chosen - normalizers.double()[at_row]]
    at_places = np.split(torch.stack(both).cpu().numpy(), np.cumsum(lengths)[:-1], axis=1)
    values: list[list[Float64Array]] = []
    taken = 0
    for row, whole in zip(asked, over_all, strict=True):
        own = [raw[1] if whole else _among_themselves(raw[0]) for raw in at_places[taken : taken + len(row.places)]]
        taken += len(row.places)
        if any(np.isnan(scores).any() for scores in own):
            raise ValueError(
                f"logits of request {row.request} are not numbers, or none of its valid tokens is possible"
            )
        values.append(own)
    return values


def _among_themselves(logits: Float64Array) -> Float64Array:
    lowered: Float64Array = logits - logits.max()
    return np.asarray(lowered - np.log(np.exp(lowered).sum()))
