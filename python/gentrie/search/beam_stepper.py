"""Beam search over a catalog without a model: it asks for rows of scores and says what becomes of them."""

from __future__ import annotations

import operator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie.item_filter import make_filter
from gentrie.search.beam_rows import BeamItems, BeamRows, BeamStep, Int64Array
from gentrie.search.item_scores import CatalogLeaves
from gentrie.trie import TokenTrie

if TYPE_CHECKING:
    import torch

MAX_BEAM_WIDTH = 512
_MAX_LENGTH_PENALTY = 32  # of the longest sequence that a trie takes its power is a float64
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
        self._rules = _checked_rules(**self._defaults)
        self._search = _core.BeamSearch(trie._core)
        self._rows: BeamRows | None = None

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
        if self._search.has(name):
            raise ValueError(f"request={name} is already there")
        given = {
            "beam_width": beam_width,
            "scope": scope,
            "length_penalty": length_penalty,
            "early_stopping": early_stopping,
            "max_length": max_length,
            "num_beam_groups": num_beam_groups,
            "diversity_penalty": diversity_penalty,
        }
        own = {key: value for key, value in given.items() if value is not None}
        rules = _checked_rules(**(self._defaults | own)) if own else self._rules
        chosen = item_filter if isinstance(item_filter, _core.ItemFilter) else make_filter(self._trie, item_filter)
        term = self._term(item_scores, alpha, lookahead_scores, chosen)
        self._search.add(name, rules, chosen, term)

    def drop_request(self, request: int) -> None:
        """Let a request leave with nothing; rows asked for it may still be given and are ignored."""
        self._search.drop(_as_request(request))

    def is_finished(self, request: int) -> bool:
        """Whether :meth:`pop_result` has a result."""
        return self._search.is_finished(_as_request(request))

    def pop_result(self, request: int, limit: int | None = None) -> BeamItems:
        """What a finished request found, the first ``limit``; it leaves.

        Raises
        ------
        ValueError
            For a request that is unknown or not finished.
        """
        most = MAX_BEAM_WIDTH if limit is None else _validate.integer("limit", limit, 0, 2**31 - 1)
        sequences, scores, token_scores, item_ids, num_forced = self._search.take(_as_request(request), most)
        return BeamItems(sequences, scores, token_scores, [self._trie._named(ids) for ids in item_ids], num_forced)

    def rows(self) -> BeamRows:
        """What the model has to be asked now; the same until :meth:`step`, whatever requests join meanwhile."""
        if self._rows is None:
            self._rows = BeamRows(*self._search.rows(_TOKENS_A_CALL))
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
        count = self._search.num_logits
        logits = _real("logits", logits)
        if logits.ndim != 2 or logits.shape[0] != count:
            raise ValueError(f"logits has shape {tuple(logits.shape)}, expected [{count}, V]")
        width = logits.shape[1]
        is_narrow = width == self._num_tokens and width < self._trie.vocab_size
        if not is_narrow and width < self._trie.vocab_size:
            raise ValueError(
                f"logits has {width} columns, expected the vocabulary's {self._trie.vocab_size} or the "
                f"catalog's {self._num_tokens}"
            )
        if normalizers is not None:
            normalizers = _real("normalizers", normalizers)
            if tuple(normalizers.shape) != (count,):
                raise ValueError(f"normalizers has shape {tuple(normalizers.shape)}, expected [{count}]")
        elif is_narrow and self._search.needs_log_sums:
            raise ValueError('normalizers is missing: scope="vocab" needs it beside the catalog\'s columns')
        if _validate.is_tensor(logits) and logits.device.type != "cpu":
            step = self._search.step_places(*self._picked(logits, normalizers, is_narrow))
        else:
            sums = None if normalizers is None else _sums_on_host(normalizers)
            address, is_double, stride, _held = _rows_on_host(logits)
            step = self._search.step(address, is_double, width, stride, is_narrow, sums)
        self._rows = None
        return BeamStep(*step)

    def handles_in_use(self) -> Int64Array:
        """int64, ascending: rows that live beams continue; an engine may forget all others."""
        return self._search.handles_in_use()

    def _picked(self, logits: Any, normalizers: Any, is_narrow: bool) -> tuple[Any, Any]:
        """The logits of the places asked for and the log-sums of the rows, float64, fetched from a device at once."""
        import torch

        tokens, indptr = self._search.places()
        columns = np.searchsorted(self._trie.vocabulary, tokens) if is_narrow else tokens
        rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        at = torch.from_numpy(np.stack([rows, columns])).to(logits.device)
        wanted = logits[at[0], at[1]].double()
        if normalizers is None and not self._search.needs_log_sums:
            return wanted.cpu().numpy(), None
        if normalizers is None:
            normalizers = logits.float().logsumexp(-1)
        sums = torch.as_tensor(normalizers, device=logits.device).double()
        both = torch.cat([wanted, sums]).cpu().numpy()
        return both[: len(tokens)], both[len(tokens) :]

    @cached_property
    def _num_tokens(self) -> int:
        return len(self._trie.vocabulary)

    @cached_property
    def _leaves(self) -> CatalogLeaves:
        return CatalogLeaves(self._trie)

    def _term(
        self, item_scores: Any, alpha: float | None, lookahead_scores: Any, chosen: _core.ItemFilter | None
    ) -> _core.ItemTerm | None:
        if (item_scores is None) != (alpha is None):
            raise ValueError("item_scores and alpha go together, one of them is missing")
        if item_scores is not None and lookahead_scores is not None:
            raise ValueError("item_scores and lookahead_scores: give one of the two")
        core = self._trie._core
        if lookahead_scores is not None:
            return _core.best_term(
                core, chosen, self._leaves.check("lookahead_scores", lookahead_scores, axes="[items]")
            )
        if alpha is None:
            return None
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha={alpha} is outside [0, 1]")
        own = self._leaves.check("item_scores", item_scores, axes="[items]", lowest=0)
        return _core.share_term(core, own, float(alpha))


def _checked_rules(
    *,
    beam_width: int,
    scope: str,
    length_penalty: float,
    early_stopping: Any,
    max_length: int,
    num_beam_groups: int,
    diversity_penalty: float,
) -> _core.BeamRules:
    """ValueError or TypeError by name."""
    if early_stopping not in (True, False, "never"):
        raise ValueError(f'early_stopping={early_stopping!r}, expected True, False or "never"')
    width = _validate.integer("beam_width", beam_width, 1, MAX_BEAM_WIDTH)
    groups = _validate.integer("num_beam_groups", num_beam_groups, 1, width)
    if width % groups:
        raise ValueError(f"num_beam_groups={groups} does not divide beam_width={width}")
    diversity = _finite("diversity_penalty", diversity_penalty)
    if diversity < 0:
        raise ValueError(f"diversity_penalty={diversity} is negative")
    penalty = _finite("length_penalty", length_penalty)
    if abs(penalty) > _MAX_LENGTH_PENALTY:
        raise ValueError(
            f"length_penalty={penalty} is outside [-{_MAX_LENGTH_PENALTY}, {_MAX_LENGTH_PENALTY}]: scores divided by "
            "length ** length_penalty would not be numbers"
        )
    return _core.BeamRules(
        beam_width=width,
        num_beam_groups=groups,
        diversity_penalty=diversity,
        over_vocabulary=_validate.choice("scope", scope, ("trie", "vocab")) == "vocab",
        length_penalty=penalty,
        early_stopping=early_stopping if early_stopping == "never" else "yes" if early_stopping else "no",
        max_length=_validate.integer("max_length", max_length, 1, 2**31 - 1),
    )


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{name}={value!r} is not a finite number")
    return float(value)


def _as_request(request: int) -> int:
    try:
        number = operator.index(request)
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ValueError(f"request {request!r} is unknown")
    return number


def _real(name: str, values: Any) -> Any:
    """An array of real numbers, or the tensor as it is."""
    if _validate.is_tensor(values):
        if values.dtype.is_complex or (values.dtype.itemsize == 1 and not values.dtype.is_floating_point):
            raise TypeError(f"{name} has dtype {values.dtype}, expected real numbers")
        return values
    array = np.asarray(values)
    if array.dtype.kind in "OSUMmbc":
        raise TypeError(f"{name} has dtype {array.dtype}, expected real numbers")
    return array


def _rows_on_host(logits: Any) -> tuple[int, bool, int, Any]:
    """Address of [N, V] whose rows are contiguous, whether it is float64 (else float32), elements from row to row, and
    what holds the memory."""
    if _validate.is_tensor(logits):
        import torch

        if logits.dtype not in (torch.float32, torch.float64):
            logits = logits.float()
        if logits.stride(1) != 1:
            logits = logits.contiguous()
        return logits.data_ptr(), logits.dtype == torch.float64, logits.stride(0), logits
    if logits.dtype not in (np.float32, np.float64):
        logits = logits.astype(np.float32 if logits.dtype == np.float16 else np.float64)
    if logits.strides[1] != logits.itemsize or logits.strides[0] % logits.itemsize:
        logits = np.ascontiguousarray(logits)
    return logits.ctypes.data, logits.dtype == np.float64, logits.strides[0] // logits.itemsize, logits


def _sums_on_host(normalizers: Any) -> npt.NDArray[Any]:
    return np.asarray(normalizers.detach().double().cpu() if _validate.is_tensor(normalizers) else normalizers)
