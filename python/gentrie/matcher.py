"""One history moved token by token, with the verbs of XGrammar's matchers, for serving engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie.item_filter import make_filter

if TYPE_CHECKING:
    import torch

    from gentrie.trie import TokenTrie


def make_constraint(
    trie: TokenTrie,
    begin_token_id: int | None,
    eos_token_id: int | Sequence[int] | None,
    unique: bool | Literal["item"],
    item_filter: _core.ItemFilter | None,
    vocab_size: int = 0,
) -> _core.Constraint:
    """The rules for one history, checked. ``vocab_size`` is the model's, 0 where it is not known."""
    limit = max(trie.vocab_size, vocab_size)
    modes = {False: _core.Unique.NO, True: _core.Unique.SEQUENCE, "item": _core.Unique.ITEM}
    return _core.Constraint(
        trie._core,
        _validate.optional_token("begin_token_id", begin_token_id, limit),
        _validate.tokens_of("eos_token_id", eos_token_id, limit),
        modes[_validate.choice("unique", unique, (False, True, "item"))],
        item_filter,
        vocab_size,
    )


class TrieMatcher:
    """Where one history stands and what may follow. One thread at a time; the trie behind it is shared.

    Parameters
    ----------
    trie
        The catalog.
    begin_token_id
        Triggered: free text until this token, then an item, free text again behind the item's last token. None: whole
        response, one item from the start.
    eos_token_id
        Token or tokens that end the response, or, when triggered, the turn (the next token begins another). Default
        in a whole response: the trie's end token; without either a response ends with its item.
    unique
        True: a sequence given since the last end of turn is not given again. ``"item"``: given as often as the
        catalog lists it.
    item_filter
        Items that may be given: ids, or a boolean array indexed by item id.
    vocab_size
        Tokens that the model has (the width of its logits), where it has more than the trie's ``vocab_size``. In free
        text all of them may follow. Default: not known; free text takes any token id, and
        :meth:`get_allowed_tokens` lists those of the trie's vocabulary.

    Raises
    ------
    ValueError, TypeError
        For a control token outside the vocabulary or inside the catalog's sequences, a ``vocab_size`` below the
        trie's, and for bad filters.
    """

    __slots__ = ("_constraint", "_core", "_trie", "_vocab_size")

    def __init__(
        self,
        trie: TokenTrie,
        *,
        begin_token_id: int | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        unique: bool | Literal["item"] = False,
        item_filter: Any = None,
        vocab_size: int | None = None,
    ) -> None:
        self._trie = _validate.trie("trie", trie)
        known = 0 if vocab_size is None else _validate.model_vocab_size(vocab_size, trie.vocab_size)
        self._vocab_size = known or trie.vocab_size
        self._constraint = make_constraint(
            trie, begin_token_id, eos_token_id, unique, make_filter(trie, item_filter), known
        )
        self._core = _core.Matcher(self._constraint)

    @property
    def trie(self) -> TokenTrie:
        """The catalog."""
        return self._trie

    @property
    def state(self) -> int:
        """State of the trie; -2 in free text."""
        return self._core.state

    @property
    def num_accepted(self) -> int:
        """Tokens accepted and not rolled back."""
        return self._core.num_accepted

    def accept_token(self, token: int) -> bool:
        """Take ``token`` if it is allowed; otherwise change nothing and return False."""
        return self._core.accept_token(_validate.token(token))

    def accept_tokens(self, tokens: Sequence[int] | npt.NDArray[Any]) -> bool:
        """Take all of ``tokens``, or none and return False."""
        ids = _validate.token_row("tokens", tokens)
        if self._core.validate_tokens(ids) < ids.size:
            return False
        for token in ids.tolist():
            self._core.accept_token(token)
        return True

    def validate_tokens(self, tokens: Sequence[int] | npt.NDArray[Any]) -> int:
        """How many of ``tokens``, from the first on, would be accepted; changes nothing."""
        return self._core.validate_tokens(_validate.token_row("tokens", tokens))

    def rollback(self, num_tokens: int) -> None:
        """Take back the last ``num_tokens`` tokens.

        Raises
        ------
        ValueError
            If it is negative or more than were accepted.
        """
        self._core.rollback(_validate.integer("num_tokens", num_tokens, 0, self._core.num_accepted))

    def reset(self) -> None:
        """Forget the history."""
        self._core.reset()

    def fork(self) -> TrieMatcher:
        """An independent matcher at the same place, rollback included."""
        copy = object.__new__(TrieMatcher)
        copy._trie, copy._vocab_size, copy._constraint = self._trie, self._vocab_size, self._constraint
        copy._core = self._core.fork()
        return copy

    __copy__ = fork

    def __deepcopy__(self, memo: dict[int, Any]) -> TrieMatcher:
        return self.fork()

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError(
            "a TrieMatcher is not pickled: make one in the other process, from the same trie, and let it accept the "
            "tokens so far"
        )

    def is_terminated(self) -> bool:
        """Whether the response has ended; when triggered, whether the turn has."""
        return self._core.is_terminated()

    def get_allowed_tokens(self) -> npt.NDArray[np.int32]:
        """Tokens that may follow, ascending; int32. In free text [0, vocab_size), the model's where it was given."""
        verdict, tokens = self._core.allowed_tokens()
        if verdict > _core.Verdict.FREE_NO_BEGIN:
            return np.sort(tokens)
        every = np.arange(self._vocab_size, dtype=np.int32)
        return every if verdict == _core.Verdict.FREE else np.delete(every, self._constraint.begin_token_id)

    def fill_next_token_bitmask(self, bitmask: torch.Tensor | npt.NDArray[np.int32], index: int = 0) -> bool:
        """Write row ``index`` of a token bitmask (int32 [batch, words], 1 = allowed, on the CPU).

        Returns whether it forbids anything that the model has; if not, applying it may be skipped. In free text all
        bits are set, those beyond the trie's vocabulary too.

        Raises
        ------
        ValueError, TypeError
            For a bitmask of another dtype, device or shape or whose rows share memory, or an index outside it.
        """
        address, batch, num_words, stride = _validate.bitmask(bitmask, self._vocab_size)
        if index.__class__ is not int or not 0 <= index < batch:
            index = _validate.integer("index", index, 0, batch - 1)
        return self._core.fill_bitmask(address + 4 * index * stride, num_words)

    def find_jump_forward_tokens(self) -> npt.NDArray[np.int32]:
        """Tokens that are the only choice one after the other, up to a branch or the item's end; int32."""
        return self._core.forced_tokens()


def batch_fill_next_token_bitmask(
    matchers: Sequence[TrieMatcher],
    bitmask: torch.Tensor | npt.NDArray[np.int32],
    indices: Sequence[int] | npt.NDArray[Any] | None = None,
    *,
    num_threads: int = 1,
) -> None:
    """Write one row of ``bitmask`` (int32 [batch, words], on the CPU) for each matcher.

    ``indices[i]`` is the row of ``matchers[i]``; default 0, 1, ... . Equal to calling
    :meth:`TrieMatcher.fill_next_token_bitmask` on each.

    Raises
    ------
    ValueError, TypeError
        For a bitmask of another dtype, device or shape or whose rows share memory, and for indices outside it or
        given twice.
    """
    cores = _cores_of(matchers)
    if not cores:
        return
    address, batch, num_words, stride = _validate.bitmask(bitmask, 1)  # the core knows how wide each must be
    if indices is not None:
        indices = _validate.row_indices("indices", indices, len(cores), batch)
    elif len(cores) > batch:
        raise ValueError(f"bitmask has {batch} rows, fewer than the {len(cores)} matchers")
    threads = _validate.integer("num_threads", num_threads, 1, 4096)
    _core.fill_bitmasks(cores, address, num_words, stride, indices, threads)


def batch_accept_token(
    matchers: Sequence[TrieMatcher], tokens: Sequence[int] | npt.NDArray[Any]
) -> npt.NDArray[np.bool_]:
    """Let each matcher take its token, as :meth:`TrieMatcher.accept_token` does.

    Parameters
    ----------
    matchers
        One a row.
    tokens
        Token ids [len(matchers)].

    Returns
    -------
    numpy.ndarray
        bool [len(matchers)]: whether the token was taken. A matcher that refused its token is as it was.

    Raises
    ------
    ValueError, TypeError
        For another number of tokens than of matchers, and for what is no matcher or no token id; no token is taken
        then.
    """
    cores, ids = _cores_of(matchers), _validate.token_row("tokens", tokens)
    if ids.size != len(cores):
        raise ValueError(f"tokens has {ids.size} entries, matchers has {len(cores)}")
    return _core.accept_tokens(cores, ids)


def _cores_of(matchers: Sequence[TrieMatcher]) -> list[_core.Matcher]:
    if set(map(type, matchers)) - {TrieMatcher}:
        for i, matcher in enumerate(matchers):
            if not isinstance(matcher, TrieMatcher):
                raise TypeError(f"matchers[{i}] is a {type(matcher).__name__}, expected a TrieMatcher")
    return [matcher._core for matcher in matchers]
