"""A model evaluated at any set of positions of a token tree, each prompt encoded once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from gentrie.model.model_copies import uncompiled
from gentrie.model.tree_head import TreeHead, WholeHead, tempered
from gentrie.model.tree_packed import PackedForward
from gentrie.model.tree_padded import PaddedForward
from gentrie.model.tree_slots import Int64Array, TreeSlots


@dataclass
class TreeStats:
    """What was asked of the model.

    Attributes
    ----------
    prompt_calls, calls
        Forward passes over prompts, and over tokens of the tree.
    prompt_tokens, tokens
        Tokens of prompts, and of the tree.
    padded_slots
        Positions computed besides: 0 where the model runs on packed rows.
    """

    prompt_calls: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    padded_slots: int = 0


class TreeDecoder:
    """Prompts and the trees of tokens that grow from them, as a language model sees them.

    A *slot* names a place: the end of a prompt, or a token behind another slot. :meth:`extend` adds tokens behind any
    slots and returns their hidden states. Keys and values of a prompt and of a shared prefix are stored once. Models
    whose layers call the attention interface of ``transformers`` run on packed rows, without padding; others, and
    encoder-decoders, on padded paths behind their encoded prompts. No gradient is recorded.

    Parameters
    ----------
    model
        A decoder-only model or an encoder-decoder with an LM head, in evaluation mode; also wrapped by PEFT (but not
        prompt tuning), by DDP or, with a warning, compiled. It is never altered: what needs other settings is a copy of
        its modules, made once, that shares the weights, so other threads may use the model at the same time. Soft-caps
        and windows of the attention are honoured in any setting.
    input_ids
        int64 [B, T].
    attention_mask
        [B, T], 1 for tokens, padding on the left or the right; None: nothing is padded.
    inputs_embeds
        [B, T, D] in place of ``input_ids``.
    encoder_outputs
        [B, T, D] in place of ``input_ids``: last hidden states of an encoder-decoder's encoder.
    decoder_start_token_id
        What an encoder-decoder's decoder begins with; by default what the model's configs say.
    whole_model
        Whether to call the model itself rather than its layers and its head, once in each :meth:`extend`: models whose
        weights are spread over ranks need that. What is called hidden states here are then its logits.

    Raises
    ------
    ValueError, TypeError
        For a model in training mode, without LM head, or that neither way of running can serve; for prompts that are
        empty, have holes in their mask, or shapes that do not fit.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        encoder_outputs: torch.Tensor | None = None,
        decoder_start_token_id: int | None = None,
        whole_model: bool = False,
    ) -> None:
        self._model = _language_model(model)
        self._slots = TreeSlots()
        self.stats = TreeStats()
        self._start, self._whole = decoder_start_token_id, whole_model
        with torch.no_grad():
            self._head = WholeHead(self._model) if whole_model else TreeHead(self._model)
        self._forward: PackedForward | PaddedForward | None = None
        self.prompt_slots, self.prompt_hidden = self.add_prompts(
            input_ids, attention_mask, inputs_embeds=inputs_embeds, encoder_outputs=encoder_outputs
        )
        """int64 [B], the slot of each prompt's end, and [B, D], its hidden state before the LM head."""

    @property
    def device(self) -> torch.device:
        """Where hidden states lie."""
        return self.prompt_hidden.device

    @property
    def vocab_size(self) -> int:
        """Width of the model's logits."""
        return self._head.vocab_size

    @property
    def packed(self) -> bool:
        """Whether rows are packed rather than padded."""
        return self.packed_forward is not None

    @property
    def packed_forward(self) -> PackedForward | None:
        """What calls the model on packed rows; None where rows are padded."""
        return self._forward if isinstance(self._forward, PackedForward) else None

    @property
    def prompt_lengths(self) -> Int64Array:
        """int64 [B], tokens of each prompt."""
        return self._slots.prompt_lengths

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of stored keys and values: of prompts, and of tokens in the trees."""
        return (0, 0) if self._forward is None else self._forward.nbytes

    @property
    def num_slots(self) -> int:
        """Slots in use."""
        return self._slots.num_live

    @torch.no_grad()
    def add_prompts(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        inputs_embeds: torch.Tensor | None = None,
        encoder_outputs: torch.Tensor | None = None,
    ) -> tuple[Int64Array, torch.Tensor]:
        """Encode further prompts, given as to the constructor: slots [B] of their ends and hidden states [B, D]."""
        prompts = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, "encoder_outputs": encoder_outputs}
        if encoder_outputs is not None and not self._model.config.is_encoder_decoder:
            raise ValueError(f"encoder_outputs: {type(self._model).__name__} has no encoder")
        inputs, lengths = _packed_prompts(prompts, attention_mask)
        hidden = self._encode(inputs, lengths, encoded=encoder_outputs is not None)
        self.stats.prompt_calls += 1
        self.stats.prompt_tokens += int(lengths.sum())
        return self._slots.add_prompts(lengths), hidden

    @torch.no_grad()
    def replace_prompts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None:
        """Encode other prompts in the place of the constructor's: keys and values are written to the same addresses.

        Parameters
        ----------
        input_ids, attention_mask
            As for the constructor: as many prompts, the longest as long as the longest of the former.

        Raises
        ------
        ValueError
            For other numbers and lengths, where rows are padded, and behind :meth:`extend` and :meth:`add_prompts`.
            Nothing has changed then.
        """
        forward, former = self.packed_forward, self.prompt_lengths
        if forward is None or self._slots.num_live != len(self.prompt_slots):
            raise ValueError("prompts are replaced only where rows are packed and nothing has been added to them")
        inputs, lengths = _packed_prompts({"input_ids": input_ids}, attention_mask)
        if (lengths.size, lengths.max()) != (former.size, former.max()):
            raise ValueError(
                f"input_ids has {lengths.size} prompts of at most {lengths.max()} tokens, "
                f"expected {former.size} of at most {former.max()}"
            )
        self.prompt_hidden = forward.encode(inputs, lengths, replaces=0)
        self._slots.prompt_lengths[:] = lengths
        self.stats.prompt_calls += 1
        self.stats.prompt_tokens += int(lengths.sum())

    @torch.no_grad()
    def extend(self, parents: Any, tokens: Any) -> tuple[Int64Array, torch.Tensor]:
        """Add one token behind each of N places, all in one forward pass.

        Parameters
        ----------
        parents
            int64 [N], slots; ``~j`` (that is, ``-1 - j``) stands for row j of this call, j < i, so that a forced run
            is one call.
        tokens
            int64 [N], array or tensor. Rows of many prompts may be mixed, and one place may be extended many times.

        Returns
        -------
        slots, hidden
            int64 [N], and [N, D] before the LM head, in the model's dtype.

        Raises
        ------
        ValueError
            Naming the row: a parent that is no slot in use or no earlier row, a token outside the vocabulary.
        """
        ids = np.asarray(tokens.cpu() if isinstance(tokens, torch.Tensor) else tokens)
        behind = np.asarray(parents)
        if ids.ndim != 1 or behind.shape != ids.shape:
            raise ValueError(f"parents has shape {behind.shape} and tokens {ids.shape}, expected both [N]")
        if not ids.size:
            return np.empty(0, dtype=np.int64), self.prompt_hidden[:0]
        if ids.dtype.kind not in "iu" or behind.dtype.kind not in "iu":
            raise TypeError(f"parents and tokens must be integers, not {behind.dtype} and {ids.dtype}")
        outside = np.flatnonzero((ids < 0) | (ids >= self._vocabulary))
        if outside.size:
            row = int(outside[0])
            raise ValueError(f"tokens[{row}] is {ids[row]}, outside [0, {self._vocabulary})")
        assert self._forward is not None
        ids = ids.astype(np.int64)
        slots = self._slots.add_rows(behind.astype(np.int64), ids)
        try:
            hidden = self._forward.extend(slots, torch.from_numpy(ids).to(self.device))
        except BaseException:
            self._slots.drop(slots)
            raise
        self.stats.calls += 1
        self.stats.tokens += ids.size
        self.stats.padded_slots = self._forward.padded_tokens
        return slots, hidden

    def keep(self, slots: Any) -> None:
        """Drop every slot but these [N], those above them, and the prompts' ends; dropped numbers are used again.

        Raises
        ------
        ValueError
            For a slot not in use.
        """
        self._slots.keep(self._slots.check("slots", slots))

    @torch.no_grad()
    def logits(
        self, hidden: torch.Tensor, token_ids: torch.Tensor | None = None, temperature: float = 1.0
    ) -> torch.Tensor:
        """The model's logits [N, vocabulary] of hidden states [N, D], or [N, tokens] of the tokens [tokens] alone, over
        ``temperature``."""
        return tempered(self._head.logits(hidden, token_ids), temperature)

    @torch.no_grad()
    def normalized_logits(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of some tokens, and what normalises them over the whole vocabulary, which is never held for all rows.

        Parameters
        ----------
        hidden
            [N, D].
        token_ids
            int64 [tokens] on the model's device, ascending.
        temperature
            Logits are divided by it.

        Returns
        -------
        logits, normalizers
            [N, tokens], and float32 [N], the logarithm of the sum of the exponentials of all logits.
        """
        return self._head.normalized(hidden, token_ids, temperature)

    @property
    def _vocabulary(self) -> int:
        """Tokens that have an embedding."""
        if self._whole:
            return self.vocab_size
        embeddings: Any = self._model.get_input_embeddings()
        return int(embeddings.weight.shape[0])

    def _encode(self, inputs: torch.Tensor, lengths: Int64Array, *, encoded: bool) -> torch.Tensor:
        if self._forward is None and not encoded:
            try:
                packed = PackedForward(self._model, self._slots, whole_model=self._whole)
                hidden = packed.encode(inputs, lengths)
                self._forward = packed
                return hidden
            except torch.OutOfMemoryError:
                raise
            except Exception:
                # Refused by name, or failed for want of a mask or a cache of another kind: padded rows have the model's
                # own. Where the prompts are at fault they fail again.
                pass
        if self._forward is None:
            padded = PaddedForward(self._model, self._slots, start=self._start, whole_model=self._whole)
            hidden = padded.encode(inputs, lengths, encoded=encoded)
            self._forward = padded
            return hidden
        if isinstance(self._forward, PaddedForward):
            return self._forward.encode(inputs, lengths, encoded=encoded)
        return self._forward.encode(inputs, lengths)


def _language_model(model: Any) -> PreTrainedModel:
    """The model inside wrappers, checked, with nothing compiled."""
    model = uncompiled(model, stacklevel=3)
    if isinstance(model, DistributedDataParallel):
        model = model.module
        model = getattr(model, "_orig_mod", model)
    if hasattr(model, "get_base_model"):
        if getattr(model.active_peft_config, "is_prompt_learning", False):
            raise ValueError(
                f"prompt tuning ({type(model.active_peft_config).__name__}) is not supported: merge or drop it"
            )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model is {type(model).__name__}, expected a transformers PreTrainedModel")
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes its answers: call model.eval()")
    return model


def _packed_prompts(prompts: dict[str, Any], attention_mask: torch.Tensor | None) -> tuple[torch.Tensor, Int64Array]:
    """Prompts one after the other, ids [sum] or vectors [sum, D], and their lengths int64 [B]."""
    given = {name: inputs for name, inputs in prompts.items() if inputs is not None}
    if len(given) != 1:
        raise ValueError(f"give either {' or '.join(prompts)}")
    ((name, inputs),) = given.items()
    if not isinstance(inputs, torch.Tensor) or inputs.ndim != (2 if name == "input_ids" else 3):
        raise ValueError(f"{name} must be a tensor [B, T{'' if name == 'input_ids' else ', D'}]")
    if 0 in inputs.shape:
        raise ValueError(f"{name} has shape {tuple(inputs.shape)}: there is no prompt")
    if attention_mask is None:
        return inputs.flatten(0, 1), np.full(inputs.shape[0], inputs.shape[1], dtype=np.int64)
    if attention_mask.shape != inputs.shape[:2]:
        raise ValueError(f"attention_mask has shape {tuple(attention_mask.shape)}, expected {tuple(inputs.shape[:2])}")
    mask = attention_mask.to(device=inputs.device) != 0
    on_host = mask.cpu().numpy()
    lengths = on_host.sum(1, dtype=np.int64)
    edges = np.diff(on_host.astype(np.int8), axis=1, prepend=0, append=0)
    for wrong, what in ((lengths == 0, "has no token"), ((edges == 1).sum(1) > 1, "has a hole in its mask")):
        if wrong.any():
            raise ValueError(f"attention_mask: row {int(np.argmax(wrong))} {what}")
    return inputs[mask], lengths
