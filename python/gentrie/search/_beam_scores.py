"""Log-probabilities of children, picked from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gentrie import _validate
from gentrie.search._beam import Beam, Float64Array, Int64Array
from gentrie.search._beam_request import BeamRequest
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
    trie: TokenTrie, asked: Sequence[AskedRow], logits: Any, normalizers: Any
) -> list[list[Float64Array]]:
    """For each row and place the children's log-probabilities, fetched from the device at once; arguments and errors
    are those of :meth:`BeamStepper.step`."""
    logits, normalizers = _real("logits", logits), None if normalizers is None else _real("normalizers", normalizers)
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
        normalizers = logits.float().logsumexp(-1) if _validate.is_tensor(logits) else _log_sum_exp(logits)
    places = [tokens for row in asked for tokens in row.places]
    lengths = [len(tokens) for tokens in places]
    columns = np.concatenate(places)
    if narrow:
        columns = np.searchsorted(vocabulary, columns)
    rows = np.repeat(np.arange(count), lengths)
    picked = _picked_on_device if _validate.is_tensor(logits) else _picked
    at_places = np.split(picked(logits, normalizers, rows, columns), np.cumsum(lengths)[:-1], axis=1)
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
    with np.errstate(invalid="ignore"):  # infinite ones give NaN, which is refused
        lowered: Float64Array = logits - logits.max()
    return np.asarray(lowered - np.log(np.exp(lowered).sum()))


def _real(name: str, values: Any) -> Any:
    """An array of real numbers, or the tensor as it is."""
    if _validate.is_tensor(values):
        return values
    array = np.asarray(values)
    if array.dtype.kind in "OSUMmbc":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array


def _picked(logits: npt.NDArray[Any], normalizers: Any, rows: Int64Array, columns: Int64Array) -> Float64Array:
    """Float64 [1 or 2, places]: chosen logits, and what they are over the whole vocabulary where that is known."""
    chosen = logits[rows, columns].astype(np.float64)
    if normalizers is None:
        return chosen[None]
    return np.stack([chosen, chosen - np.asarray(normalizers, dtype=np.float64)[rows]])


def _picked_on_device(logits: Any, normalizers: Any, rows: Int64Array, columns: Int64Array) -> Float64Array:
    """The same of a tensor, fetched at once."""
    import torch

    at_row = torch.from_numpy(rows).to(logits.device)
    chosen = logits[at_row, torch.from_numpy(columns).to(logits.device)].double()
    if normalizers is None:
        return np.asarray(chosen[None].cpu().numpy())
    whole = torch.as_tensor(normalizers, device=logits.device).double()[at_row]
    return np.asarray(torch.stack([chosen, chosen - whole]).cpu().numpy())


def _log_sum_exp(logits: npt.NDArray[Any]) -> Float64Array:
    """Float64 [N] over the columns."""
    raw = logits if logits.dtype == np.float64 else logits.astype(np.float32)
    highest = raw.max(-1, keepdims=True)
    lowered = raw - np.where(np.isfinite(highest), highest, 0)
    with np.errstate(divide="ignore"):
        sums = np.log(np.exp(lowered).sum(-1, dtype=np.float64))
    return np.asarray(sums + np.where(np.isfinite(highest), highest, 0)[:, 0])
