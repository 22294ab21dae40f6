"""One request's beam search, token by token, that asks for scores only where it cannot go on without them."""

from __future__ import annotations

import numpy as np

from gentrie import _core
from gentrie.matcher import make_constraint
from gentrie.search._beam import Beam, BeamRules, Float64Array, Int64Array, allowed_tokens
from gentrie.search._beam_group import BeamGroup
from gentrie.search.item_terms import ItemTerm
from gentrie.trie import TokenTrie

# Tokens of a run that are read ahead at once, at least, where the call has room for them.
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

    def reading(self, beam: Beam, ahead: int) -> tuple[list[int], list[Int64Array]]:
        """What the model reads for a beam that asks, and the children to score behind the last of it.

        Under ``"vocab"`` it also reads up to ``ahead`` tokens of the run that follows, which have scores of their own;
        there every token read has its place, and the prompt's end where none is. Under ``"trie"`` the last has.
        """
        run = self._run(beam, ahead) if self.rules.scope == "vocab" and beam.pending else []
        if not run:
            return list(beam.pending), [beam.children]
        places = [np.array([token]) for token in run]
        if beam.matcher is None:
            last = self._trie.next_tokens(self._trie.walk(run, beam.state)).astype(np.int64)
        else:
            further = beam.matcher.fork()
            for token in run:
                further.accept_token(token)
            last = allowed_tokens(self._trie, further)
        return [*beam.pending, *run], [*places, last]

    def take(self, beam: Beam, handle: int, known: list[Float64Array]) -> None:
        """Give a beam that asked the log-probabilities of the children at each place that :meth:`reading` named."""
        beam.handle, beam.pending, beam.known = handle, [], known

    def advance(self) -> None:
        """Go on, depth by depth, until a live beam asks or all is done."""
        while not self.done and not self.asking():
            self._depth += 1
            taken: list[int] = []
            for group in self._groups:
                if not group.done:
                    group.step(self._depth, taken)
                    taken += [beam.token for beam in group.beams]

    def _run(self, beam: Beam, ahead: int) -> list[int]:
        """Forced tokens behind a beam, without the one that completes a sequence: nothing is chosen behind it. No more
        than have been read so far: the beam may die before its end."""
        most = min(ahead, max(_PIECE, self._depth), self.rules.max_length - self._depth - 1)
        if len(beam.children) != 1 or most == 0:
            return []
        forced = self._trie.forced_tokens(beam.state) if beam.matcher is None else beam.matcher.forced_tokens()
        run: list[int] = forced[:most].tolist()
        if self._trie.is_leaf(self._trie.walk(run, beam.state)):
            run.pop()
        return run
