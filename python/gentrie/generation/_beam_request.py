"""One request's beam search, token by token, that asks for scores only where it cannot go on without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from gentrie import _core
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

PROMPT = -1


@dataclass(frozen=True)
class BeamRules:
    """How a request searches; the names are those of :meth:`BeamStepper.add_request`."""

    beam_width: int
    scope: Literal["trie", "vocab"]
    length_penalty: float
    early_stopping: bool | Literal["never"]
    max_length: int


class Beam:
    """A prefix of the catalog, linked to the one it grew from.

    Parameters
    ----------
    parent, token, token_score
        The beam one token before, and that token.
    state
        Of the trie.
    matcher
        The same place under a filter; None without one.
    children
        Tokens allowed next, none behind a complete sequence.
    """

    __slots__ = (
        "children",
        "handle",
        "known",
        "matcher",
        "parent",
        "pending",
        "score",
        "state",
        "token",
        "token_score",
    )

    def __init__(
        self,
        parent: Beam | None,
        token: int,
        token_score: float,
        state: int,
        matcher: _core.Matcher | None,
        children: Int64Array,
    ) -> None:
        self.parent = parent
        self.token = token
        self.token_score = token_score
        self.score: float = token_score if parent is None else parent.score + token_score
        self.state = state
        self.matcher = matcher
        self.children = children
        self.handle: int = PROMPT if parent is None else parent.handle
        """The row whose engine state this beam continues."""
        self.pending: list[int] = [] if parent is None else [*parent.pending, token]
        """Tokens behind that row that the model has not read."""
        self.known: list[Float64Array] = []
        """Scores of the children here, and then of the only child at each following place of a run that was read."""

    def path(self) -> tuple[list[int], list[float], int]:
        """Tokens, their scores, and how many of them were the only choice."""
        tokens, scores, forced = [], [], 0
        beam = self
        while beam.parent is not None:
            tokens.append(beam.token)
            scores.append(beam.token_score)
            forced += len(beam.parent.children) == 1
            beam = beam.parent
        return tokens[::-1], scores[::-1], forced


class BeamRequest:
    """Beam search as in ``transformers``: at each depth the best ``2 * beam_width`` continuations of all live beams,
    of which the first ``beam_width`` may finish and the best that do not finish live on.
    """

    def __init__(self, trie: TokenTrie, matcher: _core.Matcher | None, rules: BeamRules) -> None:
        self._trie = trie
        self.rules = rules
        children = trie.next_tokens(trie.root).astype(np.int64) if matcher is None else _allowed(trie, matcher)
        self.beams = [Beam(None, -1, 0.0, trie.root, matcher, children)] if len(children) else []
        self.finished: list[tuple[float, Beam]] = []
        """Penalised scores and complete sequences, best first."""
        self._depth = 0
        self._improvable = True

    @property
    def done(self) -> bool:
        """Whether nothing more can come of it."""
        full = len(self.finished) == self.rules.beam_width and self.rules.early_stopping is True
        return not self.beams or not self._improvable or full or self._depth == self.rules.max_length

    def asking(self) -> list[Beam]:
        """Beams whose next token needs scores that are not known."""
        free = self.rules.scope == "trie"
        return [beam for beam in self.beams if not beam.known and not (free and len(beam.children) == 1)]

    def tokens_to_feed(self, beam: Beam) -> list[int]:
        """What the model reads for a beam that asks: under ``"vocab"`` the run that follows as well, whose tokens have
        scores of their own."""
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
        state = beam.state
        for token in run:
            state = self._trie.advance(state, token)
        if beam.matcher is None:
            last = self._trie.next_tokens(state).astype(np.int64)
        else:
            ahead = beam.matcher.fork()
            for token in run:
                ahead.accept_token(token)
            last = _allowed(self._trie, ahead)
        return [*places, last]

    def advance(self) -> None:
        """Go on, depth by depth, until a live beam asks or all is done."""
        while not self.done and not self.asking():
            self._step()

    def _run(self, beam: Beam) -> list[int]:
        """Forced tokens behind a beam, without the one that completes a sequence: nothing is chosen behind it."""
        if len(beam.children) != 1:
            return []
        forced = self._trie.forced_tokens(beam.state) if beam.matcher is None else beam.matcher.forced_tokens()
        state = beam.state
        run: list[int] = []
        for token in forced.tolist():
            state = self._trie.advance(state, token)
            if self._trie.is_leaf(state):
                break
            run.append(token)
        return run

    def _step(self) -> None:
        rules = self.rules
        self._depth += 1
        tokens = np.concatenate([beam.children for beam in self.beams])
        added = np.concatenate([beam.known[0] if beam.known else np.zeros(1) for beam in self.beams])
        owners = np.repeat(np.arange(len(self.beams)), [len(beam.children) for beam in self.beams])
        totals = np.array([beam.score for beam in self.beams])[owners] + added
        best = _highest(totals, 2 * rules.beam_width)
        grown = self._grow(owners[best], tokens[best], added[best])
        accepting = not (len(self.finished) == rules.beam_width and rules.early_stopping is True)
        self.beams = []
        for rank, beam in enumerate(grown):
            if len(beam.children):
                if len(self.beams) < rules.beam_width:
                    self.beams.append(beam)
            elif rank < rules.beam_width and accepting:
                self.finished.append((beam.score / self._depth**rules.length_penalty, beam))
        self.finished.sort(key=lambda entry: -entry[0])
        del self.finished[rules.beam_width :]
        self._improvable = self._may_improve()

    def _grow(self, owners: Int64Array, tokens: Int64Array, added: Float64Array) -> list[Beam]:
        parents = [self.beams[owner] for owner in owners.tolist()]
        states = self._trie.advance_batch(np.array([beam.state for beam in parents]), tokens)
        allowed, indptr = self._trie.next_tokens_batch(states)
        children = np.split(allowed.astype(np.int64), indptr[1:-1])
        grown = []
        for at, (parent, token, state) in enumerate(zip(parents, tokens.tolist(), states.tolist(), strict=True)):
            matcher = None
            if parent.matcher is not None:
                matcher = parent.matcher.fork()
                matcher.accept_token(token)
                children[at] = children[at] if not len(children[at]) else _allowed(self._trie, matcher)
            beam = Beam(parent, token, float(added[at]), state, matcher, children[at])
            if len(parent.known) > 1:  # inside a run that has been read
                beam.known, beam.pending = parent.known[1:], []
            grown.append(beam)
        return grown

    def _may_improve(self) -> bool:
        """``_check_early_stop_heuristic`` of ``transformers``; what it once denied stays denied."""
        rules = self.rules
        if not self.beams or len(self.finished) < rules.beam_width:
            return True
        longest = rules.early_stopping == "never" and rules.length_penalty > 0
        length = rules.max_length if longest else self._depth
        possible: float = self.beams[0].score / length**rules.length_penalty
        return possible > self.finished[-1][0]


def _allowed(trie: TokenTrie, matcher: _core.Matcher) -> Int64Array:
    verdict, tokens = matcher.allowed_tokens()
    if verdict == _core.Verdict.EMPTIED or trie.is_leaf(matcher.state):
        return np.empty(0, dtype=np.int64)
    return np.sort(tokens).astype(np.int64)


def _highest(scores: Float64Array, count: int) -> Int64Array:
    """Places of the highest scores, highest first; of equal ones the first first."""
    if len(scores) > 4 * count:
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero(scores >= limit)
        return places[np.argsort(-scores[places], kind="stable")[:count]]
    return np.argsort(-scores, kind="stable")[:count]
