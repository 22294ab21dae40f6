"""What may follow a history, said in the plainest way: a dictionary of sequences, scanned anew each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch

Catalog = Mapping[tuple[int, ...], Sequence[int]]


def catalog_of(sequences: Iterable[Sequence[int]], end: int | None) -> dict[tuple[int, ...], list[int]]:
    """Item ids (row numbers) of each distinct sequence, end token included."""
    catalog: dict[tuple[int, ...], list[int]] = {}
    for item_id, row in enumerate(sequences):
        catalog.setdefault((*row, end) if end is not None else tuple(row), []).append(item_id)
    return catalog


class DictRules:
    """The rules of :class:`gentrie.generation.TrieLogitsProcessor` for one history."""

    def __init__(
        self,
        catalog: Catalog,
        eos: Collection[int],
        *,
        begin: int | None = None,
        unique: bool | str = False,
        items: Collection[int] | None = None,
    ) -> None:
        self.catalog, self.eos, self.begin, self.unique, self.items = catalog, set(eos), begin, unique, items

    def open_sequences(self, spent: Counter[tuple[int, ...]]) -> list[tuple[int, ...]]:
        """Sequences that filter and earlier items leave."""
        found = []
        for sequence, ids in self.catalog.items():
            left = [i for i in ids if self.items is None or i in self.items]
            limit = len(left) if self.unique == "item" else 1
            if left and (self.unique is False or spent[sequence] < limit):
                found.append(sequence)
        return found

    def allowed(self, history: Sequence[int], vocab_size: int, start: int = 0) -> set[int]:
        """Tokens that may follow; a whole response begins at ``start``."""
        return self._triggered(history, vocab_size) if self.begin is not None else self._whole(history[start:])

    def _triggered(self, history: Sequence[int], vocab_size: int) -> set[int]:
        prefix: tuple[int, ...] | None = None
        spent: Counter[tuple[int, ...]] = Counter()
        for token in history:
            if token == self.begin:
                prefix = ()
            elif token in self.eos:
                prefix = None
                spent.clear()
            elif prefix is not None:
                prefix = (*prefix, token)
                if prefix in self.catalog:
                    spent[prefix] += 1
                    prefix = None
        if prefix is not None:
            return self._below(prefix, spent) or self.eos
        every = set(range(vocab_size))
        return every if self.open_sequences(spent) else every - {self.begin}

    def _whole(self, response: Sequence[int]) -> set[int]:
        prefix: tuple[int, ...] = ()
        for token in response:
            if token in self.eos and (prefix in self.catalog or not self._below(prefix, Counter())):
                return self.eos
            prefix = (*prefix, token)
            if prefix in self.catalog and (not self.eos or prefix[-1] in self.eos):
                return self.eos
        return self._below(prefix, Counter()) or self.eos

    def _below(self, prefix: tuple[int, ...], spent: Counter[tuple[int, ...]]) -> set[int]:
        n = len(prefix)
        return {s[n] for s in self.open_sequences(spent) if s[:n] == prefix and len(s) > n}

    def prefix_fn(self, start: int, vocab_size: int) -> PrefixFn:
        return PrefixFn(self, start, vocab_size)


class PrefixFn:
    """The rules as a ``prefix_allowed_tokens_fn``."""

    def __init__(self, rules: DictRules, start: int, vocab_size: int) -> None:
        self.rules, self.start, self.vocab_size = rules, start, vocab_size

    def __call__(self, batch_id: int, input_ids: torch.Tensor) -> list[int]:
        return sorted(self.rules.allowed(input_ids.tolist(), self.vocab_size, self.start))


def items_in(text: Sequence[int], begin: int, end: int) -> list[tuple[int, ...]]:
    """What stands behind each begin token, up to the end token inclusive (or the end of the text)."""
    found = []
    for at, token in enumerate(text):
        if token == begin:
            rest = list(text[at + 1 :])
            found.append(tuple(rest[: rest.index(end) + 1] if end in rest else rest))
    return found
