"""Lists of items that a model writes, and what is right and wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gentrie._optional import require

if TYPE_CHECKING:
    from transformers import LogitsProcessor, PreTrainedModel

    from gentrie.trie import TokenTrie


@dataclass(frozen=True)
class ListStatistics:
    """What a model's lists hold.

    Attributes
    ----------
    lists
        Number of lists, one for each user.
    items
        Items begun and ended in all lists together.
    unfinished
        Lists whose last item had not ended when the tokens a list may take were used up.
    out_of_catalog
        Share of the items that are not in the catalog.
    repeats
        Share of the items that the user's history or list had already.
    hit_rate
        Share of the lists that hold what the user bought next.
    tokens
        Tokens written, those of text around items included.
    seconds
        Time spent in ``generate``, prompts included.
    """

    lists: int
    items: int
    unfinished: int
    out_of_catalog: float
    repeats: float
    hit_rate: float
    tokens: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens written by second."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Way:
    """A way of writing lists: sampled or greedy, free or constrained."""

    name: str
    sample: bool
    processor: LogitsProcessor | None


class ListWriter:
    """Has a model continue a user's history with a list of items.

    Parameters
    ----------
    model, trie
        The model and the catalog.
    begin_id, end_id, pad_id, eos_id
        Token ids that open and close an item, fill the left of prompts, and end a response.
    list_length
        Items in a list.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trie: TokenTrie,
        *,
        begin_id: int,
        end_id: int,
        pad_id: int,
        eos_id: int,
        list_length: int,
    ) -> None:
        self._model: Any = model
        self._trie = trie
        self._begin_id, self._end_id = begin_id, end_id
        self._pad_id, self._eos_id = pad_id, eos_id
        self._list_length = list_length

    def write(self, prompts: Sequence[Sequence[int]], way: Way) -> list[list[int]]:
        """Return the tokens written behind each prompt, up to the end of the list."""
        torch = require("torch", extra="demo")
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        output = self._model.generate(
            input_ids=ids,
            attention_mask=(ids != self._pad_id).long(),
            do_sample=way.sample,
            top_k=None,
            # An item begins, ends and is followed by a line break.
            max_new_tokens=self._list_length * (self._trie.max_depth + 2),
            logits_processor=[way.processor] if way.processor else [],
            stopping_criteria=[self._is_full(width)],
            pad_token_id=self._pad_id,
            eos_token_id=self._eos_id,
        )
        return [self._written(row) for row in output[:, width:].tolist()]

    def items(self, tokens: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the tokens of each item that begins and ends, its end token included."""
        found: list[tuple[int, ...]] = []
        start: int | None = None
        for place, token in enumerate(tokens):
            if token == self._begin_id and start is None:
                start = place + 1
            elif token == self._end_id and start is not None:
                found.append(tuple(tokens[start : place + 1]))
                start = None
        return found

    def in_catalog(self, item: Sequence[int]) -> bool:
        """Tell whether the catalog holds an item with these tokens, the end token included."""
        return self._trie.resolve(item).size > 0

    def statistics(
        self,
        histories: Sequence[Sequence[int]],
        targets: Sequence[tuple[int, ...]],
        written: Sequence[Sequence[int]],
        seconds: float,
    ) -> ListStatistics:
        """Judge lists by the users' histories (tokens) and what each bought next (tokens of the item)."""
        items = unfinished = outside = repeats = hits = 0
        for history, target, tokens in zip(histories, targets, written, strict=True):
            known = set(self.items(history))
            listed = self.items(tokens)
            hits += target in listed
            unfinished += self._ends_inside(tokens)
            for item in listed:
                outside += not self.in_catalog(item)
                repeats += item in known
                known.add(item)
            items += len(listed)
        return ListStatistics(
            lists=len(written),
            items=items,
            unfinished=unfinished,
            out_of_catalog=outside / max(items, 1),
            repeats=repeats / max(items, 1),
            hit_rate=hits / len(written),
            tokens=sum(map(len, written)),
            seconds=seconds,
        )

    def _ends_inside(self, tokens: Sequence[int]) -> bool:
        """Tell whether an item is open at the end of the tokens."""
        control = [token for token in tokens if token in (self._begin_id, self._end_id)]
        return control[-1:] == [self._begin_id]

    def _is_full(self, width: int) -> Callable[..., Any]:
        """A stopping criterion of ``generate``: rows that have ended as many items as a list holds."""

        def is_full(input_ids: Any, scores: Any, **_: Any) -> Any:
            return (input_ids[:, width:] == self._end_id).sum(dim=1) >= self._list_length

        return is_full

    def _written(self, row: list[int]) -> list[int]:
        """Tokens of a row without the padding behind its end."""
        ends = 0
        for place, token in enumerate(row):
            ends += token == self._end_id
            if token == self._eos_id or ends == self._list_length:
                return row[: place + 1]
        return row
