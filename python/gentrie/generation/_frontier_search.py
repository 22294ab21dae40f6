"""Opens prefixes of all prompts in one call of the model at a time, whatever their order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from gentrie.generation._best_first_frontier import Frontier, Prefix
from gentrie.model.tree_decoder import TreeDecoder
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]


class FrontierSearch:
    """Asks the decoder for what the frontiers of all prompts want, in one call at a time."""

    def __init__(self, decoder: TreeDecoder, trie: TokenTrie, frontiers: Sequence[Frontier], scope: str) -> None:
        self._decoder = decoder
        self._frontiers = frontiers
        self._scope = scope
        self._vocabulary = trie.vocabulary
        self._tokens = torch.from_numpy(trie.vocabulary.astype(np.int64)).to(decoder.device)

    def run(self, max_calls: int, max_rows: int) -> None:
        scores = self._scores(self._decoder.prompt_hidden)
        for row, frontier in enumerate(self._frontiers):
            frontier.start(int(self._decoder.prompt_slots[row]), scores[row], self._vocabulary)
        for _ in range(max_calls):
            share = max(1, max_rows // len(self._frontiers))
            chosen = [(frontier, prefix) for frontier in self._frontiers for prefix in frontier.select(share)]
            if not chosen:
                break
            self._open(chosen)
        for frontier in self._frontiers:
            frontier.settle()

    def _open(self, chosen: list[tuple[Frontier, Prefix]]) -> None:
        parents: list[int] = []
        tokens: list[int] = []
        last: list[int] = []
        for _, prefix in chosen:
            fed = prefix.fed()
            parents += [prefix.parent_slot(), *(~row for row in range(len(tokens), len(tokens) + len(fed) - 1))]
            tokens += fed
            last.append(len(tokens) - 1)
        slots, hidden = self._decoder.extend(np.array(parents), np.array(tokens))
        if self._scope == "trie":
            scores = self._scores(hidden[torch.tensor(last, device=hidden.device)])
            rows = [scores[at : at + 1] for at in range(len(chosen))]
        else:
            rows = np.split(self._scores(hidden), np.array(last[:-1]) + 1)
        for (frontier, prefix), at, own in zip(chosen, last, rows, strict=True):
            frontier.expand(prefix, int(slots[at]), own, self._vocabulary)
        kept = [slot for frontier in self._frontiers for slot in frontier.slots()]
        if self._decoder.num_slots > 4 * len(kept) + 1024:
            self._decoder.keep(np.unique(np.array(kept, dtype=np.int64)))

    def _scores(self, hidden: torch.Tensor) -> Float64Array:
        """Float64 [N, catalog's tokens]: logits, or log-probabilities over the whole vocabulary."""
        if self._scope == "trie":
            return self._decoder.logits(hidden, self._tokens).double().cpu().numpy()
        logits, normalizers = self._decoder.normalized_logits(hidden, self._tokens)
        return (logits.double() - normalizers.double()[:, None]).cpu().numpy()
