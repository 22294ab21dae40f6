"""The published approach to items inside free text: RecLM-cgen (arXiv 2505.03336, section 4.2).

Written from its description and from what its code was seen to do, not copied. At every step the whole
history is searched for control tokens, every item given since the last end of turn is walked again
to find out what is used up, and a dense mask of the vocabulary is made from a Python list. Keep these
costs: they are what is measured. `benchmarks/compare_published.py` times it against the original.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from gentrie.bench.baselines.dict_trie import DictTrie, DictTrieNode

Lookup: TypeAlias = Callable[[int, torch.Tensor], "list[int] | None"]
"""From a row's number and its token ids (int64 [length]) to its allowed tokens; None where all are."""


class PublishedLookup:
    """Tokens allowed after a history, in which no item is given more often than the catalog lists it.

    Parameters
    ----------
    trie
        The catalog, end tokens included.
    begin_token_id
        Token that opens an item.
    end_token_id
        Token that closes one.
    eos_token_id
        Token that ends a turn; items before the last one do not count.
    """

    def __init__(self, trie: DictTrie, *, begin_token_id: int, end_token_id: int, eos_token_id: int) -> None:
        self._trie = trie
        self._begin = begin_token_id
        self._end = end_token_id
        self._eos = eos_token_id

    def __call__(self, batch_id: int, input_ids: torch.Tensor) -> list[int] | None:
        """Return the allowed tokens after ``input_ids`` (int64 [length]); None where all are.

        As published, a history that has left the catalog is not constrained either.
        """
        turn_start = _last(_positions(input_ids, self._eos))
        begins = _positions(input_ids, self._begin)
        begins = begins[begins > turn_start]
        ends = _positions(input_ids, self._end)
        ends = ends[ends > turn_start]
        if _last(begins) <= _last(ends):
            return None

        used: Counter[DictTrieNode] = Counter()
        node: DictTrieNode | None = None
        for begin in begins:
            node = self._trie.root
            for position in range(begin.item() + 1, input_ids.shape[0]):
                token: Any = input_ids[position].item()
                node = node.children.get(token)
                if node is None:
                    break
                used[node] += 1
                if token == self._end:
                    break
        if node is None:
            return None
        return [token for token, child in node.children.items() if used[child] < child.count]


def _positions(input_ids: torch.Tensor, token: int) -> torch.Tensor:
    return torch.eq(input_ids, token).nonzero(as_tuple=True)[0]


def _last(positions: torch.Tensor) -> int:
    return int(positions[-1].item()) if positions.shape[0] else -1


class PublishedProcessor:
    """Logits processor around a lookup, with a dense additive mask.

    Parameters
    ----------
    lookup
        Returns the allowed tokens of one history, None where all are allowed.
    num_beams
        Beams of each prompt; consecutive rows belong to one prompt.
    """

    def __init__(self, lookup: Lookup, num_beams: int = 1) -> None:
        self._lookup = lookup
        self._num_beams = num_beams

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return ``scores`` (float [rows, vocabulary]) with -inf where ``input_ids`` (int64 [rows, length])
        allow no token.

        Raises
        ------
        ValueError
            Nothing is allowed after a row.
        """
        mask = torch.full_like(scores, -math.inf)
        for row, history in enumerate(input_ids):
            allowed = self._lookup(row // self._num_beams, history)
            if allowed is None:
                mask[row] = 0
            elif allowed:
                mask[row, allowed] = 0
            else:
                raise ValueError(f"row {row}: no token is allowed after its {history.shape[0]} tokens")
        return scores + mask
