"""Titles shaped like a store of computer games: short, in series, with sequels, subtitles and add-ons."""

from __future__ import annotations

from gentrie.datasets._phrases import Phrases
from gentrie.datasets._random import Stream, Weighted

_SERIES = 700
_SEQUELS = ("2", "2", "2", "3", "3", "4", "5", "II", "II", "III", "IV", "VR", "HD", "Online", "Remastered")
_EXTRAS = (
    "Soundtrack",
    "Soundtrack",
    "Deluxe Edition",
    "Season Pass",
    "Demo",
    "Art Book",
    "Collector's Edition",
)
_TAILS = (
    ": Game of the Year Edition",
    ": Definitive Edition",
    ": Director's Cut",
    " (Early Access)",
    " - Episode 1",
    " - The Card Game",
    " Free to Play",
    ": Complete Collection",
    " - Anniversary Edition",
    " Playtest",
    " - Hidden Object Adventure",
    ": Tower Defense",
    " (2015)",
    " Racing Simulator",
    ": Battle Royale",
    " 3D",
    ": Origins",
)


class Games:
    """Draws one title at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._phrases = Phrases(stream)
        self._series = Weighted.zipf([self._phrases.short() for _ in range(_SERIES)], 20)

    def title(self) -> str:
        """Draw a title."""
        stream, phrases = self._stream, self._phrases
        kind = stream.uniform()
        if kind < 0.25:
            return self._release(self._series.pick(stream))
        if kind < 0.63:
            return phrases.short() if stream.chance(0.31) else phrases.long()
        if kind < 0.88:
            return phrases.short() + stream.pick(_TAILS)
        return f"{phrases.short()}: {phrases.long()}"

    def _release(self, name: str) -> str:
        stream, phrases = self._stream, self._phrases
        kind = stream.uniform()
        if kind < 0.15:
            return name
        if kind < 0.40:
            return f"{name} {stream.pick(_SEQUELS)}"
        if kind < 0.55:
            return f"{name}: {phrases.short()}"
        if kind < 0.80:
            return f"{name}: {phrases.long()}"
        if kind < 0.90:
            return f"{name} - {phrases.short()} Pack"
        return f"{name} - {stream.pick(_EXTRAS)}"
