"""Chooses one token as ``generate`` with a ``TrieLogitsProcessor`` would, looking only at those the catalog allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process

from gentrie import _core
from gentrie.history import NOT_A_NUMBER
from gentrie.kernels import reference

# `generate` puts these behind all other processors, and they read nothing but one row of scores: over the allowed
# tokens alone they say what they say over the vocabulary with all others at -inf.
_WARPERS = tuple(
    getattr(logits_process, name)
    for name in (
        "TemperatureLogitsWarper",
        "TopHLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "MinPLogitsWarper",
        "TypicalLogitsWarper",
        "EpsilonLogitsWarper",
        "EtaLogitsWarper",
        "LogitNormalization",
    )
    if hasattr(logits_process, name)
)

# They count their calls, run the model themselves, or expect other rows beside a row.
_REFUSED = (
    "UnbatchedClassifierFreeGuidanceLogitsProcessor",
    "ClassifierFreeGuidanceLogitsProcessor",
    "SynthIDTextWatermarkLogitsProcessor",
    "WatermarkLogitsProcessor",
)


class TokenChoice:
    """Applies the processors of a ``generate`` call to one row and picks a token.

    Parameters
    ----------
    processors
        As ``generate`` prepared them: its own, the caller's, then the warpers of sampling. The catalog comes in
        before the warpers, where a ``TrieLogitsProcessor`` of the caller's would stand.
    num_rows
        Rows of the call.
    do_sample
        Sample from the softmax, or take the highest score, the lowest id among equals.
    log_probs
        Whether :meth:`pick` tells the tokens' log-probabilities.

    Raises
    ------
    ValueError
        Naming a processor that needs to see every single step.
    """

    def __init__(
        self, processors: LogitsProcessorList, *, num_rows: int, do_sample: bool, log_probs: bool = False
    ) -> None:
        for processor in processors:
            if type(processor).__name__ in _REFUSED:
                raise ValueError(
                    f"logits_processor: {type(processor).__name__} has to see every step, and forced tokens take none; "
                    "use generate with a TrieLogitsProcessor"
                )
        split = len(processors)
        while split > 0 and isinstance(processors[split - 1], _WARPERS):
            split -= 1
        self._processors = LogitsProcessorList(processors[:split])
        self._warpers = LogitsProcessorList(processors[split:])
        self._do_sample = do_sample
        self._log_probs = log_probs
        self._num_rows = num_rows

    def processed(self, histories: Sequence[torch.Tensor], rows: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Scores [n, vocabulary] that the processors make of the logits of some rows.

        Processors may know rows by their number and want histories of one length, so that each length has a call of
        its own, in which the other rows repeat one of that length.

        Parameters
        ----------
        histories
            int64 [1, length], one for each of ``rows``.
        rows
            Numbers of the rows.
        logits
            float32 [n, vocabulary]; may be written to.
        """
        if not self._processors:
            return logits
        if self._num_rows == 1:
            return self._processors(histories[0], logits)  # type: ignore[arg-type]
        scores = torch.empty_like(logits)
        groups: dict[int, list[int]] = {}
        for at, history in enumerate(histories):
            groups.setdefault(history.shape[1], []).append(at)
        for group in groups.values():
            numbers = [rows[at] for at in group]
            ids = histories[group[0]].repeat(self._num_rows, 1)
            ids[numbers] = torch.cat([histories[at] for at in group])
            whole = logits[group[:1]].repeat(self._num_rows, 1)
            whole[numbers] = logits[group]
            scores[group] = self._processors(ids, whole)[numbers]  # type: ignore[arg-type]
        return scores

    def pick(
        self, scores: torch.Tensor, allowed: npt.NDArray[np.int32] | None, closed: int | None, *, row: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """One row's token, int64 [], and its log-probability, float32 [], or None where it is not asked for.

        Parameters
        ----------
        scores
            float32 [1, vocabulary].
        allowed
            int32 [n], ascending, the only tokens that may follow; None in free text.
        closed
            A token that may not follow in free text, or None.
        row
            Its number, for messages.

        Raises
        ------
        ValueError
            If the score of an allowed token is not a number.
        """
        tokens = None
        if allowed is not None:
            tokens = torch.from_numpy(allowed).to(scores.device, torch.int64)
            scores = scores[:, tokens]
            if bool(scores.isnan().any()):
                raise ValueError(f"row {row}: {NOT_A_NUMBER}")
            # Where other processors forbid all that the catalog allows, the catalog prevails.
            scores = reference.usable(scores[0], torch.zeros_like(tokens), 1)[None]
        elif closed is not None:
            scores = scores.index_fill(1, torch.tensor([closed], device=scores.device), -torch.inf)
        if self._warpers:
            scores = self._warpers(None, scores)  # type: ignore[arg-type]
        at = torch.multinomial(scores.softmax(-1), num_samples=1)[0] if self._do_sample else scores.argmax(-1)
        token = at if tokens is None else tokens[at]
        log_prob = scores.log_softmax(-1)[0, at].reshape(()) if self._log_probs else None
        return token.reshape(()), log_prob


def what_may_follow(matcher: _core.Matcher, begin_token_id: int) -> tuple[npt.NDArray[np.int32] | None, int | None]:
    """``allowed`` and ``closed`` of :meth:`TokenChoice.pick` for a history inside or outside an item."""
    verdict, tokens = matcher.allowed_tokens()
    if verdict > _core.Verdict.FREE_NO_BEGIN:
        return np.sort(tokens), None
    return None, begin_token_id if verdict == _core.Verdict.FREE_NO_BEGIN else None
