"""Titles shaped like a store of toys: brand, line, product, and then parts, pieces, sizes and colours."""

from __future__ import annotations

from typing import NamedTuple

from gentrie.datasets._names import coin, compound
from gentrie.datasets._phrases import Phrases
from gentrie.datasets._random import Stream, Weighted
from gentrie.datasets._words import (
    ADJECTIVES,
    COLORS,
    FIRST_NAMES,
    THINGS,
    TOY_LINES,
    TOY_PARTS,
    TOY_PRODUCTS,
)

_BRANDS = 1800
_VARIANT_SHARE = 0.02
_BRAND_ENDS = ("Toys", "Toys", "Games", "Kids", "Play", "&amp; Friends", "Baby", "Crafts", "Models")
_CHARACTER_SHARE = 0.4


class _Brand(NamedTuple):
    name: str
    lines: list[tuple[str, list[str]]]
    """The name of each line, and who is in it."""


class Toys:
    """Draws one title at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._last = ""
        self._phrases = Phrases(stream)
        self._products = Weighted.zipf(TOY_PRODUCTS, 12)
        self._lines = Weighted.zipf(TOY_LINES, 12)
        self._parts = Weighted.zipf(TOY_PARTS, 12)
        self._brands = Weighted.zipf([self._brand() for _ in range(_BRANDS)], 20)

    def title(self) -> str:
        """Draw a title."""
        if self._last and self._stream.chance(_VARIANT_SHARE):
            return f"{self._last}, {self._stream.pick(COLORS)}"
        self._last = self._product() + self._details()
        return self._last

    def _product(self) -> str:
        stream = self._stream
        kind = stream.uniform()
        product = self._products.pick(stream)
        if kind < 0.08:
            return f"{self._phrases.long()} {product}"
        brand = self._brands.pick(stream)
        if kind < 0.35:
            return f"{brand.name} {self._subject()} {product}"
        line, characters = stream.pick(brand.lines)
        subject = stream.pick(characters) if stream.chance(_CHARACTER_SHARE) else self._subject()
        return f"{brand.name} {line} - {subject}" if kind < 0.50 else f"{brand.name} {line} {subject} {product}"

    def _brand(self) -> _Brand:
        stream = self._stream
        kind = stream.uniform()
        if kind < 0.35:
            brand = coin(stream)
        elif kind < 0.60:
            brand = compound(stream)
        elif kind < 0.70:
            brand = f"{stream.pick(FIRST_NAMES)} &amp; {stream.pick(FIRST_NAMES)}"
        elif kind < 0.80:
            brand = f"{coin(stream)}-{coin(stream)}"
        else:
            brand = f"{stream.pick(ADJECTIVES)} {stream.pick(THINGS)} {stream.pick(_BRAND_ENDS)}"
        return _Brand(brand, [self._line() for _ in range(1 + stream.below(6))])

    def _line(self) -> tuple[str, list[str]]:
        stream = self._stream
        kind = stream.uniform()
        if kind < 0.35:
            line = f"{self._lines.pick(stream)} {self._lines.pick(stream)}"
        else:
            line = compound(stream) if kind < 0.7 else f"{coin(stream)} {self._lines.pick(stream)}"
        return line, [self._subject() for _ in range(1 + stream.below(5))]

    def _subject(self) -> str:
        stream = self._stream
        kind = stream.uniform()
        if kind < 0.2:
            return f"{stream.pick(ADJECTIVES)} {stream.pick(THINGS)}"
        if kind < 0.3:
            return f"{stream.pick(FIRST_NAMES)} the {stream.pick(THINGS)}"
        if kind < 0.65:
            return f"{compound(stream)} {stream.pick(THINGS)}"
        return coin(stream) if kind < 0.77 else f"{coin(stream)} {coin(stream)}"

    def _details(self) -> str:
        stream = self._stream
        details = ""
        if stream.chance(0.70):
            details = f" with {self._parts.pick(stream)}"
            if stream.chance(0.3):
                details += f" and {self._parts.pick(stream)}"
        if stream.chance(0.12):
            details += f" {4 + stream.below(20)}&quot;"
        if stream.chance(0.30):
            details += f" - {(1 + stream.below(60)) * 5} Pieces"
        if stream.chance(0.3):
            details += f", {stream.pick(COLORS)}"
        elif stream.chance(0.15):
            details += f" ({stream.pick(COLORS)}/{stream.pick(COLORS)})"
        if stream.chance(0.2):
            details += f" #{stream.below(9000) + 1000}"
        if stream.chance(0.08):
            details += f" for Ages {2 + stream.below(9)} and Up"
        return details
