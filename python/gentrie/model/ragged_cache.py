"""Feeds a decoder-only model rows that advance by chunks of different lengths."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gentrie.model.cache_names import cache_name

# Columns that may stand empty before what is stored is moved together: this share of the longest row, and some more.
_SLACK, _SPARE = 0.5, 64


class RaggedCache:
    """Keys and values of rows whose histories grow by any number of tokens a call.

    The chunks of one call are a rectangle, padded on the left, so that every row's last token is in the last column
    and only that one needs the head. What was padding stays behind as a hole, which the attention mask hides; holes
    are squeezed out when they take up a third. Layers with a sliding window count columns, not tokens: there rows
    advance by the shortest chunk, without holes, and the rest waits. One row alone never sees a mask.

    Parameters
    ----------
    model
        A decoder-only model.
    cache
        An empty cache.
    head_once
        Whether the model takes ``logits_to_keep``.
    """

    def __init__(self, model: PreTrainedModel, cache: DynamicCache, *, head_once: bool) -> None:
        self._model = model
        self._cache = cache
        self._options: dict[str, Any] = {cache_name(model.forward): cache, "use_cache": True, "return_dict": True}
        if head_once:
            self._options["logits_to_keep"] = 1
        self._takes_positions = takes(model, "position_ids")
        self._lengths: list[int] = []
        self._mask: torch.Tensor | None = None
        self._width = 0
        self.model_calls = 0
        self.tokens = 0
        self.padded = 0
        _check_layers(cache, model)

    def feed(self, chunks: Sequence[Sequence[int]]) -> tuple[list[int], torch.Tensor]:
        """Run the model over the next tokens of every row, one or more each.

        Returns
        -------
        How many tokens of each row were taken, and logits [rows, vocabulary] behind the last one taken.
        """
        taken = [len(chunk) for chunk in chunks]
        if not self._lengths:
            self._lengths = [0] * len(chunks)
        elif len(chunks) > 1 and any(type(layer) is DynamicSlidingWindowLayer for layer in self._cache.layers):
            taken = [min(taken)] * len(chunks)
        width = max(taken)
        device = self._model.device
        rows = [[0] * (width - n) + list(chunk[:n]) for chunk, n in zip(chunks, taken, strict=True)]
        inputs: dict[str, Any] = {"input_ids": torch.tensor(rows, device=device)}
        return taken, self._run(inputs, taken, width)

    def feed_embeddings(self, embeddings: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Encode prompts given as [rows, length, hidden], ``mask`` [rows, length]; logits [rows, vocabulary]."""
        rows, width = embeddings.shape[:2]
        if mask is not None and not bool((mask[:, 1:] >= mask[:, :-1]).all()):
            raise ValueError("attention_mask: prompts given as inputs_embeds must be padded on the left")
        taken = [width] * rows if mask is None else mask.sum(dim=1).tolist()
        self._lengths = [0] * rows
        return self._run({"inputs_embeds": embeddings}, taken, width)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self._model.device)
        self._cache.batch_select_indices(index)
        self._lengths = [self._lengths[row] for row in rows]
        if self._mask is not None:
            self._mask = self._mask[index]

    def _run(self, inputs: dict[str, Any], taken: list[int], width: int) -> torch.Tensor:
        if self._mask is not None or min(taken) < width:
            inputs |= self._mask_and_positions(taken, width)
        outputs = self._model(**inputs, **self._options)
        self._width += width
        self._lengths = [length + n for length, n in zip(self._lengths, taken, strict=True)]
        self.model_calls += 1
        self.tokens += sum(taken)
        self.padded += len(taken) * width - sum(taken)
        if self.model_calls == 1:
            _check_layers(self._cache, self._model)
        longest = max(self._lengths)
        if self._width > (1 + _SLACK) * longest + _SPARE:
            self._squeeze(longest)
        logits: torch.Tensor = outputs.logits[:, -1].float()
        return logits

    def _mask_and_positions(self, taken: list[int], width: int) -> dict[str, torch.Tensor]:
        device = self._model.device
        if self._mask is None:
            self._mask = torch.ones(len(taken), self._width, dtype=torch.int64, device=device)
        place = torch.arange(width, device=device) - torch.tensor([[width - n] for n in taken], device=device)
        self._mask = torch.cat([self._mask, (place >= 0).long()], dim=1)
        positions = place.clamp(min=0) + torch.tensor(self._lengths, device=device)[:, None]
        inputs = {"attention_mask": self._mask}
        if self._takes_positions:
            inputs["position_ids"] = positions
        return inputs

    def _squeeze(self, longest: int) -> None:
        """Move the tokens of each row together, to the right."""
        assert self._mask is not None
        # Stable: holes first, then the row's tokens in order.
        order = self._mask.argsort(dim=1, stable=True)[:, -longest:]
        index = order[:, None, :, None]
        for layer in self._cache.layers:
            assert isinstance(layer, DynamicLayer)
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys, layer.values = (
                x.gather(2, index.expand(-1, x.shape[1], -1, x.shape[3])) for x in (layer.keys, layer.values)
            )
        self._mask = self._mask.gather(1, order)
        self._width = longest


def takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's ``forward`` declares an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def _check_layers(cache: DynamicCache, model: PreTrainedModel) -> None:
    for number, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            raise ValueError(
                f"{type(model).__name__} keeps {type(layer).__name__} in layer {number}, which cannot take several "
                "tokens behind others at once; use generate with a TrieLogitsProcessor"
            )
