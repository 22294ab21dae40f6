"""What a catalog and its rules mean, by definition over tuples of tokens: slow, obvious, and sharing no idea with the
library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

Tokens = tuple[int, ...]


class Oracle:
    """A set of token sequences (the end token included) and the items of each."""

    def __init__(self, rows: Iterable[Iterable[int]], end: int | None = None, item_ids: Sequence[int] | None = None):
        self.end = () if end is None else (end,)
        self.items: dict[Tokens, set[int]] = {}
        for row, tokens in enumerate(rows):
            self.items.setdefault((*tokens, *self.end), set()).add(row if item_ids is None else item_ids[row])
        self.sequences = sorted(self.items)

    def below(self, prefix: Tokens) -> list[Tokens]:
        return [sequence for sequence in self.sequences if sequence[: len(prefix)] == prefix]

    def next_tokens(self, prefix: Tokens) -> list[int]:
        return sorted({s[len(prefix)] for s in self.below(prefix) if len(s) > len(prefix)})

    def numbered(self, prefix: Tokens = ()) -> list[Tokens]:
        """``below(prefix)`` as the trie numbers sequences: those alone behind their next token before all others."""
        if prefix in self.items:
            return [prefix]
        children = [self.below((*prefix, token)) for token in self.next_tokens(prefix)]
        alone = [sequence for child in children if len(child) == 1 for sequence in child]
        depth = len(prefix) + 1
        return alone + [s for child in children if len(child) > 1 for s in self.numbered(child[0][:depth])]

    def items_below(self, prefix: Tokens) -> list[int]:
        return [item for sequence in self.numbered(prefix) for item in sorted(self.items[sequence])]

    def forced(self, prefix: Tokens) -> list[int]:
        choices = self.next_tokens(prefix)
        return [] if len(choices) != 1 else [choices[0], *self.forced((*prefix, choices[0]))]

    def resolve(self, tokens: Tokens) -> list[int]:
        return sorted(self.items.get(tokens) or self.items.get(tokens + self.end, ()))

    def prefixes(self) -> list[Tokens]:
        """Every place of the trie: the root, each proper prefix, each complete sequence."""
        return sorted({sequence[:length] for sequence in self.sequences for length in range(len(sequence) + 1)})


class Rules:
    """What may follow a history. ``begin`` None: the history is a response, one item."""

    def __init__(
        self,
        oracle: Oracle,
        *,
        begin: int | None = None,
        eos: Collection[int] = (),
        unique: bool | str = False,
        items: Collection[int] | None = None,
    ):
        self.oracle, self.begin, self.unique = oracle, begin, unique
        self.eos = set(eos) or (set(oracle.end) if begin is None else set())
        self.allowed_items = {s: ids if items is None else ids & set(items) for s, ids in oracle.items.items()}

    def left(self, prefix: Tokens, given: Counter[Tokens]) -> list[Tokens]:
        """Sequences below ``prefix`` that filter and earlier items leave."""
        times = {False: lambda s: float("inf"), True: lambda s: 1, "item": lambda s: len(self.allowed_items[s])}
        return [s for s in self.oracle.below(prefix) if self.allowed_items[s] and given[s] < times[self.unique](s)]

    def read(self, history: Sequence[int]) -> tuple[str, Tokens, Counter[Tokens]]:
        """Where a history stands: "free", "item" (and what of it is written), "complete", "dead" or "finished"."""
        place, prefix, given = ("free" if self.begin is not None else "item"), (), Counter[Tokens]()
        for token in history:
            if self.begin is not None and token in self.eos:
                place, prefix, given = "free", (), Counter[Tokens]()
            elif self.begin is not None and token == self.begin:
                place, prefix = "item", ()
            elif place in ("free", "finished"):
                continue
            elif self.begin is None and token in self.eos and (place != "item" or not self.left(prefix, given)):
                place = "finished"
            elif place in ("complete", "dead"):
                place = "dead"
            elif (*prefix, token) in self.oracle.items:
                given[(*prefix, token)] += 1
                if self.begin is not None:
                    place, prefix = "free", ()
                else:
                    is_end = token in self.eos or not self.eos
                    place, prefix = "finished" if is_end else "complete", (*prefix, token)
            else:
                prefix = (*prefix, token)
                place = "item" if self.oracle.below(prefix) else "dead"
        return place, prefix, given

    def allowed(self, history: Sequence[int], vocab_size: int) -> set[int]:
        """Tokens that may follow."""
        place, prefix, given = self.read(history)
        if place == "free":
            return set(range(vocab_size)) - (set() if self.left((), given) else {self.begin})
        if place != "item":
            return self.eos
        return {s[len(prefix)] for s in self.left(prefix, given)} or self.eos
