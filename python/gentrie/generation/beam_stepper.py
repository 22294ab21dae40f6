"""Beam search over a catalog without a model: it asks for rows of scores and says what becomes of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _core, _validate
from gentrie.generation._beam_request import PROMPT, Beam, BeamRequest, BeamRules
from gentrie.item_filter import make_filter
from gentrie.matcher import make_constraint
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

MAX_BEAM_WIDTH = 512


@dataclass(frozen=True)
class BeamRows:
    """What the model has to be asked next, N rows.

    Attributes
    ----------
    handles
        int64 [N], names of the rows, by which later rows refer to them; never used twice.
    requests
        int64 [N], the request of each.
    parents
        int64 [N], handle of the row it continues; -1: the request's prompt.
    states
        int64 [N], state of the trie where the row's next token is chosen, forced tokens fed with it left out.
    tokens, indptr
        int64 [T] and [N + 1]: row i feeds ``tokens[indptr[i]:indptr[i + 1]]`` behind its parent; none stands for the
        prompt's end itself.
    logit_counts
        int64 [N], how many rows of logits :meth:`BeamStepper.step` wants of each: those behind its last tokens. 1 under
        ``scope="trie"``; under ``"vocab"`` one behind each token, or 1 at the prompt's end.
    """

    handles: Int64Array
    requests: Int64Array
    parents: Int64Array
    states: Int64Array
    tokens: Int64Array
    indptr: Int64Array
    logit_counts: Int64Array

    def __len__(self) -> int:
        return len(self.handles)


@dataclass(frozen=True)
class BeamStep:
    """What became of the rows: the live beams of every request that was stepped.

    Attributes
    ----------
    requests, parents, tokens, states
        int64 [N], for each live beam its request, the handle of the row it continues (-1: the prompt), the token chosen
        there (-1: none, the beam is where that row ends) and its state.
    forced
        For each, the tokens that follow the chosen one without a choice so far.
    finished
        Requests that are done; :meth:`BeamStepper.pop_result` gives what they found.
    """

    requests: Int64Array
    parents: Int64Array
    tokens: Int64Array
    states: Int64Array
    forced: list[list[int]]
    finished: list[int]


@dataclass(frozen=True)
class BeamItems:
    """The complete sequences that one request found, best first.

    Attributes
    ----------
    sequences
        Token ids of each.
    scores
        float64 [found]: log-probability over ``length ** length_penalty``.
    token_scores
        For each float64 [tokens], log-probabilities.
    num_forced
        Tokens of them all that were the only choice.
    """

    sequences: list[list[int]]
    scores: Float64Array
    token_scores: list[Float64Array]
    num_forced: int


class BeamStepper:
    """The token-synchronous beam search of ``transformers`` for any engine that can score tokens.

    Every request searches depth by depth, but the model is asked only at depths where a live beam has a choice (under
    ``scope="vocab"`` also for runs of forced tokens, a run at once). Requests join and leave at any time and need not
    be at the same depth::

        stepper.add_request(0, beam_width=10)
        while len(rows := stepper.rows()):
            stepper.step(logits_of(rows))
        items = stepper.pop_result(0)

    Where beams are fewer than ``beam_width``, ``transformers`` carries filler beams; here there are none.

    Parameters
    ----------
    trie
        The catalog.
    beam_width, scope, length_penalty, early_stopping, max_length
        What requests get that name nothing else; see :meth:`add_request`.
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
    ) -> None:
        self._trie = trie
        self._rules = _rules(trie, beam_width, scope, length_penalty, early_stopping, max_length)
        self._requests: dict[int, BeamRequest] = {}
        self._asked: list[_Asked] = []
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
        item_filter: Any = None,
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
        item_filter
            Items that may be given, as in :class:`TrieLogitsProcessor`.

        Raises
        ------
        ValueError, TypeError
            For values out of range and a request that is already there.
        """
        name = _validate.integer("request", request, 0, 2**63 - 1)
        if name in self._requests:
            raise ValueError(f"request={name} is already there")
        rules = _rules(
            self._trie,
            self._rules.beam_width if beam_width is None else beam_width,
            self._rules.scope if scope is None else scope,
            self._rules.length_penalty if length_penalty is None else length_penalty,
            self._rules.early_stopping if early_stopping is None else early_stopping,
            self._rules.max_length if max_length is None else max_length,
        )
        chosen = item_filter if isinstance(item_filter, _core.ItemFilter) else make_filter(self._trie, item_filter)
        matcher = None
        if chosen is not None:
            matcher = _core.Matcher(make_constraint(self._trie, None, None, False, chosen))
        search = BeamRequest(self._trie, matcher, rules)
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
        best = search.finished[:limit]
        paths = [beam.path() for _, beam in best]
        return BeamItems(
            [tokens for tokens, _, _ in paths],
            np.array([score for score, _ in best]),
            [np.array(scores) for _, scores, _ in paths],
            sum(forced for _, _, forced in paths),
        )

    def rows(self) -> BeamRows:
        """What the model has to be asked now; the same until :meth:`step`, whatever requests join meanwhile."""
        if self._rows is not None:
            return self._rows
        requests, handles, parents, states, tokens, lengths = [], [], [], [], [], []
        self._asked = []
        for name, search in self._requests.items():
            for beam in () if search.done else search.asking():
                fed = search.tokens_to_feed(beam)
                requests.append(name)
                handles.append(self._next_handle)
                parents.append(beam.handle)
                states.append(beam.state)
                tokens += fed
                lengths.append(len(fed))
                self._asked.append(_Asked(name, search, beam, self._next_handle, search.places(beam, len(fed))))
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

    def step(self, logits: torch.Tensor, *, normalizers: torch.Tensor | None = None) -> BeamStep:
        """Take the scores of the rows that :meth:`rows` asked for.

        Parameters
        ----------
        logits
            [``logit_counts.sum()``, V] on any device, rows in the order asked for. V is at least the catalog's
            ``vocab_size``, or the number of tokens in ``trie.vocabulary``: columns of these alone.
        normalizers
            [``logit_counts.sum()``]: log of the sum of exponentials of each row over the whole vocabulary. Needed under
            ``scope="vocab"`` where the columns are the catalog's alone.

        Raises
        ------
        ValueError
            For other shapes, and scores that are not numbers. The stepper is then as before.
        """
        rows = self.rows()
        values = self._values(logits, int(rows.logit_counts.sum()), normalizers)
        there = [self._requests.get(asked.request) is asked.search for asked in self._asked]
        for asked, known, still in zip(self._asked, values, there, strict=True):
            if still:
                asked.search.take(asked.beam, asked.handle, known)
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

    def _values(self, logits: torch.Tensor, count: int, normalizers: torch.Tensor | None) -> list[list[Float64Array]]:
        """Log-probabilities of the children at each place asked for, fetched from the device at once."""
        vocabulary = self._trie.vocabulary
        if logits.ndim != 2 or len(logits) != count:
            raise ValueError(f"logits has shape {tuple(logits.shape)}, expected [{count}, V]")
        narrow = logits.shape[1] == len(vocabulary) and len(vocabulary) < self._trie.vocab_size
        if not narrow and logits.shape[1] < self._trie.vocab_size:
            raise ValueError(
                f"logits has {logits.shape[1]} columns, expected the vocabulary's {self._trie.vocab_size} or the "
                f"catalog's {len(vocabulary)}"
            )
        if normalizers is not None and normalizers.shape != (count,):
            raise ValueError(f"normalizers has shape {tuple(normalizers.shape)}, expected [{count}]")
        if not count:
            return []
        over_all = [asked.search.rules.scope == "vocab" for asked in self._asked]
        if normalizers is None and any(over_all):
            if narrow:
                raise ValueError('normalizers is missing: scope="vocab" needs it beside the catalog\'s columns')
            normalizers = logits.float().logsumexp(-1)
        places = [tokens for asked in self._asked for tokens in asked.places]
        lengths = [len(tokens) for tokens in places]
        columns = np.concatenate(places)
        if narrow:
            columns = np.searchsorted(vocabulary, columns)
        row = torch.from_numpy(np.repeat(np.arange(count), lengths)).to(logits.device)
        column = torch.from_numpy(columns).to(logits.device)
        chosen = logits[row, column].double()
        both = [chosen] if normalizers is None else [chosen, chosen - normalizers.double()[row]]
        at_places = np.split(torch.stack(both).cpu().numpy(), np.cumsum(lengths)[:-1], axis=1)
        values: list[list[Float64Array]] = []
        taken = 0
        for asked, whole in zip(self._asked, over_all, strict=True):
            own = [_log_probabilities(raw, whole) for raw in at_places[taken : taken + len(asked.places)]]
            taken += len(asked.places)
            if any(np.isnan(scores).any() for scores in own):
                raise ValueError(
                    f"logits of request {asked.request} are not numbers, or none of its valid tokens is possible"
                )
            values.append(own)
        return values


@dataclass(frozen=True)
class _Asked:
    """A row that the model has been asked for, and the children to score behind its last tokens."""

    request: int
    search: BeamRequest
    beam: Beam
    handle: int
    places: list[Int64Array]


def _log_probabilities(raw: Float64Array, over_all: bool) -> Float64Array:
    if over_all:
        normalised: Float64Array = raw[1]
        return normalised
    logits: Float64Array = raw[0] - raw[0].max()
    return np.asarray(logits - np.log(np.exp(logits).sum()))


def _int64(column: list[int]) -> Int64Array:
    return np.array(column, dtype=np.int64)


def _rules(
    trie: TokenTrie, beam_width: int, scope: str, length_penalty: Any, early_stopping: Any, max_length: int | None
) -> BeamRules:
    if (
        isinstance(length_penalty, bool)
        or not isinstance(length_penalty, int | float)
        or not np.isfinite(length_penalty)
    ):
        raise ValueError(f"length_penalty={length_penalty!r} is not a finite number")
    if early_stopping not in (True, False, "never"):
        raise ValueError(f'early_stopping={early_stopping!r}, expected True, False or "never"')
    longest = trie.max_depth if max_length is None else max_length
    return BeamRules(
        _validate.integer("beam_width", beam_width, 1, MAX_BEAM_WIDTH),
        _validate.choice("scope", scope, ("trie", "vocab")),
        float(length_penalty),
        early_stopping,
        _validate.integer("max_length", longest, 1, 2**31 - 1),
    )
