"""One request's beam search, token by token, that asks for scores only where it cannot go on without them."""

from __future__ import annotations

import numpy as np

from gentrie import _core
from gentrie.generation._beam import Beam, BeamRules, Float64Array, Int64Array, allowed_tokens
from gentrie.generation._beam_group import BeamGroup
from gentrie.generation.item_terms import ItemTerm
from gentrie.matcher import make_constraint
from gentrie.trie import TokenTrie

# Tokens of a run that are read at once, at least.
_PIECE = 2


class BeamRequest:
    """All groups of a request advance together, depth by depth."""

    def __init__(
        self,
        trie: TokenTrie,
        chosen: _core.ItemFilter | None,
        rules: BeamRules,
        term: ItemTerm | None = None,
    ) -> None:
        self._trie = trie
        self.chosen = chosen
        matcher = None
        if chosen is not None:
            matcher = _core.Matcher(make_constraint(trie, None, None, False, chosen))
        self.rules = rules
        children = trie.next_tokens(trie.root).astype(np.int64) if matcher is None else allowed_tokens(trie, matcher)
        root = Beam(None, -1, 0.0, trie.root, 0, matcher, children) if len(children) else None
        self._groups = [BeamGroup(trie, rules, term, root) for _ in range(rules.num_beam_groups)]
        self._depth = 0

    @property
    def done(self) -> bool:
        """Whether nothing more can come of it."""
        return self._depth == self.rules.max_length or all(group.done for group in self._groups)

    @property
    def beams(self) -> list[Beam]:
        """Live beams, group by group."""
        return [beam for group in self._groups if not group.done for beam in group.beams]

    def found(self) -> list[tuple[float, Beam]]:
        """Penalised scores and complete sequences, best first, each once."""
        best = sorted((entry for group in self._groups for entry in group.finished), key=lambda entry: -entry[0])
        once: dict[int, tuple[float, Beam]] = {}
        for score, beam in best:
            once.setdefault(beam.state, (score, beam))
        return list(once.values())

    def asking(self) -> list[list[Beam]]:
        """Beams whose next token needs scores that are not known, those with the same prefix together."""
        free = self.rules.scope == "trie"
        places: dict[int, list[Beam]] = {}
        for beam in self.beams:
            if not beam.known and not (free and len(beam.children) == 1):
                places.setdefault(beam.state, []).append(beam)
        return list(places.values())

    def tokens_to_feed(self, beam: Beam) -> list[int]:
        """What the model reads for a beam that asks: under ``"vocab"`` also some of the run that follows, whose tokens
        have scores of their own."""
        if self.rules.scope == "trie" or not beam.pending:
            return list(beam.pending)
        return [*beam.pending, *self._run(beam)]

    def take(self, beam: Beam, handle: int, known: list[Float64Array]) -> None:
        """Give a beam that asked the log-probabilities of the children at each place that :meth:`places` named."""
        beam.handle, beam.pending, beam.known = handle, [], known

    def places(self, beam: Beam, num_fed: int) -> list[Int64Array]:
        """Children to score behind the last ``len`` tokens of those fed (behind the prompt where none was)."""
        if self.rules.scope == "trie" or not num_fed:
            return [beam.children]
        run = self._run(beam)
        places = [np.array([token]) for token in run]
        if beam.matcher is None:
            last = self._trie.next_tokens(self._trie.walk(run, beam.state)).astype(np.int64)
        else:
            ahead = beam.matcher.fork()
            for token in run:
                ahead.accept_token(token)
            last = allowed_tokens(self._trie, ahead)
        return [*places, last]

    def advance(self) -> None:
        """Go on, depth by depth, until a live beam asks or all is done."""
        while not self.done and not self.asking():
            self._depth += 1
            taken: list[int] = []
            for group in self._groups:
                if not group.done:
                    group.step(self._depth, taken)
                    taken += [beam.token for beam in group.beams]

    def _run(self, beam: Beam) -> list[int]:
        """Forced tokens behind a beam, without the one that completes a sequence: nothing is chosen behind it. No more
        than have been read so far: the beam may die before its end."""
        most = min(max(_PIECE, self._depth), self.rules.max_length - self._depth - 1)
        if len(beam.children) != 1 or most == 0:
            return []
        forced = self._trie.forced_tokens(beam.state) if beam.matcher is None else beam.matcher.forced_tokens()
        run: list[int] = forced[:most].tolist()
        if self._trie.is_leaf(self._trie.walk(run, beam.state)):
            run.pop()
        return run
