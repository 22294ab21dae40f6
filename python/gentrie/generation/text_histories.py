"""What every row of a text has said, and when it has said enough."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteriaList
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria


class TextHistories:
    """What every row has said, prompts included, on the model's device; and when it has said enough."""

    def __init__(self, input_ids: torch.Tensor, criteria: StoppingCriteriaList, streamer: Any) -> None:
        self._start = input_ids.shape[1]
        self._ids = input_ids
        self.lengths = [self._start] * len(input_ids)
        own = (MaxLengthCriteria, EosTokenCriteria)
        self._others = StoppingCriteriaList(rule for rule in criteria if not isinstance(rule, own))
        self._max_length = min((rule.max_length for rule in criteria if isinstance(rule, own[0])), default=None)
        self._eos = {int(t) for rule in criteria if isinstance(rule, own[1]) for t in rule.eos_token_id.flatten()}
        self._streamer = streamer

    def of(self, row: int) -> torch.Tensor:
        """int64 [1, length], a view."""
        return self._ids[row : row + 1, : self.lengths[row]]

    def num_said(self, row: int) -> int:
        """Number of the row's new tokens."""
        return self.lengths[row] - self._start

    def response(self, row: int) -> list[int]:
        """The row's new tokens."""
        said: list[int] = self._ids[row, self._start : self.lengths[row]].tolist()
        return said

    def append(self, row: int, tokens: list[int], ended: bool) -> bool:
        """Append tokens up to where the response ends; whether it does."""
        at = self.lengths[row]
        for count, token in enumerate(tokens, start=1):
            if token in self._eos or at + count == self._max_length:
                tokens, ended = tokens[:count], True
                break
        if at + len(tokens) > self._ids.shape[1]:
            spare = self._ids.new_zeros(len(self._ids), max(len(tokens), self._ids.shape[1] // 2, 64))
            self._ids = torch.cat([self._ids, spare], dim=1)
        added = torch.tensor(tokens, dtype=torch.int64)
        self._ids[row, at : at + len(tokens)] = added.to(self._ids.device)
        for count in range(1, len(tokens) + 1):
            self.lengths[row] = at + count
            if self._streamer is not None:
                self._streamer.put(added[count - 1 : count])
            if self._others and bool(self._others(self.of(row), None).all()):
                return True
        return ended

    def sequences(self, config: GenerationConfig) -> torch.Tensor:
        """int64 [rows, length], padded on the right."""
        longest = max(self.lengths)
        sequences = self._ids[:, :longest].clone()
        for row, length in enumerate(self.lengths):
            if length < longest:
                if config._pad_token_tensor is None:
                    raise ValueError("pad_token_id is missing: rows end at different lengths and are padded with it")
                sequences[row, length:] = config._pad_token_tensor
        return sequences
