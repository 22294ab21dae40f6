"""One history with items inside: what has been said, and what has to be said next whatever the model thinks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gentrie import _core
from gentrie.generation.response_template import ResponseTemplate
from gentrie.item_filter import items_of
from gentrie.trie import TokenTrie

_FREE_TEXT = -2


class ItemRow:
    """A matcher, the place in the template, and the tokens that wait to be fed to the model.

    Parameters
    ----------
    number
        The row, for messages.
    matcher
        At the start; the prompt is read into it.
    chosen
        Its filter, or None.
    trie
        Its catalog.
    prompt
        Token ids, padding left out.
    begin_token_id, eos_token_ids
        Control tokens.
    template
        Or None.

    Raises
    ------
    ValueError
        If the prompt ends inside an item that the catalog lacks or that may not be given.
    """

    def __init__(
        self,
        number: int,
        matcher: _core.Matcher,
        chosen: _core.ItemFilter | None,
        trie: TokenTrie,
        prompt: Sequence[int],
        begin_token_id: int,
        eos_token_ids: Sequence[int],
        template: ResponseTemplate | None,
    ) -> None:
        self.number = number
        self.matcher = matcher
        self._chosen = chosen
        self._trie = trie
        self._begin = begin_token_id
        self._eos = eos_token_ids
        self._template = template
        self._part = 0
        self._open = self._read(prompt)
        self.ended = False
        """Whether the template is complete."""

    def start(self) -> list[int]:
        """Tokens that are certain before the model has been asked for one."""
        return self._forced()

    def take(self, token: int) -> list[int]:
        """Tokens that are certain once ``token`` has been chosen, itself first."""
        # Ids beyond the catalog's vocabulary may be written in free text and mean nothing to it.
        if token < self._trie.vocab_size and not self.matcher.accept_token(token):
            raise RuntimeError(f"row {self.number}: token {token} was chosen but may not follow")
        return [token, *self._forced()]

    def items(self, response: Sequence[int]) -> list[tuple[npt.NDArray[np.int64], slice]]:
        """Item ids of each complete item of the response, and where in it its tokens behind the begin token stand.

        An item begun in the prompt comes first; of it, the response has the tokens from its start on.
        """
        tokens = [*self._open, *response]
        found: list[tuple[npt.NDArray[np.int64], slice]] = []
        at = 0
        while at < len(tokens):
            if tokens[at] != self._begin:
                at += 1
                continue
            length = _item_length(self._trie, tokens[at + 1 :])
            if length is None:
                break
            begin, end = at + 1, at + 1 + length
            place = slice(max(begin - len(self._open), 0), end - len(self._open))
            found.append((items_of(self._trie, self._chosen, tokens[begin:end]), place))
            at = end
        return found

    def _forced(self) -> list[int]:
        certain: list[int] = []
        while True:
            run = self.matcher.forced_tokens().tolist()
            for token in run:
                self.matcher.accept_token(token)
            certain += run
            if self._template is None or self.ended or self.matcher.state != _FREE_TEXT:
                return certain
            certain += self._next_part(self._template)

    def _next_part(self, template: ResponseTemplate) -> list[int]:
        part = template.parts[self._part]
        self._part += 1
        if self._part > template.num_items:
            self.ended = True
            return [*part, *self._eos[:1]]
        if not self.matcher.accept_token(self._begin):
            raise ValueError(
                f"row {self.number}: the template has {template.num_items} items, but unique, item_filter and the "
                f"prompt leave only {self._part - 1} to give"
            )
        return [*part, self._begin]

    def _read(self, prompt: Sequence[int]) -> list[int]:
        """Take the last turn of the prompt into the matcher; returns its open item, begin token first, or nothing."""
        turn = max((at + 1 for at, token in enumerate(prompt) if token in self._eos), default=0)
        begins = [at for at in range(turn, len(prompt)) if prompt[at] == self._begin]
        for at, end in zip(begins, [*begins, len(prompt)][1:], strict=True):
            tokens = list(prompt[at + 1 : end])
            length = _item_length(self._trie, tokens)
            if length is not None:
                # Refused where it is used up or filtered out, and then it changes nothing that follows.
                self._accept([self._begin, *tokens[:length]])
            elif end == len(prompt):
                if self._trie.walk(tokens) < 0 or not self._accept([self._begin, *tokens]):
                    raise ValueError(
                        f"input_ids[{self.number}] ends inside an item, {tokens[-12:]}, that the catalog lacks or that "
                        "unique and item_filter forbid; check begin_token_id, and that the prompt's turn is ended"
                    )
                return [self._begin, *tokens]
        return []

    def _accept(self, tokens: list[int]) -> bool:
        if self.matcher.validate_tokens(np.array(tokens, dtype=np.int64)) < len(tokens):
            return False
        for token in tokens:
            self.matcher.accept_token(token)
        return True


def _item_length(trie: TokenTrie, tokens: Sequence[int]) -> int | None:
    """Tokens of the item that ``tokens`` begin with, or None where none is complete."""
    state = trie.root
    for length, token in enumerate(tokens, start=1):
        state = trie.advance(state, token)
        if state < 0:
            return None
        if trie.is_leaf(state):
            return length
    return None
