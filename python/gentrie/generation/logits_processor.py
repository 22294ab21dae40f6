"""The constraint as a ``LogitsProcessor`` of ``transformers``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import LogitsProcessor

from gentrie import _core, _validate
from gentrie.bitmask import minus_infinity
from gentrie.history import HistoryRules
from gentrie.trie import TokenTrie

if TYPE_CHECKING:
    from gentrie.device.masker import DeviceMasker

# What `transformers` gives beams that only fill up; half precision does not reach it.
_LAST_RESORT = {torch.float16: -32768.0, torch.bfloat16: -1e9, torch.float32: -1e9, torch.float64: -1e9}
_LAST_RESORT_BITS = {
    torch.float16: 0xF800,
    torch.bfloat16: 0xCE6E,
    torch.float32: 0xCE6E6B28,
    torch.float64: 0xC1CDCD6500000000,
}


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
    allows, the catalog prevails: those tokens get -1e9 (half precision: -32768), which any other beam beats.

    Every row that ``generate`` returns with the end token and a score above -1e8 is in the catalog where
    ``max_new_tokens >= trie.max_depth``; beam search fills up with rows of about -1e9 where there are fewer
    continuations than beams (divided by ``length ** length_penalty``), and shorter limits cut items off.

    Parameters
    ----------
    trie
        The catalog.
    begin_token_id
        An item begins behind each of these tokens.
    eos_token_id
        Token or tokens that end the response or the turn. Default in a whole response: the trie's end token. When
        triggered, give the model's: ``unique`` and ``on_dead="eos"`` need it.
    prompt_length
        Where the response begins in ``input_ids``: the padded width of the prompts; 1 for encoder-decoders. One int,
        or one a row or a prompt.
    after
        Token ids; the response begins behind their last occurrence in each row.
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
        For arguments that contradict each other, control tokens outside the vocabulary or inside the catalog's
        sequences; at a call for scores narrower than the vocabulary, several devices, and as ``on_dead`` says.
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
        infinity = minus_infinity(values.dtype)
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
        _core.mask_scores(
            allowed,
            self._rules.begin_token_id,
            values.data_ptr(),
            masked.data_ptr(),
            width,
            values.element_size(),
            infinity,
            _LAST_RESORT_BITS[values.dtype],
        )
        return masked  # type: ignore[return-value]

    def check(self) -> None:
        """Wait for the GPU and raise what was wrong with the calls so far; on the CPU they have raised it themselves.

        Raises
        ------
        ValueError
            If at a call every row had left the trie, or a row could not go on and no token says how to end it.
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
    by_row = torch.zeros(len(verdicts), dtype=torch.bool, device=scores.device)
    by_row[at[0][~chosen.isneginf()]] = True  # rows with an allowed token that the scores do not forbid
    masked[at] = torch.where(by_row[at[0]], chosen, _LAST_RESORT[scores.dtype])
    return masked
