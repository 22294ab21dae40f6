"""Rules and histories for hypothesis, and the same on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from histories import Case, cases, tokens_met
from hypothesis import strategies as st

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceFilter, DeviceTrie, FilterBank, TrieBank
from gentrie.item_filter import filter_from


class Resident(NamedTuple):
    """Tries and filters in banks between empty rows; ``filter_rows[i]`` is what a row with trie i takes, -1: none."""

    tries: TrieBank
    filters: FilterBank
    trie_rows: list[int]
    filter_rows: list[int]

    @property
    def arguments(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.tries.descriptors, self.filters.descriptors


__all__ = ["Case", "cases", "tokens_met"]


def filter_of(case: Case) -> ItemFilter | None:
    given = case.arguments["item_filter"]
    return None if given is None else filter_from(case.trie, given)


def with_closed(draw: Any, trie: TokenTrie, item_filter: ItemFilter | None) -> ItemFilter | None:
    """The same, or less a few items: closed leaves beside a bitmap, or alone."""
    if not draw(st.booleans()):
        return item_filter
    items = trie.items_below(0)
    denied = draw(st.lists(st.sampled_from(sorted(set(items.tolist()))), max_size=5))
    return (item_filter or ItemFilter.all_items(trie)).deny(denied)


def make_resident(pairs: list[tuple[TokenTrie, ItemFilter | None]], device: str) -> Resident:
    tries, filters = TrieBank(device, capacity=2 * len(pairs) + 1), FilterBank(device, capacity=2 * len(pairs) + 1)
    trie_rows, filter_rows, spare = [], [], []
    for trie, item_filter in pairs:
        spare.append(tries.add(DeviceTrie(trie, device)))
        trie_rows.append(tries.add(DeviceTrie(trie, device)))
        filter_rows.append(-1 if item_filter is None else filters.add(DeviceFilter(item_filter, device)))
    for row in spare:
        tries.remove(row)
    return Resident(tries, filters, trie_rows, filter_rows)


def strided(draw: Any, values: torch.Tensor, poison: float) -> torch.Tensor:
    """The same values inside a larger tensor full of ``poison``, with strides that are drawn."""
    step = draw(st.sampled_from([1, 1, 2, 3]))
    rows, width = values.shape
    if draw(st.booleans()):
        whole = torch.full((rows, width * step + draw(st.integers(0, 3))), poison, dtype=values.dtype)
        part = whole[:, : width * step : step]
    else:
        part = torch.full((width * step + 1, rows), poison, dtype=values.dtype)[: width * step : step].T
    part.copy_(values)
    return part


def spoil(values: torch.Tensor, rng: np.random.Generator, share: float) -> None:
    """Put numbers that no model should give in the place of a share of these."""
    extremes = torch.tensor([-torch.inf] * 4 + [torch.inf, torch.nan, 1e38, -1e38, 7e6, -7e6]).to(values.dtype)
    where = torch.from_numpy(rng.random(values.shape) < share)
    kinds = torch.from_numpy(rng.integers(0, rng.choice([4, len(extremes)]), values.shape))
    values[where] = extremes[kinds][where]


def as_batch(rows: list[list[int]], pad: int, length: int) -> torch.Tensor:
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows], dtype=torch.int64).reshape(
        len(rows), length
    )


def states_of(trie: TokenTrie) -> list[int]:
    """Every place of a trie."""
    values, indptr, _, _ = trie.to_sequences()
    rows = [values[begin:end] for begin, end in pairwise(indptr)]
    return sorted({trie.walk(row[:length]) for row in rows for length in range(len(row) + 1)})


@contextmanager
def poisoned() -> Iterator[None]:
    """New tensors hold what no result may hold: an element that a kernel does not write shows."""
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> torch.Tensor:
        made = empty(*shape, **options)
        return made.fill_(float("nan") if made.is_floating_point() else -(2**30) - 7)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", filled)
        yield
