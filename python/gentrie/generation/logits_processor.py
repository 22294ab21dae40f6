"""The constraint as a ``LogitsProcessor`` of ``transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor

from gentrie import _core, _validate
from gentrie.bitmask import minus_infinity
from gentrie.history import NOT_A_NUMBER, HistoryRules
from gentrie.kernels import reference
from gentrie.trie import TokenTrie

if TYPE_CHECKING:
    from gentrie.device.masker import DeviceMasker


class TrieLogitsProcessor(LogitsProcessor):
    """Lets a model write nothing inside an item but what the catalog holds.

    Exactly one of ``begin_token_id``, ``prompt_length`` and ``after`` says where items begin.

    *Triggered* (``begin_token_id``; RecLM-cgen): free text until the begin token, an item until its last token, free
    text again, any number of times. *Whole response* (``prompt_length`` or ``after``; BEAR, semantic ids): the
    response is one item.

    On a GPU histories are read and scores masked there, and no call waits for the device: what is wrong with one is
    raised at a later one or by :meth:`check`. ``unique`` and ``on_dead="error"`` bring each history to the host.

    The processor reads each history anew and keeps nothing: one instance serves any number of ``generate`` calls,
    greedy, sampling or beam search, batches padded on either side. It returns a new tensor and never writes to its
    arguments. Rows in free text come back bit for bit. Where other processors forbid every token that the catalog
    allows (all score -2**20, float16: -65504, or less), the catalog prevails: the best of those tokens get -8192, which
    nearly any other beam beats. Scores above 2**20 (float16: 65504) become that, infinity too: sums stay finite.
    Where the score of a token that the catalog allows is NaN, so is what the model says, and it raises.

    Every row that ``generate`` returns with the end token and a score above -1e8 is in the catalog where
    ``max_new_tokens >= trie.max_depth``; beam search fills up with rows of about -1e9 where there are fewer
    continuations than beams (divided by ``length ** length_penalty``), and shorter limits cut items off. A processor
    that stands behind this one has the last word: it must leave a token, and raise none by anything near 1e9.

    Parameters
    ----------
    trie
        The catalog.
    begin_token_id
        An item begins behind each of these tokens.
    eos_token_id
        Token or tokens that end the response or the turn. Default in a whole response: the trie's end token. When
        triggered, give the model's: ``unique`` and ``on_dead="eos"`` need it. ``generate`` ends a row at any of
        ``model.generation_config.eos_token_id``, and a processor is not told which those are: where one of them might
        be a token of an item (semantic ids), give them all, and one that is will be refused instead of cutting items.
    prompt_length
        Where the response begins in ``input_ids``: the padded width of the prompts; 1 for encoder-decoders. One int,
        or one a row or a prompt.
    after
        Token ids; the response begins behind their last occurrence in each row. In a batch padded on the right, where
        the longest prompt ends with them, the padding behind them is passed over. They must not stand inside items.
    unique
        True: a sequence given since the last end of turn is not given again. ``"item"``: given as often as the
        catalog lists it. A branch with nothing left is closed, and in the end the begin token is.
    item_filter
        Items that may be given: ids, or a boolean array indexed by item id; or a list of those, one a row or a
        prompt (None: every item).
    on_dead
        What becomes of a row whose history has left the trie or that filter and earlier items have emptied:
        ``"eos"``, it may only end, and where *every* row of a call has left the trie, which is a mistake, it raises;
        ``"mask"``, all of it is -inf; ``"error"``, it raises.

    Raises
    ------
    ValueError, TypeError
        For arguments that contradict each other, control tokens outside the vocabulary, control tokens or ``after``
        inside the catalog's sequences; at a call for scores narrower than the vocabulary, several devices, NaN as the
        score of a token that an item may go on with, and as ``on_dead`` says.
    """

    def __init__(
        self,
        trie: TokenTrie,
        *,
        begin_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        prompt_length: int | Sequence[int] | npt.NDArray[Any] | None = None,
        after: Sequence[int] | None = None,
        unique: bool | Literal["item"] = False,
        item_filter: Any = None,
        on_dead: Literal["eos", "error", "mask"] = "eos",
    ) -> None:
        self._rules = HistoryRules(
            trie,
            begin_token_id=begin_token_id,
            eos_token_id=eos_token_id,
            prompt_length=prompt_length,
            after=after,
            unique=unique,
            item_filter=item_filter,
            on_dead=on_dead,
        )
        self._maskers: dict[torch.device, DeviceMasker] = {}

    def __getstate__(self) -> dict[str, Any]:
        """The rules; what lies on a GPU is made anew."""
        return {"_rules": self._rules, "_maskers": {}}

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores [batch, vocabulary] with -inf wherever a token may not follow ``input_ids`` [batch, length]."""
        ids, values = _validate.history_and_scores(input_ids, scores, self._rules.trie.vocab_size)
        is_on_cpu = values.device.type == "cpu"
        infinity, resort, highest = _patterns(values.dtype)
        if values.is_cuda and self._rules.unique is False and self._rules.on_dead != "error":
            if values.device not in self._maskers:
                from gentrie.device.masker import DeviceMasker  # loads Triton

                self._maskers[values.device] = DeviceMasker(self._rules, values.device)
            return self._maskers[values.device](ids, values)  # type: ignore[return-value]
        allowed = self._rules.allowed(ids if is_on_cpu else ids.cpu())
        if allowed is None:
            return values.clone()  # type: ignore[return-value]
        if not is_on_cpu:
            masked = mask_with_torch(allowed, self._rules.begin_token_id, values)
            return masked  # type: ignore[return-value]
        values = values.contiguous()
        masked, width = torch.empty_like(values), values.shape[1]
        wrong = _core.mask_scores(
            allowed,
            self._rules.begin_token_id,
            _validate.address("scores", values),
            masked.data_ptr(),
            width,
            values.element_size(),
            infinity,
            resort,
            highest,
        )
        if wrong < len(masked):
            _refuse_nan(wrong)
        return masked  # type: ignore[return-value]

    def check(self) -> None:
        """Wait for the GPU and raise what was wrong with the calls so far; on the CPU they have raised it themselves.

        Raises
        ------
        ValueError
            If at a call every row had left the trie, a row could not go on and no token says how to end it, or the
            score of a token that the catalog allows was not a number.
        """
        for masker in self._maskers.values():
            masker.check()


def mask_with_torch(allowed: _core.AllowedRows, begin_token_id: int, scores: torch.Tensor) -> torch.Tensor:
    """The same with torch operations, for scores [batch, vocabulary] on any device."""
    verdicts = allowed.verdicts
    masked = torch.full_like(scores, -torch.inf)
    free = torch.from_numpy(np.flatnonzero(verdicts <= _core.Verdict.FREE_NO_BEGIN)).to(scores.device)
    masked[free] = scores[free]
    closed = torch.from_numpy(np.flatnonzero(verdicts == _core.Verdict.FREE_NO_BEGIN)).to(scores.device)
    masked[closed, begin_token_id] = -torch.inf
    tokens = [allowed.tokens(row) for row in range(len(verdicts))]
    rows = np.repeat(np.arange(len(verdicts)), [len(row) for row in tokens])
    at = (
        torch.from_numpy(rows).to(scores.device),
        torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *tokens])).to(scores.device),
    )
    chosen = scores[at]
    is_item = torch.from_numpy(verdicts[rows] == _core.Verdict.ITEM).to(scores.device)
    for place in (chosen.isnan() & is_item).nonzero()[:1].flatten().tolist():
        _refuse_nan(int(rows[place]))
    masked[at] = reference.usable(chosen, at[0], len(verdicts))
    return masked


@cache
def _patterns(dtype: torch.dtype) -> tuple[int, int, int]:
    """Bit patterns of -inf, of the last resort and of the highest score."""
    infinity = minus_infinity(dtype)
    as_integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    numbers = torch.tensor([reference.LAST_RESORT, reference.HIGHEST[dtype]], dtype=dtype)
    resort, highest = (bits % (1 << 8 * dtype.itemsize) for bits in numbers.view(as_integer).tolist())
    return infinity, resort, highest


def _refuse_nan(row: int) -> NoReturn:
    raise ValueError(f"scores[{row}]: {NOT_A_NUMBER}")
