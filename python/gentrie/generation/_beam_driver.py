"""Runs a model for a beam search's stepper."""

from __future__ import annotations

import numpy as np
import torch

from gentrie.model.tree_decoder import TreeDecoder
from gentrie.model.tree_slots import Int64Array
from gentrie.search.beam_rows import BeamRows
from gentrie.search.beam_stepper import BeamStepper
from gentrie.trie import TokenTrie


class BeamDriver:
    """Gives a stepper the logits that it asks for.

    Parameters
    ----------
    decoder
        Holds one prompt for each request, in order.
    trie, stepper
        The catalog and the search over it.
    scope
        Of all requests.
    temperature
        Logits are divided by it.
    synced
        Whether every rank calls the model equally often.
    """

    def __init__(
        self,
        decoder: TreeDecoder,
        trie: TokenTrie,
        stepper: BeamStepper,
        scope: str,
        temperature: float,
        synced: bool,
    ) -> None:
        self._decoder = decoder
        self._synced = synced
        self._stepper = stepper
        self._scope = scope
        self._temperature = temperature
        self._tokens = torch.from_numpy(trie.vocabulary.astype(np.int64)).to(decoder.device)
        self._slots: dict[int, int] = {}
        self.num_rows = 0

    def run(self) -> None:
        """Until every request is done, on every rank."""
        while True:
            rows = self._stepper.rows()
            if not len(rows) or len(rows.tokens):  # otherwise all is known from the prompts' ends, without a call
                if not self._any_rank(len(rows) > 0):
                    return
                if not len(rows):
                    self._call_for_others()
                    continue
            logits, normalizers = self._scores(self._hidden(rows))
            self.num_rows += len(logits)
            self._stepper.step(logits, normalizers=normalizers)
            self._forget()

    def _any_rank(self, busy: bool) -> bool:
        if not self._synced:
            return busy
        flag = torch.tensor(float(busy), device=self._decoder.device)
        torch.distributed.all_reduce(flag)
        return bool(flag.item())

    def _call_for_others(self) -> None:
        """A call of the model whose result nobody needs."""
        self._decoder.extend(self._decoder.prompt_slots[:1], self._tokens[:1])
        self._decoder.keep([])

    def _hidden(self, rows: BeamRows) -> torch.Tensor:
        """[logits asked for, D]"""
        lengths = np.diff(rows.indptr)
        fed = np.flatnonzero(lengths)
        prompts = self._decoder.prompt_slots[rows.requests]
        slots = np.array(
            [prompts[at] if handle < 0 else self._slots[handle] for at, handle in enumerate(rows.parents.tolist())]
        )
        behind: Int64Array = ~(np.arange(len(rows.tokens)) - 1)
        behind[rows.indptr[fed]] = slots[fed]
        new, hidden = self._decoder.extend(behind, rows.tokens)
        ends = slots.copy()
        ends[fed] = new[rows.indptr[fed + 1] - 1]
        self._slots.update(zip(rows.handles.tolist(), ends.tolist(), strict=True))
        # Rows of the new hidden states, and behind these the prompts' ends.
        wanted = [
            np.arange(end - count, end) if length else np.array([len(hidden) + request])
            for length, end, count, request in zip(
                lengths.tolist(),
                rows.indptr[1:].tolist(),
                rows.logit_counts.tolist(),
                rows.requests.tolist(),
                strict=True,
            )
        ]
        places = torch.from_numpy(np.concatenate(wanted)).to(hidden.device)
        return torch.cat([hidden, self._decoder.prompt_hidden])[places]

    def _scores(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits of the catalog's tokens, and what normalises them over the whole vocabulary where that is wanted."""
        if self._scope == "vocab":
            return self._decoder.normalized_logits(hidden, self._tokens, self._temperature)
        return self._decoder.logits(hidden, self._tokens, self._temperature), None

    def _forget(self) -> None:
        used = self._stepper.handles_in_use().tolist()
        self._slots = {handle: self._slots[handle] for handle in used}
        if self._decoder.num_slots > 4 * len(used) + 1024:
            self._decoder.keep(np.unique(np.array(list(self._slots.values()), dtype=np.int64)))
