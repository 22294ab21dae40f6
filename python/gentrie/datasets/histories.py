"""Synthetic users: what each bought, oldest first, and what came next."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from gentrie.datasets._random import Stream, Weighted

if TYPE_CHECKING:
    from gentrie.datasets.catalog import Catalog

LENGTH = 10

# What a user does next. The rest of the time they buy something that many buy.
_FOLLOW = 0.70
_SWITCH = 0.20
_INTERESTS = 3
_POPULARITY_SHIFT = 20


class Histories(NamedTuple):
    """Users, what each bought and what each bought next.

    Attributes
    ----------
    items
        int64 [users, length], item ids, oldest first; no item twice in a row of the array.
    targets
        int64 [users], the item id bought next, which is not in the user's row of ``items``.
    """

    items: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]


class HistorySplit(NamedTuple):
    """Histories of different users, to train on and to test with."""

    train: Histories
    test: Histories


def draw(
    catalog: Catalog, num_users: int, *, seed: int = 0, length: int = LENGTH, test_share: float = 0.1
) -> HistorySplit:
    """Draw users whose next item can be foretold better than by popularity.

    Items whose titles begin with the same word form a group (a brand, a series), in the order of their
    titles, so that sequels, seasons and variants follow each other. A user has three groups of interest,
    large groups more often than small ones. With probability 0.7 the next item is the next one of the group
    in that order, with 0.2 the user turns to one of their groups of interest, and otherwise buys one of the
    items that are popular with all. An item bought before is passed over for the next one of its group.

    The same arguments give the same histories on every platform and Python version.

    Parameters
    ----------
    catalog
        Catalog with more than ``length`` items.
    num_users
        Number of users, at least 2.
    seed
        Seed, not negative.
    length
        Items in a history; the target comes on top.
    test_share
        Share of the users, between 0 and 1, that are held out. At least one user is on either side.

    Returns
    -------
    HistorySplit
        ``train`` and ``test``.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """
    if num_users < 2:
        raise ValueError(f"num_users must be at least 2, got {num_users}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    if len(catalog) <= length:
        raise ValueError(f"length must be below the number of items, {len(catalog)}, to leave a target, got {length}")
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must be between 0 and 1, got {test_share}")
    shop = _Shop(catalog.titles, Stream(seed))
    rows = np.array([shop.visit(length + 1) for _ in range(num_users)], dtype=np.int64)
    ids = catalog.item_ids[rows]
    held_out = min(max(round(num_users * test_share), 1), num_users - 1)
    return HistorySplit(_split(ids[held_out:]), _split(ids[:held_out]))


def _split(ids: npt.NDArray[np.int64]) -> Histories:
    return Histories(ids[:, :-1], ids[:, -1])


class _Shop:
    """Draws what one user after the other buys, as rows of the catalog."""

    def __init__(self, titles: list[str], stream: Stream) -> None:
        self._stream = stream
        by_title = sorted(range(len(titles)), key=titles.__getitem__)
        self._groups = [list(group) for _, group in groupby(by_title, key=lambda row: titles[row].split(" ")[0])]
        self._place = [(0, 0)] * len(titles)
        for number, group in enumerate(self._groups):
            for position, row in enumerate(group):
                self._place[row] = number, position
        self._interests = Weighted(range(len(self._groups)), [len(group) for group in self._groups])
        self._popular = Weighted.zipf(stream.permutation(len(titles)), _POPULARITY_SHIFT)

    def visit(self, count: int) -> list[int]:
        """Draw ``count`` different rows, oldest first."""
        stream = self._stream
        interests = [self._interests.pick(stream) for _ in range(_INTERESTS)]
        bought: dict[int, None] = {}
        row = stream.pick(self._groups[interests[0]])
        while True:
            bought[row] = None
            if len(bought) == count:
                return list(bought)
            row = self._next(row, interests, bought)

    def _next(self, row: int, interests: list[int], bought: dict[int, None]) -> int:
        stream = self._stream
        kind = stream.uniform()
        if kind < _FOLLOW:
            number, position = self._place[row]
            position += 1
        elif kind < _FOLLOW + _SWITCH:
            number = stream.pick(interests)
            position = stream.below(len(self._groups[number]))
        else:
            number, position = self._place[self._popular.pick(stream)]
        return self._unbought(number, position, bought)

    def _unbought(self, number: int, position: int, bought: dict[int, None]) -> int:
        """The first row not bought yet, from a position on, round its group, then in the groups after it."""
        while True:
            group = self._groups[number]
            for offset in range(len(group)):
                row = group[(position + offset) % len(group)]
                if row not in bought:
                    return row
            number, position = (number + 1) % len(self._groups), 0
