"""The open prefixes of one prompt and the items found so far."""

from __future__ import annotations

import bisect
import heapq

import numpy as np
import numpy.typing as npt

from gentrie import _core
from gentrie.search.item_scores import ItemScores
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]

_HALVINGS = 40


class Prefix:
    """A choice and the forced tokens behind it, up to the next branch or the item's end."""

    __slots__ = (
        "begins",
        "first_leaf",
        "gumbel",
        "is_item",
        "matcher",
        "num_chosen",
        "parent",
        "score",
        "scores",
        "slot",
        "tokens",
    )

    def __init__(
        self, parent: Prefix | None, tokens: list[int], scores: list[float], matcher: _core.Matcher, is_item: bool
    ) -> None:
        self.parent = parent
        self.tokens = tokens
        self.scores = scores
        self.score: float = (0.0 if parent is None else parent.score) + sum(scores)
        self.matcher = matcher
        self.is_item = is_item
        self.num_chosen = 1 if parent is not None else 0
        self.slot = -1
        self.gumbel = 0.0  # of sampling without replacement
        self.first_leaf = 0  # kept up where items have scores of their own
        self.begins: dict[int, int] = {}  # the same, by next token

    def fed(self) -> list[int]:
        """Tokens whose hidden states are needed: nothing is chosen behind an item's last."""
        return self.tokens[:-1] if self.is_item else self.tokens

    def parent_slot(self) -> int:
        assert self.parent is not None
        return self.parent.slot

    def path(self) -> list[int]:
        """All tokens from the root on."""
        return [*(() if self.parent is None else self.parent.path()), *self.tokens]

    def path_scores(self) -> list[float]:
        """The score of each."""
        return [*(() if self.parent is None else self.parent.path_scores()), *self.scores]

    def num_forced(self) -> int:
        """Tokens of the path that were the only choice."""
        above = 0 if self.parent is None else self.parent.num_forced()
        return above + len(self.tokens) - self.num_chosen


class Frontier:
    """Best-first order, what is certainly needed, and what may be opened besides.

    Parameters
    ----------
    trie
        The catalog.
    matcher
        At the root; knows the filter.
    wanted
        Items wanted.
    speculation
        Rows not known to be needed, as a share of those that are.
    renormalised
        Whether scores are over the valid tokens, so that forced tokens need no model.
    prompt
        Its number.
    item_scores, alpha
        D3: a token scores ``alpha * log p + (1 - alpha) * log q``, where q is its share of the prompt's item scores.
    """

    def __init__(
        self,
        trie: TokenTrie,
        matcher: _core.Matcher,
        wanted: int,
        speculation: float,
        renormalised: bool,
        item_scores: ItemScores | None = None,
        prompt: int = 0,
        alpha: float = 1.0,
    ) -> None:
        self._item_scores = item_scores
        self._prompt = prompt
        self._alpha = alpha
        self._trie = trie
        self._wanted = wanted
        self._speculation = speculation
        self._renormalised = renormalised
        self._root = self._follow(None, matcher, [])
        self._open: list[tuple[float, int, Prefix, int]] = []  # minus score, order, parent, token
        self._order = 0
        self._found: list[tuple[float, int, Prefix]] = []  # ascending by minus score
        self._computed: list[float] = []  # scores of opened prefixes
        self.rows = 0
        """Distributions computed."""

    def start(self, slot: int, scores: Float64Array, vocabulary: npt.NDArray[np.int32]) -> None:
        """Take the prompt's end; the root itself may begin with forced tokens."""
        above = Prefix(None, [], [], self._root.matcher, False)
        above.slot = slot
        self.rows += 1
        root = self._root
        if root.matcher.allowed_tokens()[0] == _core.Verdict.EMPTIED:
            return
        if not root.tokens and not root.is_item:
            self._branch(above, scores, vocabulary)
            return
        # Forced from the root on: an open prefix like any other, whose first token was no choice.
        first = 0.0
        if not self._renormalised:
            first = float(self._alpha * self._numbers(scores[np.searchsorted(vocabulary, root.tokens[0])]))
        root.parent, root.scores, root.score = above, [first], first
        self._push_prefix(root)

    def gap(self) -> float:
        """How far above the last of the best items an unseen one may score; 0 where none can."""
        if not self._open:
            return 0.0
        if len(self._found) < self._wanted:
            return float("inf")
        return max(0.0, -self._open[0][0] - self._last())

    def best(self) -> list[Prefix]:
        """The best items found, best first."""
        return [item for _, _, item in self._found[: self._wanted]]

    def slots(self) -> list[int]:
        """Decoder slots that open prefixes continue."""
        return [parent.slot for _, _, parent, _ in self._open]

    def select(self, limit: int) -> list[Prefix]:
        """Prefixes to open next, at most ``limit``; none once the search is done."""
        chosen: list[Prefix] = []
        needed = self._needed(chosen)
        while self._open and len(chosen) < limit:
            score = -self._open[0][0]
            if len(self._found) >= self._wanted and score < self._last():
                self._open.clear()
                break
            if chosen and score < needed:
                known = [*self._computed, *(prefix.score for prefix in chosen)]
                sure = sum(above >= needed for above in known)
                if len(known) - sure + 1 > self._speculation * sure:
                    break
            prefix = self._pop()
            if self._is_free(prefix):
                self._finish(prefix)
                needed = self._needed(chosen)
            else:
                chosen.append(prefix)
        self._computed += [prefix.score for prefix in chosen]
        return chosen

    def settle(self) -> None:
        """Take the finished items that lead the open prefixes; for a search that ends early."""
        while self._open:
            entry = self._open[0]
            prefix = self._pop()
            if not self._is_free(prefix):
                heapq.heappush(self._open, entry)
                return
            self._finish(prefix)

    def expand(self, prefix: Prefix, slot: int, scores: Float64Array, vocabulary: npt.NDArray[np.int32]) -> None:
        """Take the scores [fed tokens, catalog's tokens] behind a selected prefix; its last row alone where forced
        tokens are free."""
        prefix.slot = slot
        self.rows += len(scores)
        if not self._renormalised:
            run = prefix.tokens[1:]
            columns = np.searchsorted(vocabulary, run)
            prefix.scores += (self._alpha * self._numbers(scores[np.arange(len(run)), columns])).tolist()
            prefix.score += float(sum(prefix.scores[1:]))
        if prefix.is_item:
            self._finish(prefix)
        else:
            self._branch(prefix, scores[-1], vocabulary)

    def _branch(self, prefix: Prefix, scores: Float64Array, vocabulary: npt.NDArray[np.int32]) -> None:
        tokens = np.sort(prefix.matcher.allowed_tokens()[1])
        own = scores[np.searchsorted(vocabulary, tokens)]
        own = self._log_probs(own) if self._renormalised else self._numbers(own)
        if self._item_scores is not None:
            shares, begins = self._item_scores.log_shares(self._prompt, prefix.matcher.state, prefix.first_leaf, tokens)
            own = self._alpha * own + (1 - self._alpha) * shares
            prefix.begins = dict(zip(tokens.tolist(), begins.tolist(), strict=True))
        totals = prefix.score + np.minimum(own, 0.0)
        last = self._last() if len(self._found) >= self._wanted else -np.inf
        for at in np.flatnonzero((totals >= last) & (totals > -np.inf)).tolist():  # the impossible leads to nothing
            self._order += 1
            self._push(-float(totals[at]), self._order, prefix, int(tokens[at]))

    def _log_probs(self, logits: Float64Array) -> Float64Array:
        """Of the valid tokens among themselves."""
        with np.errstate(invalid="ignore"):  # infinite ones give NaN
            lowered = logits - self._numbers(logits).max()
        return self._numbers(lowered - np.log(np.exp(lowered).sum()))

    def _numbers(self, scores: Float64Array) -> Float64Array:
        """The scores, unless one of them is not a number: what order those had would be anybody's guess."""
        if np.isnan(scores).any():
            raise ValueError(
                f"logits of prompt {self._prompt} are not numbers, or none of its valid tokens is possible"
            )
        return scores

    def _pop(self) -> Prefix:
        minus, _, parent, token = heapq.heappop(self._open)
        if token < 0:  # the root's own forced run
            return self._root
        matcher = parent.matcher.fork()
        matcher.accept_token(token)
        prefix = self._follow(parent, matcher, [token], parent.begins.get(token, 0))
        prefix.scores = [-minus - parent.score] + [0.0] * ((len(prefix.tokens) - 1) * self._renormalised)
        prefix.score = -minus
        return prefix

    def _follow(self, parent: Prefix | None, matcher: _core.Matcher, tokens: list[int], first_leaf: int = 0) -> Prefix:
        run = matcher.forced_tokens().tolist()
        for token in run:
            if self._item_scores is not None:  # a filter may force a token at a branch
                first_leaf = self._item_scores.first_leaf(matcher.state, first_leaf, token)
            matcher.accept_token(token)
        prefix = Prefix(parent, [*tokens, *run], [], matcher, self._trie.is_leaf(matcher.state))
        prefix.first_leaf = first_leaf
        return prefix

    def _push_prefix(self, prefix: Prefix) -> None:
        assert prefix.parent is not None
        if self._renormalised:
            prefix.scores = [0.0] * len(prefix.tokens)
        self._push(-prefix.score, 0, prefix.parent, -1)

    def _push(self, minus: float, order: int, parent: Prefix, token: int) -> None:
        heapq.heappush(self._open, (minus, order, parent, token))

    def _rank(self, prefix: Prefix) -> float:
        """What items are ordered by."""
        return prefix.score

    def _is_free(self, prefix: Prefix) -> bool:
        """Whether it is an item whose score is known."""
        return prefix.is_item and (self._renormalised or len(prefix.tokens) == len(prefix.scores))

    def _finish(self, prefix: Prefix) -> None:
        self._order += 1
        bisect.insort(self._found, (-self._rank(prefix), self._order, prefix))

    def _last(self) -> float:
        return -self._found[self._wanted - 1][0]

    def _needed(self, chosen: list[Prefix]) -> float:
        """The most that the last of the best items can score: a prefix that reaches it must be opened.

        Disjoint prefixes of masses m hold at most ``sum(m // p)`` items of probability p or more.
        """
        masses = np.array([-entry[0] for entry in self._open] + [prefix.score for prefix in chosen])
        items = np.array([-entry[0] for entry in self._found])
        most = np.log(self._wanted + 1.0)  # one prefix that may hold so many is enough
        low, high = -745.0, 0.0
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            below = np.floor(np.exp(np.minimum(masses - middle, most)))
            if below.sum() + (items >= middle).sum() >= self._wanted:
                low = middle
            else:
                high = middle
        return high
