"""A prefix function for ``transformers.PrefixConstrainedLogitsProcessor``, over a dictionary trie."""

from __future__ import annotations

import torch

from gentrie.bench.baselines.dict_trie import DictTrie, DictTrieNode


class DictTriePrefix:
    """``prefix_allowed_tokens_fn`` for items between a begin and an end token, repeats allowed.

    Only the item being written is walked. Outside items the processor asks for the whole vocabulary as
    indices: they are made once and on the device, where the ``list(range(vocab_size))`` that its
    documentation shows would be converted at every step.

    Parameters
    ----------
    trie
        The catalog, end tokens included.
    begin_token_id
        Token that opens an item.
    end_token_id
        Token that closes one.
    eos_token_id
        Token that ends a turn.
    vocab_size
        Width of the logits.
    device
        Where the logits are.
    """

    def __init__(
        self,
        trie: DictTrie,
        *,
        begin_token_id: int,
        end_token_id: int,
        eos_token_id: int,
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._trie = trie
        self._begin = begin_token_id
        self._closing = (end_token_id, eos_token_id)
        self._everything = torch.arange(vocab_size, device=device)

    def __call__(self, batch_id: int, input_ids: torch.Tensor) -> list[int] | torch.Tensor:
        """Return the ids of the tokens allowed after ``input_ids`` (int64 [length])."""
        history: list[int] = input_ids.tolist()
        for position in range(len(history) - 1, -1, -1):
            if history[position] in self._closing:
                return self._everything
            if history[position] == self._begin:
                return self._below(history[position + 1 :])
        return self._everything

    def _below(self, tokens: list[int]) -> list[int]:
        node: DictTrieNode | None = self._trie.root
        for token in tokens:
            node = node.children.get(token) if node is not None else None
        return list(node.children) if node is not None else []
