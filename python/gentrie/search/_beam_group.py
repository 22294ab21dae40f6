"""The live beams of a request, or of one of its groups, and what they have finished."""

from __future__ import annotations

import numpy as np

from gentrie.search._beam import Beam, BeamRules, Float64Array, Int64Array, allowed_tokens
from gentrie.search.item_terms import ItemTerm
from gentrie.trie import TokenTrie


class BeamGroup:
    """Beam search as in ``transformers``: at each depth the best ``2 * width`` continuations of all live beams, of
    which the first ``width`` may finish and the best that do not finish live on.

    Parameters
    ----------
    trie
        The catalog.
    rules
        Its ``group_width`` is this group's width.
    term
        Scores of items that count beside the model's.
    root
        The empty prefix; None where nothing is allowed.
    """

    def __init__(self, trie: TokenTrie, rules: BeamRules, term: ItemTerm | None, root: Beam | None) -> None:
        self._trie, self._rules, self._term = trie, rules, term
        self.beams = [] if root is None else [root]
        self.finished: list[tuple[float, Beam]] = []
        """Penalised scores and complete sequences, best first."""
        self._improvable = True

    @property
    def done(self) -> bool:
        """Whether nothing more can come of it."""
        full = len(self.finished) == self._rules.group_width and self._rules.early_stopping is True
        return not self.beams or not self._improvable or full

    def step(self, depth: int, taken: list[int]) -> None:
        """Grow every beam by a token, the ``depth``-th; ``taken`` are those that other groups have chosen for it."""
        width = self._rules.group_width
        tokens = np.concatenate([beam.children for beam in self.beams])
        counts = np.array([len(beam.children) for beam in self.beams])
        owners = np.repeat(np.arange(len(self.beams)), counts)
        added = np.concatenate([beam.known[0] if beam.known else np.zeros(1) for beam in self.beams])
        if taken and self._rules.diversity_penalty:
            added = self._diverse(added, tokens, np.array(taken), counts)
        leaves = None
        if self._term is not None:
            terms, leaves = self._item_terms(self._term, depth)
            added = terms + (self._term.model_weight * added if self._term.model_weight else 0.0)
        totals = np.array([beam.score for beam in self.beams])[owners] + added
        best = _highest(totals, 2 * width)
        best = best[totals[best] > -np.inf]  # what is impossible is not found
        grown = self._grow(owners[best], tokens[best], added[best], None if leaves is None else leaves[best])
        self.beams = []
        for rank, beam in enumerate(grown):
            if len(beam.children):
                if len(self.beams) < width:
                    self.beams.append(beam)
            elif rank < width:
                self.finished.append((beam.score / depth**self._rules.length_penalty, beam))
        self.finished.sort(key=lambda entry: -entry[0])
        del self.finished[width:]
        self._improvable = self._may_improve(depth)

    def _diverse(self, added: Float64Array, tokens: Int64Array, taken: Int64Array, counts: Int64Array) -> Float64Array:
        """Scores less a penalty for each time that another group has taken the token; normalised again among the
        children where they were before."""
        values, times = np.unique(taken, return_counts=True)
        at = np.searchsorted(values, tokens).clip(max=len(values) - 1)
        lowered: Float64Array = added - self._rules.diversity_penalty * np.where(values[at] == tokens, times[at], 0)
        if self._rules.scope == "trie":
            lowered -= np.repeat(np.logaddexp.reduceat(lowered, np.cumsum(counts) - counts), counts)
        return lowered

    def _item_terms(self, term: ItemTerm, depth: int) -> tuple[Float64Array, Int64Array]:
        """For each child of each beam what its items' scores add, and the first sequence below it."""
        terms, leaves = [], []
        for beam in self.beams:
            if len(beam.children) == 1:  # all of the score lies below the only child, wherever it begins
                leaf = term.first_leaf(beam.state, beam.first_leaf, int(beam.children[0]))
                own, begins = np.zeros(1), np.array([leaf])
            else:
                own, begins = term.of_children(beam.state, beam.first_leaf, beam.children)
            terms.append(own + term.start if depth == 1 else own)
            leaves.append(begins)
        return np.concatenate(terms), np.concatenate(leaves)

    def _grow(
        self, owners: Int64Array, tokens: Int64Array, added: Float64Array, leaves: Int64Array | None
    ) -> list[Beam]:
        parents = [self.beams[owner] for owner in owners.tolist()]
        states = self._trie.advance_batch(np.array([beam.state for beam in parents], dtype=np.int64), tokens)
        allowed, indptr = self._trie.next_tokens_batch(states)
        children = np.split(allowed.astype(np.int64), indptr[1:-1])
        grown = []
        for at, (parent, token, state) in enumerate(zip(parents, tokens.tolist(), states.tolist(), strict=True)):
            matcher = None
            if parent.matcher is not None:
                matcher = parent.matcher.fork()
                matcher.accept_token(token)
                children[at] = children[at] if not len(children[at]) else allowed_tokens(self._trie, matcher)
            leaf = 0 if leaves is None else int(leaves[at])
            grown.append(Beam(parent, token, float(added[at]), state, leaf, matcher, children[at]))
        return grown

    def _may_improve(self, depth: int) -> bool:
        """``_check_early_stop_heuristic`` of ``transformers``; what it once denied stays denied."""
        rules = self._rules
        if not self.beams or len(self.finished) < rules.group_width:
            return True
        longest = rules.early_stopping == "never" and rules.length_penalty > 0
        length = rules.max_length if longest else depth
        possible: float = self.beams[0].score / length**rules.length_penalty
        return possible > self.finished[-1][0]


def _highest(scores: Float64Array, count: int) -> Int64Array:
    """Places of the highest scores, highest first; of equal ones the first first."""
    if len(scores) > 4 * count:
        limit = np.partition(scores, len(scores) - count)[len(scores) - count]
        places = np.flatnonzero(scores >= limit)
        return places[np.argsort(-scores[places], kind="stable")[:count]]
    return np.argsort(-scores, kind="stable")[:count]
