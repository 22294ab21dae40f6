"""Decoder-only models, all rows in one packed sequence without padding."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from gentrie.model.cache_names import cache_name
from gentrie.model.model_copies import with_attention
from gentrie.model.tree_attention import (
    NAME,
    Step,
    TreeCache,
    UnsupportedModelError,
    tree_attention,
)
from gentrie.model.tree_blocks import on_device, prompt_block, tree_blocks
from gentrie.model.tree_slots import Int64Array, TreeSlots


class PackedForward:
    """Runs the layers of a model through its attention interface; see :mod:`gentrie.model.tree_attention`."""

    padded_tokens = 0

    def __init__(self, model: PreTrainedModel, slots: TreeSlots, *, whole_model: bool = False) -> None:
        if model.config.is_encoder_decoder or not model._supports_attention_backend:
            raise UnsupportedModelError(f"{type(model).__name__} is no decoder that uses the attention interface")
        copied = with_attention(model, NAME)
        self._body: Any = copied if whole_model else copied.base_model
        self._some_logits = whole_model and "logits_to_keep" in inspect.signature(model.forward).parameters
        self._whole = whole_model
        self._slots = slots
        self._cache = TreeCache()
        self._cached = {cache_name(self._body.forward): self._cache}
        self._batches: list[tuple[int, int]] = []  # first prompt and number of prompts of each call of encode

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of the keys and values of prompts and of decoded tokens."""
        return self._cache.nbytes

    def encode(self, inputs: torch.Tensor, lengths: Int64Array, *, replaces: int | None = None) -> torch.Tensor:
        """Hidden states [prompts, D] behind prompts packed one after the other, ids [sum] or embeddings [sum, D].

        ``replaces`` is the number of an earlier call, with as many prompts, of which the longest is as long: their keys
        and values go to the addresses of that call's.
        """
        batch = len(self._batches) if replaces is None else replaces
        ends = np.cumsum(lengths)
        positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
        nothing = torch.empty(positions.size, 0, dtype=torch.int64, device=inputs.device)
        step = Step(None, nothing, nothing.bool(), [prompt_block(batch, lengths, inputs.device)])
        last = on_device(ends - 1, inputs.device)
        try:
            hidden = self.run(inputs, on_device(positions, inputs.device), step, last if self._some_logits else None)
        except BaseException:
            self._cache.forget_prompts(len(self._batches))
            raise
        layers = set(range(self._body.config.get_text_config(decoder=True).num_hidden_layers))
        if step.stored.keys() != layers or step.attended != layers:
            raise UnsupportedModelError(
                f"{type(self._body).__name__} does not use the attention interface in every layer"
            )
        if replaces is None:
            self._batches.append((sum(size for _, size in self._batches), lengths.size))
        return hidden if self._some_logits else hidden[last]

    def extend(self, slots: Int64Array, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states [N, D] of new positions, of which earlier ones may be ancestors of later ones."""
        prompts, positions = self._slots.prompts_of(slots), self._slots.positions_of(slots)
        blocks = tree_blocks(prompts, positions, self._batches, self._slots.prompt_lengths, tokens.device)
        above = self._slots.ancestors(slots)
        step = Step(
            on_device(slots, tokens.device),
            on_device(np.maximum(above, 0), tokens.device),
            on_device(above >= 0, tokens.device),
            blocks,
        )
        self.reserve(self._slots.capacity)
        return self.run(tokens, on_device(positions, tokens.device), step)

    def reserve(self, capacity: int) -> None:
        """Let the next call of :meth:`run` make room for the keys and values of so many decoded tokens."""
        self._cache.capacity = capacity

    def run(
        self, inputs: torch.Tensor, positions: torch.Tensor, step: Step, places: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Call the model on packed rows, for callers that keep count of slots themselves. Waits for no device.

        Parameters
        ----------
        inputs
            int64 [N] or embeddings [N, D].
        positions
            int64 [N], the place of each row in its own sequence.
        step
            Where the rows' keys and values go, and what the rows attend to.
        places
            Rows that are wanted of a whole model; None: all.

        Returns
        -------
        Hidden states [N, D], or the whole model's logits.
        """
        arguments: dict[str, Any] = {"inputs_embeds" if inputs.is_floating_point() else "input_ids": inputs[None]}
        if places is not None:
            arguments["logits_to_keep"] = places
        with tree_attention(self._cache, step):
            output = self._body(
                **arguments,
                position_ids=positions[None],
                **self._cached,
                use_cache=True,
                return_dict=True,
            )
        hidden: torch.Tensor = (output.logits if self._whole else output.last_hidden_state)[0]
        return hidden
