"""Phrases such as titles are made of: adjective and noun, noun of name, names."""

from __future__ import annotations

from gentrie.datasets._names import coin, compound
from gentrie.datasets._random import Stream, Weighted
from gentrie.datasets._words import ADJECTIVES, FIRST_NAMES, NOUNS, PLACES, THINGS, VERBS

# The first word of a title is drawn with a steep head, so that many titles begin alike; what follows is drawn
# flat, so that one more word mostly tells titles apart: few branches, but wide ones, as in real titles.
_HEAD_SHIFT = 3
_LAST_WORDS = NOUNS + THINGS + tuple(f"{noun}s" for noun in NOUNS if not noun.endswith(("s", "x", "y")))


class Phrases:
    """Draws phrases from one stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._adjectives = Weighted.zipf(ADJECTIVES, _HEAD_SHIFT)
        self._nouns = Weighted.zipf(NOUNS, _HEAD_SHIFT)

    def name(self) -> str:
        """Draw the name of a place or a person, mostly an invented one."""
        stream = self._stream
        kind = stream.uniform()
        if kind < 0.1:
            return stream.pick(PLACES)
        if kind < 0.2:
            return stream.pick(FIRST_NAMES)
        return compound(stream) if kind < 0.6 else coin(stream)

    def short(self) -> str:
        """Draw a phrase of one or two words."""
        stream = self._stream
        kind = stream.uniform()
        if kind < 0.40:
            return f"{self._adjectives.pick(stream)} {stream.pick(_LAST_WORDS)}"
        if kind < 0.65:
            return f"{self._nouns.pick(stream)} {stream.pick(_LAST_WORDS)}"
        if kind < 0.80:
            return self.name()
        if kind < 0.90:
            return f"{self._nouns.pick(stream)} {self.name()}"
        return f"{self.name()} {stream.pick(_LAST_WORDS)}"

    def long(self) -> str:
        """Draw a phrase of two to five words."""
        stream = self._stream
        kind = stream.uniform()
        if kind < 0.25:
            return f"{self._nouns.pick(stream)} of {self.name()}"
        if kind < 0.40:
            adjective = self._adjectives.pick(stream)
            return f"{self._nouns.pick(stream)} of the {adjective} {stream.pick(_LAST_WORDS)}"
        if kind < 0.55:
            return f"The {self._adjectives.pick(stream)} {stream.pick(_LAST_WORDS)}"
        if kind < 0.65:
            return f"{self.name()} and the {stream.pick(_LAST_WORDS)}"
        if kind < 0.70:
            return f"{self.name()}'s {stream.pick(_LAST_WORDS)}"
        if kind < 0.85:
            return f"The {self._nouns.pick(stream)} of {self.name()}"
        return f"{self._adjectives.pick(stream)} {stream.pick(_LAST_WORDS)} {self.name()}"

    def scene(self) -> str:
        """Draw a phrase that begins with a verb."""
        stream = self._stream
        kind = stream.uniform()
        if kind < 0.4:
            return f"{stream.pick(VERBS)} the {stream.pick(_LAST_WORDS)}"
        if kind < 0.7:
            return f"{stream.pick(VERBS)} {self.name()}"
        return f"{stream.pick(VERBS)} {stream.pick(_LAST_WORDS)} in {self.name()}"
