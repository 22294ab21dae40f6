"""A prefix tree of nested Python dictionaries, as recommenders that constrain decoding write it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class DictTrieNode:
    """One token of one or more sequences: its successors, and how many sequences run through it."""

    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.children: dict[int, DictTrieNode] = {}
        self.count = 0


class DictTrie:
    """Prefix tree over token sequences, repeats counted.

    Parameters
    ----------
    sequences
        Token ids of each item, each ending with the end token.
    """

    def __init__(self, sequences: Iterable[Sequence[int]]) -> None:
        self.root = DictTrieNode()
        for sequence in sequences:
            node = self.root
            for token in sequence:
                child = node.children.get(token)
                if child is None:
                    child = node.children[token] = DictTrieNode()
                child.count += 1
                node = child
