"""Titles shaped like a store of films and series: a name, seasons and volumes, and the medium it comes on."""

from __future__ import annotations

from gentrie.datasets._names import coin
from gentrie.datasets._phrases import Phrases
from gentrie.datasets._random import Stream, Weighted
from gentrie.datasets._words import FIRST_NAMES, PLACES

_SERIES = 1500
_MEDIA = (
    " [VHS]",
    " [VHS]",
    " [VHS]",
    " [Blu-ray]",
    " [DVD]",
    " (Widescreen Edition)",
    " (Special Edition)",
    " (Two-Disc Collector's Edition)",
    " (Blu-ray/DVD Combo)",
    " [Import]",
    " (Unrated Director's Cut)",
    " (Full Screen)",
)
_ORDINALS = ("First", "Second", "Third", "Fourth", "Fifth", "Sixth", "Final")


class Movies:
    """Draws one title at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._phrases = Phrases(stream)
        self._series = Weighted.zipf([self._film() for _ in range(_SERIES)], 20)

    def title(self) -> str:
        """Draw a title."""
        stream, phrases = self._stream, self._phrases
        kind = stream.uniform()
        if kind < 0.38:
            return self._release(self._series.pick(stream))
        if kind < 0.46:
            return self._film()
        if kind < 0.65:
            return self._film() + stream.pick(_MEDIA)
        if kind < 0.92:
            return f"{self._film()}: {phrases.long()}{self._medium()}"
        return f"{self._person()}: Live in {stream.pick(PLACES)}{self._medium()}"

    def _film(self) -> str:
        stream, phrases = self._stream, self._phrases
        kind = stream.uniform()
        if kind < 0.15:
            return phrases.short()
        return phrases.scene() if kind < 0.4 else phrases.long()

    def _person(self) -> str:
        return f"{self._stream.pick(FIRST_NAMES)} {coin(self._stream)}"

    def _medium(self) -> str:
        return self._stream.pick(_MEDIA) if self._stream.chance(0.26) else ""

    def _release(self, name: str) -> str:
        stream, phrases = self._stream, self._phrases
        kind = stream.uniform()
        if kind < 0.15:
            return name
        if kind < 0.35:
            return f"{name}: The Complete {stream.pick(_ORDINALS)} Season{self._medium()}"
        if kind < 0.50:
            return f"{name}, Vol. {stream.below(12) + 1} - {phrases.short()}{self._medium()}"
        if kind < 0.60:
            return f"{name} {stream.below(5) + 2}{self._medium()}"
        if kind < 0.90:
            return f"{name}: {phrases.long()}{self._medium()}"
        return name + stream.pick(_MEDIA)
