"""The fixed text around the items of a response, such as the numbers of a list."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gentrie import _validate

_ITEM = "{item}"


class ResponseTemplate:
    """What a response says around its items; it then has exactly as many items as the template has places.

    Parameters
    ----------
    parts
        Token ids before the first item, between each two, and after the last: one list more than items. Begin tokens,
        the items themselves and the end of the turn are left out; any list may be empty.

    Raises
    ------
    ValueError, TypeError
        For fewer than two parts or values that are no token ids.
    """

    __slots__ = ("parts",)

    def __init__(self, parts: Sequence[Sequence[int]]) -> None:
        if len(parts) < 2:
            raise ValueError(f"parts has {len(parts)} entries, expected one more than items, so two at least")
        self.parts: tuple[tuple[int, ...], ...] = tuple(
            tuple(_validate.integer(f"parts[{row}][{at}]", token, 0, 2**31 - 1) for at, token in enumerate(part))
            for row, part in enumerate(parts)
        )

    @classmethod
    def from_text(cls, text: str, tokenizer: Any, *, begin_token: str, end_token: str) -> ResponseTemplate:
        """Encode a text that holds ``{item}`` where an item goes.

        The text is encoded whole, without special tokens added, with ``begin_token`` and ``end_token`` in each place,
        so that a tokenizer that treats the text around special tokens in its own way does so here.

        Parameters
        ----------
        text
            Such as ``"1. {item}\\n2. {item}"``; it is what the model writes, so its spaces matter.
        tokenizer
            A ``transformers`` tokenizer.
        begin_token, end_token
            Special tokens of it, such as ``"<SOI>"`` and ``"<EOI>"``.

        Raises
        ------
        ValueError
            If the text holds no ``{item}`` or one of the two tokens, or they are no single tokens of the tokenizer.
        """
        begin, end = (_single(tokenizer, name, token) for name, token in _named(begin_token, end_token))
        if _ITEM not in text:
            raise ValueError(f"text={text!r} holds no {_ITEM}")
        for name, token in _named(begin_token, end_token):
            if token in text:
                raise ValueError(f"text={text!r} holds {name}={token!r}, which {_ITEM} stands for")
        ids = tokenizer(text.replace(_ITEM, begin_token + end_token), add_special_tokens=False)["input_ids"]
        parts: list[list[int]] = [[]]
        for at, token in enumerate(ids):
            if token == end and at > 0 and ids[at - 1] == begin:
                parts[-1].pop()
                parts.append([])
            else:
                parts[-1].append(token)
        if len(parts) != text.count(_ITEM) + 1:
            raise ValueError(f"the tokenizer does not keep {begin_token!r} and {end_token!r} apart in {text!r}")
        return cls(parts)

    @classmethod
    def numbered(
        cls,
        num_items: int,
        tokenizer: Any,
        *,
        begin_token: str,
        end_token: str,
        line: str = "{number}. {item}",
        separator: str = "\n",
    ) -> ResponseTemplate:
        """A list of ``num_items`` lines, ``"1. {item}\\n2. {item}..."`` (RecLM-cgen)."""
        count = _validate.integer("num_items", num_items, 1, 2**20)
        text = separator.join(line.replace("{number}", str(number)) for number in range(1, count + 1))
        return cls.from_text(text, tokenizer, begin_token=begin_token, end_token=end_token)

    @property
    def num_items(self) -> int:
        """Items in a response."""
        return len(self.parts) - 1

    def check(self, vocab_size: int, control: dict[str, Sequence[int]]) -> None:
        """Refuse tokens outside the vocabulary and control tokens (by name) in the fixed text.

        Raises
        ------
        ValueError
            Naming part, position and token.
        """
        for row, part in enumerate(self.parts):
            for at, token in enumerate(part):
                if token >= vocab_size:
                    raise ValueError(f"template.parts[{row}][{at}]={token} is outside [0, {vocab_size})")
                for name, tokens in control.items():
                    if token in tokens:
                        raise ValueError(f"template.parts[{row}][{at}]={token} is the {name}, which has its own place")


def _named(begin_token: str, end_token: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return ("begin_token", begin_token), ("end_token", end_token)


def _single(tokenizer: Any, name: str, token: str) -> int:
    ids: list[int] = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{name}={token!r} is {len(ids)} tokens of this tokenizer, expected one special token")
    return ids[0]
