"""What whole histories may go on with, as ``generate`` hands them over at every step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie.item_filter import ItemFilter, make_filters
from gentrie.matcher import make_constraint

if TYPE_CHECKING:
    import torch

    from gentrie.trie import TokenTrie

_TOKENS_SHOWN = 12

NOT_A_NUMBER = (
    "the score of a token that the catalog allows was not a number: the model's logits, or what other logits "
    "processors made of them, hold NaN"
)


class HistoryRules:
    """The arguments of :class:`gentrie.generation.TrieLogitsProcessor`, checked, and what they say of a batch.

    Every call reads the histories anew: nothing is kept from one to the next, so that beams may be reordered, rows
    padded on either side, and one object used for any number of ``generate`` calls.
    """

    def __init__(
        self,
        trie: TokenTrie,
        *,
        begin_token_id: int | None,
        eos_token_id: int | Sequence[int] | None,
        prompt_length: int | Sequence[int] | npt.NDArray[Any] | None,
        after: Sequence[int] | None,
        unique: bool | Literal["item"],
        item_filter: Any,
        on_dead: Literal["eos", "error", "mask"],
        vocab_size: int | None = None,
    ) -> None:
        _validate.trie("trie", trie)
        given = [
            name
            for name, value in (
                ("begin_token_id", begin_token_id),
                ("prompt_length", prompt_length),
                ("after", after),
            )
            if value is not None
        ]
        if len(given) != 1:
            raise ValueError(
                f"{' and '.join(given) if given else 'none'} given: exactly one of begin_token_id (items inside free "
                "text), prompt_length or after (the response is one item) says where items begin"
            )
        self.trie = trie
        self.vocab_size = trie.vocab_size  # of the model, as far as known
        if vocab_size is not None:
            self.vocab_size = _validate.model_vocab_size(vocab_size, trie.vocab_size)
        self.on_dead: str = _validate.choice("on_dead", on_dead, ("eos", "error", "mask"))
        self.eos_token_ids = _validate.tokens_of("eos_token_id", eos_token_id, trie.vocab_size)
        if begin_token_id is not None and not self.eos_token_ids and (unique is not False or on_dead == "eos"):
            raise ValueError(
                "eos_token_id is missing: with begin_token_id it says where a turn ends, which unique and "
                "on_dead='eos' need; give the model's, model.generation_config.eos_token_id"
            )
        self.begin_token_id = _validate.optional_token("begin_token_id", begin_token_id, trie.vocab_size)
        self.prompt_lengths = _prompt_lengths(prompt_length)
        self.after = _after(after, trie.vocab_size)
        self.unique = unique
        self.filters = make_filters(trie, item_filter)
        constraints = [make_constraint(trie, begin_token_id, eos_token_id, unique, row) for row in self.filters]
        self._reader = _core.HistoryReader(constraints, self.after, on_dead == "mask")

    def __copy__(self) -> HistoryRules:
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> HistoryRules:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {
            "begin_token_id": None if self.begin_token_id < 0 else self.begin_token_id,
            "eos_token_id": self.eos_token_ids or None,
            "prompt_length": self.prompt_lengths,
            "after": self.after.tolist() or None,
            "unique": self.unique,
            "item_filter": [None if core is None else ItemFilter(core, self.trie, "") for core in self.filters],
            "on_dead": self.on_dead,
            "vocab_size": self.vocab_size,
        }
        return _unpickled, (self.trie, arguments)

    def allowed(self, input_ids: torch.Tensor) -> _core.AllowedRows | None:
        """What each row of [batch, length] on the CPU may go on with; None where every row may with anything.

        Raises
        ------
        ValueError
            If every row has left the trie; if any has or is emptied, under ``on_dead="error"``; if a row holds no
            ``after``; if a prompt length exceeds the history; if a complete response may not end because no token
            says how.
        """
        allowed, ids = self._read(self._reader, input_ids, self.prompt_lengths)
        if allowed is not None and not allowed.is_open:
            if self.on_dead == "eos" and allowed.num_dead == len(ids):
                self._refuse_row(allowed, ids, _core.Verdict.DEAD)
            self._refuse_closed(allowed, ids)
        return allowed

    def allowed_list(self, batch_id: int, input_ids: torch.Tensor) -> list[int]:
        """``prefix_allowed_tokens_fn`` of ``transformers``: one history [length], the allowed ids as a list.

        ``batch_id`` is the prompt's number. One history cannot tell a beam that fills up from a mistake, so that a
        history that has left the trie raises under ``on_dead="error"`` only.
        """
        if not _validate.is_tensor(input_ids):
            raise TypeError(f"input_ids is a {type(input_ids).__name__}, expected a torch.Tensor")
        if input_ids.dim() != 1 or (input_ids.is_floating_point() and input_ids.numel() > 0):
            raise TypeError(
                f"input_ids has shape {tuple(input_ids.shape)} and dtype {input_ids.dtype}, expected integers [length]"
            )
        reader, lengths = self._reader, self.prompt_lengths
        if reader.num_constraints > 1:
            reader = reader.row(_validate.integer("batch_id", batch_id, 0, reader.num_constraints - 1))
        if lengths is not None and lengths.size > 1:
            row = _validate.integer("batch_id", batch_id, 0, lengths.size - 1)
            lengths = lengths[row : row + 1]
        allowed, ids = self._read(reader, input_ids.cpu().reshape(1, -1), lengths)
        every = list(range(self.vocab_size))
        if allowed is None:
            return every
        if not allowed.is_open:
            self._refuse_closed(allowed, ids)
        if allowed.verdicts[0] == _core.Verdict.FREE_NO_BEGIN:
            del every[self.begin_token_id]
            return every
        tokens: list[int] = allowed.tokens(0).tolist()
        return tokens

    @staticmethod
    def _read(
        reader: _core.HistoryReader, input_ids: torch.Tensor, prompt_lengths: npt.NDArray[np.int64] | None
    ) -> tuple[_core.AllowedRows | None, torch.Tensor]:
        torch = sys.modules["torch"]
        ids = input_ids
        is_narrow = ids.dtype is torch.int32
        if not (is_narrow or ids.dtype is torch.int64) or not ids.is_contiguous():
            ids, is_narrow = ids.long().contiguous(), False
        rows, length = ids.shape
        return reader.allowed(_validate.address("input_ids", ids), is_narrow, rows, length, prompt_lengths), ids

    def _refuse_closed(self, allowed: _core.AllowedRows, ids: torch.Tensor) -> None:
        if self.on_dead == "error":
            for verdict in (_core.Verdict.DEAD, _core.Verdict.EMPTIED):
                self._refuse_row(allowed, ids, verdict)
        if self.on_dead != "mask" and allowed.first_closed < len(ids):
            raise ValueError(
                f"row {allowed.first_closed} may not go on and no token says how to end it: give eos_token_id, or "
                f"stop at max_new_tokens={self.trie.max_depth}"
            )

    @staticmethod
    def _refuse_row(allowed: _core.AllowedRows, ids: torch.Tensor, verdict: _core.Verdict) -> None:
        """Name the first row of this kind, if there is one."""
        for row in np.flatnonzero(allowed.verdicts == verdict)[:1]:
            tail = f"its last tokens are {ids[row, -_TOKENS_SHOWN:].tolist()}"
            if verdict == _core.Verdict.EMPTIED:
                raise ValueError(f"input_ids[{row}]: item_filter and earlier items leave nothing to give; {tail}")
            raise ValueError(
                f"input_ids[{row}] has left the trie, as have {allowed.num_dead} of {len(ids)} rows; {tail}. Check "
                "where items begin (begin_token_id, prompt_length, after) and that prompt and catalog were made with "
                "the same tokenizer and context"
            )


def _unpickled(trie: TokenTrie, arguments: dict[str, Any]) -> HistoryRules:
    return HistoryRules(trie, **arguments)


def _prompt_lengths(value: int | Sequence[int] | npt.NDArray[Any] | None) -> npt.NDArray[np.int64] | None:
    if value is None:
        return None
    if isinstance(value, bool):
        raise TypeError(f"prompt_length={value!r} is a bool, expected an integer")
    lengths = np.atleast_1d(_validate.int64_array("prompt_length", value))
    if lengths.ndim != 1 or lengths.size == 0:
        raise ValueError(f"prompt_length has shape {lengths.shape}, expected one int or one a row")
    for row in np.flatnonzero(lengths < 0)[:1]:
        raise ValueError(f"prompt_length[{row}]={lengths[row]} is negative")
    return lengths


def _after(value: Sequence[int] | None, vocab_size: int) -> npt.NDArray[np.int64]:
    if value is None:
        return np.empty(0, dtype=np.int64)
    if not isinstance(value, Iterable):
        value = [value]
    tokens = _validate.token_row("after", list(value))
    if tokens.size == 0:
        raise ValueError("after is empty, expected the tokens that stand before the item")
    for position in np.flatnonzero((tokens < 0) | (tokens >= vocab_size))[:1]:
        raise ValueError(f"after[{position}]={tokens[position]} is outside [0, vocab_size={vocab_size})")
    return tokens


def prefix_allowed_tokens_fn(
    trie: TokenTrie,
    *,
    begin_token_id: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    prompt_length: int | Sequence[int] | npt.NDArray[Any] | None = None,
    after: Sequence[int] | None = None,
    unique: bool | Literal["item"] = False,
    item_filter: Any = None,
    on_dead: Literal["eos", "error", "mask"] = "eos",
    vocab_size: int | None = None,
) -> Callable[[int, torch.Tensor], list[int]]:
    """A function ``(batch_id, input_ids) -> list[int]`` for code that wants a ``prefix_allowed_tokens_fn``.

    The arguments are those of :class:`gentrie.generation.TrieLogitsProcessor`, which does the same at a fraction of the
    cost: ``transformers`` turns each list into a mask of the whole vocabulary. ``vocab_size``: tokens that the model
    has, where it has more than this trie's; free text may use them all.
    """
    return HistoryRules(
        trie,
        begin_token_id=begin_token_id,
        eos_token_id=eos_token_id,
        prompt_length=prompt_length,
        after=after,
        unique=unique,
        item_filter=item_filter,
        on_dead=on_dead,
        vocab_size=vocab_size,
    ).allowed_list
