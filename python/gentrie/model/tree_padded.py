"""Any model, one padded row a path: encoder-decoders, and decoders without the attention interface."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from gentrie.model.cache_names import cache_name, find_cache
from gentrie.model.tree_slots import Int64Array, TreeSlots

_MOST_PATHS = 64
"""Rows of one forward pass."""


class PaddedForward:
    """Computes each new position's whole path from its prompt again, in chunks of paths padded on the right.

    Prompts are encoded once and their keys and values kept once; a chunk takes copies of those of its own rows.
    A model whose cache cannot be copied row by row (linear attention) runs without one, prompt and path together.
    """

    def __init__(
        self, model: PreTrainedModel, slots: TreeSlots, *, start: int | None = None, whole_model: bool = False
    ) -> None:
        self._model, self._slots, self._start, self._whole = model, slots, start, whole_model
        self._encoder_decoder = model.config.is_encoder_decoder
        whole: Any = model
        body = whole.get_decoder() if self._encoder_decoder else whole.base_model
        self._body: Any = model if whole_model else body
        self._takes = inspect.signature(self._body.forward).parameters
        self._batches: list[_Batch] = []
        self._first: list[int] = []
        self.padded_tokens = 0

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of the keys and values of prompts; decoded tokens have none."""
        layers = [layer for batch in self._batches for layer in _layers(batch.cache)]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in layers), 0

    def encode(self, inputs: torch.Tensor, lengths: Int64Array, *, encoded: bool = False) -> torch.Tensor:
        """Hidden states [prompts, D] behind prompts packed one after the other, ids [sum] or embeddings [sum, D], or
        the encoder's hidden states [sum, D]."""
        column = np.arange(lengths.max())
        real = column >= lengths.max() - lengths[:, None]
        mask = torch.from_numpy(real).to(inputs.device)
        padded = inputs.new_zeros((*real.shape, *inputs.shape[1:]))
        padded[mask] = inputs
        batch = _Batch(padded, mask.long())
        self.padded_tokens += int(real.size - lengths.sum())
        if self._encoder_decoder:
            states = padded
            if not encoded:
                states = self._model.get_encoder()(**_inputs(padded), attention_mask=batch.mask).last_hidden_state
            batch.encoder = (states, batch.mask)
            start = _start_token(self._model) if self._start is None else self._start
            batch.inputs = torch.full((lengths.size, 1), start, device=inputs.device)
            batch.mask = torch.ones_like(batch.inputs)
        output = self._forward(batch.inputs, batch.mask, batch.encoder, None, use_cache=True)
        batch.cache = _copyable(find_cache(output)[1])
        self._first.append(sum(len(other.mask) for other in self._batches))
        self._batches.append(batch)
        return self._hidden(output)[:, -1]

    def extend(self, slots: Int64Array, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, D] of new positions, of which earlier ones may be ancestors of later ones."""
        above = self._slots.ancestors(slots)
        number = {int(slot): row for row, slot in enumerate(slots)}
        ends = np.setdiff1d(slots, above[:, 1:])  # no row of this call comes behind them
        ends = ends[np.argsort(self._slots.depths_of(ends), kind="stable")]
        batch_of = np.searchsorted(self._first, self._slots.prompts_of(ends), side="right") - 1
        out = torch.empty(0)
        for index, batch in enumerate(self._batches):
            mine = ends[batch_of == index]
            most = max(mine.size, 1) if self._whole else _MOST_PATHS
            for start in range(0, mine.size, most):
                chunk = mine[start : start + most]
                paths = self._slots.ancestors(chunk)
                hidden = self._paths(batch, self._slots.prompts_of(chunk) - self._first[index], paths)
                out = out if out.numel() else hidden.new_empty(slots.size, hidden.shape[-1])
                where = [
                    (number[int(slot)], path, int(self._slots.depths_of(slot)) - 1)
                    for path, row in enumerate(paths)
                    for slot in row
                    if int(slot) in number
                ]
                to, path, place = torch.tensor(where, device=hidden.device).unbind(1)
                out[to] = hidden[path, place]
        return out

    def _paths(self, batch: _Batch, prompts: Int64Array, above: Int64Array) -> torch.Tensor:
        """Hidden states [paths, longest, D] of the tokens behind prompts; ``above`` as from ``ancestors``."""
        real = above >= 0
        lengths = real.sum(1)
        column = np.arange(above.shape[1])
        place = lengths[:, None] - 1 - column
        ids = np.where(
            column < lengths[:, None], self._slots.tokens_of(np.take_along_axis(above, np.maximum(place, 0), 1)), 0
        )
        device = batch.mask.device
        which = torch.from_numpy(prompts).to(device)
        rows = torch.from_numpy(ids).to(device)
        mask = torch.cat([batch.mask[which], torch.from_numpy(column < lengths[:, None]).long().to(device)], dim=1)
        encoder = None if batch.encoder is None else (batch.encoder[0][which], batch.encoder[1][which])
        self.padded_tokens += int(rows.numel() - lengths.sum())
        if batch.cache is not None:
            output = self._forward(rows, mask, encoder, _selected(batch.cache, which), use_cache=True)
            return self._hidden(output)
        if batch.inputs.is_floating_point():
            rows = self._model.get_input_embeddings()(rows)
        whole = torch.cat([batch.inputs[which], rows], dim=1)
        output = self._forward(whole, mask, encoder, None, use_cache=False)
        return self._hidden(output)[:, batch.mask.shape[1] :]

    def _forward(
        self,
        inputs: torch.Tensor,
        mask: torch.Tensor,
        encoder: tuple[torch.Tensor, torch.Tensor] | None,
        cache: Any,
        use_cache: bool,
    ) -> Any:
        arguments: dict[str, Any] = {**_inputs(inputs), "attention_mask": mask}
        if encoder is not None and self._whole:
            arguments = {f"decoder_{name}": value for name, value in arguments.items()}
            arguments.update(encoder_outputs=BaseModelOutput(last_hidden_state=encoder[0]), attention_mask=encoder[1])
        elif encoder is not None:
            arguments.update(encoder_hidden_states=encoder[0], encoder_attention_mask=encoder[1])
        if cache is not None:
            arguments[cache_name(self._body.forward)] = cache
        if "position_ids" in self._takes:
            arguments["position_ids"] = (mask.cumsum(1) - 1).clamp_(min=0)[:, -inputs.shape[1] :]
        return self._body(**arguments, use_cache=use_cache, return_dict=True)

    def _hidden(self, output: Any) -> torch.Tensor:
        """[rows, tokens, D]; the logits where the whole model was called."""
        hidden: torch.Tensor = output.logits if self._whole else output.last_hidden_state
        return hidden


class _Batch:
    """Prompts encoded together: inputs [B, T] or [B, T, D] and mask [B, T] as the decoder sees them."""

    def __init__(self, inputs: torch.Tensor, mask: torch.Tensor) -> None:
        self.inputs, self.mask = inputs, mask
        self.encoder: tuple[torch.Tensor, torch.Tensor] | None = None
        self.cache: Any = None


def _start_token(model: PreTrainedModel) -> int:
    for config in (model.generation_config, model.config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ValueError(f"neither config of {type(model).__name__} has a decoder_start_token_id")


def _inputs(values: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"inputs_embeds" if values.is_floating_point() else "input_ids": values}


def _layers(cache: Any) -> list[Any]:
    if cache is None:
        return []
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(cache.layers)


def _copyable(cache: Any) -> Any:
    """The cache if it holds keys and values by row in each of its layers, and nothing besides, else None.

    A class of the model's own may keep states elsewhere, which a shallow copy would share.
    """
    if type(cache) not in (DynamicCache, EncoderDecoderCache):
        return None
    layers = _layers(cache)
    plain = all(
        isinstance(getattr(layer, "keys", None), torch.Tensor) and not hasattr(layer, "conv_states") for layer in layers
    )
    return cache if layers and plain else None


def _selected(cache: Any, rows: torch.Tensor) -> Any:
    """A cache of these rows [N]. The original stays as it is: layers replace their tensors, and never write to them."""
    if isinstance(cache, EncoderDecoderCache):
        chosen = copy.copy(cache)
        chosen.self_attention_cache = _selected(cache.self_attention_cache, rows)
        chosen.cross_attention_cache = _selected(cache.cross_attention_cache, rows)
        chosen.is_updated = dict(cache.is_updated)
        return chosen
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen
