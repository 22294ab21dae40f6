"""The three synthetic catalogs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from gentrie.datasets._games import Games
from gentrie.datasets._movies import Movies
from gentrie.datasets._random import Stream
from gentrie.datasets._toys import Toys
from gentrie.datasets.catalog import Catalog

# Share of items that list an earlier title again, as stores do (0.5% of the Amazon Toys titles).
_DUPLICATE_SHARE = 1 / 200


class _Titles(Protocol):
    def title(self) -> str: ...


class _Recipe(NamedTuple):
    titles: Callable[[Stream], _Titles]
    num_items: int


_RECIPES = {
    "steam": _Recipe(Games, 11_726),
    "movies": _Recipe(Movies, 34_452),
    "toys": _Recipe(Toys, 49_985),
}

NAMES: tuple[str, ...] = tuple(_RECIPES)
"""Names that :func:`load` knows."""


def load(name: str, *, num_items: int | None = None, seed: int = 0) -> Catalog:
    """Make one of the synthetic catalogs.

    They are shaped like those of RecLM-cgen's Table A2: Steam (11,726 items of 6.0 tokens), Movies (34,452
    of 10.1) and Toys (49,985 of 16.3). Tokens are those of the catalog's own tokenizer
    (:meth:`Catalog.train_tokenizer` with its defaults), and the end token is counted, since it is generated
    under the constraint too. The share of forced tokens and the branching are those of real titles of these
    lengths; ``benchmarks/catalog_shapes.py`` measures them side by side. Half a percent of the titles are
    listed twice, and some are prefixes of others.

    The same name and seed give the same titles on every platform and Python version, and fewer items are the
    first ones of the whole catalog. Fifty thousand titles take about half a second.

    Parameters
    ----------
    name
        One of :data:`NAMES`.
    num_items
        Number of items, at most and by default the whole catalog.
    seed
        Seed of the titles, not negative. The documented shapes are those of seed 0; others are close.

    Returns
    -------
    Catalog
        Item ids are the row numbers.

    Raises
    ------
    ValueError
        If the name is unknown, the number of items is not in the catalog's range, or the seed is negative.
    """
    if name not in _RECIPES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    recipe = _RECIPES[name]
    count = recipe.num_items if num_items is None else num_items
    if not 1 <= count <= recipe.num_items:
        raise ValueError(f"num_items must be in [1, {recipe.num_items}] for {name!r}, got {num_items}")
    stream = Stream(seed)
    return Catalog(name, _draw(recipe.titles(stream), count, stream))


def _draw(source: _Titles, count: int, stream: Stream) -> list[str]:
    titles: list[str] = []
    seen: set[str] = set()
    while len(titles) < count:
        if titles and stream.chance(_DUPLICATE_SHARE):
            titles.append(stream.pick(titles))
            continue
        title = source.title()
        if title not in seen:
            seen.add(title)
            titles.append(title)
    return titles
