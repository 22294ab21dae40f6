"""Beam search over a catalog without a model: it asks for rows of scores and says what becomes of them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie.item_filter import items_of, make_filter
from gentrie.search._beam import PROMPT, Beam, make_rules
from gentrie.search._beam_request import BeamRequest
from gentrie.search._beam_scores import AskedRow, log_probabilities
from gentrie.search.beam_rows import BeamItems, BeamRows, BeamStep, Int64Array
from gentrie.search.item_scores import CatalogLeaves, ItemScores
from gentrie.search.item_terms import ItemTerm, LookaheadTerm, ShareTerm
from gentrie.trie import TokenTrie

if TYPE_CHECKING:
    import torch

# A call of the model for more tokens than these takes time in proportion to them: runs are not read ahead then, since
# beams die inside them.
_TOKENS_A_CALL = 512


class BeamStepper:
    """The token-synchronous beam search of ``transformers`` for any engine that can score tokens.

    Every request searches depth by depth, but the model is asked only at depths where a live beam has a choice (under
    ``scope="vocab"`` also for forced tokens, several of a run at once where few beams ask). Requests join and leave at
    any time and need not be at the same depth::

        stepper.add_request(0, beam_width=10)
        while len(rows := stepper.rows()):
            stepper.step(logits_of(rows))
        items = stepper.pop_result(0)

    Where beams are fewer than ``beam_width``, ``transformers`` carries filler beams; here there are none.

    Parameters
    ----------
    trie
        The catalog.
    beam_width, scope, length_penalty, early_stopping, max_length, num_beam_groups, diversity_penalty
        What requests get that name nothing else; see :meth:`add_request`.

    Raises
    ------
    ValueError, TypeError
        For values out of range.
    """

    def __init__(
        self,
        trie: TokenTrie,
        *,
        beam_width: int = 10,
        scope: Literal["trie", "vocab"] = "trie",
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        max_length: int | None = None,
        num_beam_groups: int = 1,
        diversity_penalty: float = 0.0,
    ) -> None:
        _validate.trie("trie", trie)
        self._trie = trie
        longest = trie.max_depth if max_length is None else max_length
        self._defaults: dict[str, Any] = {
            "beam_width": beam_width,
            "scope": scope,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_length": longest,
            "num_beam_groups": num_beam_groups,
            "diversity_penalty": diversity_penalty,
        }
        make_rules(**self._defaults)
        self._requests: dict[int, BeamRequest] = {}
        self._asked: list[AskedRow] = []
        self._rows: BeamRows | None = None
        self._next_handle = 0

    def add_request(
        self,
        request: int,
        *,
        beam_width: int | None = None,
        scope: Literal["trie", "vocab"] | None = None,
        length_penalty: float | None = None,
        early_stopping: bool | Literal["never"] | None = None,
        max_length: int | None = None,
        num_beam_groups: int | None = None,
        diversity_penalty: float | None = None,
        item_filter: Any = None,
        item_scores: Any = None,
        alpha: float | None = None,
        lookahead_scores: Any = None,
    ) -> None:
        """Let a request join; its first row is asked for by the next :meth:`rows` that follows a step.

        Parameters
        ----------
        request
            An integer of one's own, not in use.
        beam_width
            Live beams, and items found at most, 1 to 512.
        scope
            ``"trie"``: softmax over the valid tokens; ``"vocab"``: over the whole vocabulary.
        length_penalty, early_stopping
            As in ``generate``.
        max_length
            Tokens at most; the catalog's longest sequence by default. Sequences that are longer are not found.
        num_beam_groups, diversity_penalty
            Diverse beam search (Vijayakumar et al. 2016, arXiv 1610.02424), as in ``generate``: groups of beams of
            like size, one after the other at each token, whose log-probabilities are lowered by the penalty for each
            beam of an earlier group that has just taken the token (and normalised again under ``scope="trie"``). An
            item that several groups find comes back once, with its best score.
        item_filter
            Items that may be given, as in :class:`TrieLogitsProcessor`.
        item_scores, alpha
            D3 (EMNLP 2024, arXiv 2406.14900): real numbers [items], not negative, column i for item id i, and a
            weight in [0, 1]. A token scores ``alpha * log p + (1 - alpha) * log q``, q being its share of the item
            scores below the allowed tokens. The paper's ``length_penalty`` is 0.
        lookahead_scores
            PAG (SIGIR 2024, arXiv 2404.14600, eq. 6): real numbers [items]. A prefix scores ``log p(prefix) +
            max(score(item) for allowed items below prefix)``.

        Raises
        ------
        ValueError, TypeError
            For values out of range and a request that is already there.
        """
        name = _validate.integer("request", request, 0, 2**63 - 1)
        if name in self._requests:
            raise ValueError(f"request={name} is already there")
        own = {
            "beam_width": beam_width,
            "scope": scope,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_length": max_length,
            "num_beam_groups": num_beam_groups,
            "diversity_penalty": diversity_penalty,
        }
        rules = make_rules(**(self._defaults | {key: value for key, value in own.items() if value is not None}))
        chosen = item_filter if isinstance(item_filter, _core.ItemFilter) else make_filter(self._trie, item_filter)
        term = self._term(item_scores, alpha, lookahead_scores, chosen)
        search = BeamRequest(self._trie, chosen, rules, term)
        search.advance()
        self._requests[name] = search

    def drop_request(self, request: int) -> None:
        """Let a request leave with nothing; rows asked for it may still be given and are ignored."""
        self._search(request)
        del self._requests[request]

    def is_finished(self, request: int) -> bool:
        """Whether :meth:`pop_result` has a result."""
        return self._search(request).done

    def pop_result(self, request: int, limit: int | None = None) -> BeamItems:
        """What a finished request found, the first ``limit``; it leaves.

        Raises
        ------
        ValueError
            For a request that is unknown or not finished.
        """
        search = self._search(request)
        if not search.done:
            raise ValueError(f"request {request} is not finished")
        del self._requests[request]
        best = search.found()[:limit]
        paths = [beam.path() for _, beam in best]
        return BeamItems(
            [tokens for tokens, _, _ in paths],
            np.array([score for score, _ in best]),
            [np.array(scores) for _, scores, _ in paths],
            [items_of(self._trie, search.chosen, tokens) for tokens, _, _ in paths],
            sum(forced for _, _, forced in paths),
        )

    def rows(self) -> BeamRows:
        """What the model has to be asked now; the same until :meth:`step`, whatever requests join meanwhile."""
        if self._rows is not None:
            return self._rows
        requests, handles, parents, states, tokens, lengths = [], [], [], [], [], []
        self._asked = []
        asking = [
            (name, search, beams)
            for name, search in self._requests.items()
            if not search.done
            for beams in search.asking()
        ]
        ahead = _TOKENS_A_CALL // max(1, len(asking))
        for name, search, beams in asking:
            fed, places = search.reading(beams[0], ahead)
            requests.append(name)
            handles.append(self._next_handle)
            parents.append(beams[0].handle)
            states.append(beams[0].state)
            tokens += fed
            lengths.append(len(fed))
            self._asked.append(AskedRow(name, search, beams, self._next_handle, places))
            self._next_handle += 1
        self._rows = BeamRows(
            handles=_int64(handles),
            requests=_int64(requests),
            parents=_int64(parents),
            states=_int64(states),
            tokens=_int64(tokens),
            indptr=_int64([0, *np.cumsum(lengths)]),
            logit_counts=_int64([len(asked.places) for asked in self._asked]),
        )
        return self._rows

    def step(
        self, logits: torch.Tensor | npt.NDArray[Any], *, normalizers: torch.Tensor | npt.NDArray[Any] | None = None
    ) -> BeamStep:
        """Take the scores of the rows that :meth:`rows` asked for.

        Parameters
        ----------
        logits
            [``logit_counts.sum()``, V], an array or a tensor on any device, rows in the order asked for. V is at least
            the catalog's ``vocab_size``, or the number of tokens in ``trie.vocabulary``: columns of these alone.
        normalizers
            [``logit_counts.sum()``]: log of the sum of exponentials of each row over the whole vocabulary. Needed under
            ``scope="vocab"`` where the columns are the catalog's alone.

        Raises
        ------
        ValueError, TypeError
            For other shapes and dtypes, and scores that are not numbers. The stepper is then as before.
        """
        self.rows()
        values = log_probabilities(self._trie, self._asked, logits, normalizers)
        there = [self._requests.get(asked.request) is asked.search for asked in self._asked]
        for asked, known, still in zip(self._asked, values, there, strict=True):
            if still:
                for beam in asked.beams:
                    asked.search.take(beam, asked.handle, known)
        stepped = dict.fromkeys(asked.request for asked, still in zip(self._asked, there, strict=True) if still)
        self._rows, self._asked = None, []
        live: list[tuple[int, Beam]] = []
        for name in stepped:
            search = self._requests[name]
            search.advance()
            live += [] if search.done else [(name, beam) for beam in search.beams]
        return BeamStep(
            requests=_int64([name for name, _ in live]),
            parents=_int64([beam.handle for _, beam in live]),
            tokens=_int64([beam.pending[0] if beam.pending else -1 for _, beam in live]),
            states=_int64([beam.state for _, beam in live]),
            forced=[beam.pending[1:] for _, beam in live],
            finished=[name for name in stepped if self._requests[name].done],
        )

    def handles_in_use(self) -> Int64Array:
        """int64, ascending: rows that live beams continue; an engine may forget all others."""
        used = {beam.handle for search in self._requests.values() if not search.done for beam in search.beams}
        return np.array(sorted(used - {PROMPT}), dtype=np.int64)

    def _search(self, request: int) -> BeamRequest:
        if request not in self._requests:
            raise ValueError(f"request {request} is unknown")
        return self._requests[request]

    @cached_property
    def _leaves(self) -> CatalogLeaves:
        return CatalogLeaves(self._trie)

    def _term(
        self, item_scores: Any, alpha: float | None, lookahead_scores: Any, chosen: _core.ItemFilter | None
    ) -> ItemTerm | None:
        if (item_scores is None) != (alpha is None):
            raise ValueError("item_scores and alpha go together, one of them is missing")
        if item_scores is not None and lookahead_scores is not None:
            raise ValueError("item_scores and lookahead_scores: give one of the two")
        if lookahead_scores is not None:
            ahead = self._leaves.check("lookahead_scores", lookahead_scores, axes="[items]")
            return LookaheadTerm(self._leaves, ahead, chosen)
        if alpha is None:
            return None
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is outside [0, 1]")
        own = self._leaves.check("item_scores", item_scores, axes="[items]", lowest=0)
        return ShareTerm(ItemScores(self._trie, own[None], self._leaves), 0, float(alpha))


def _int64(column: list[int]) -> Int64Array:
    return np.array(column, dtype=np.int64)
