"""Models small enough to generate thousands of tokens a second, and models that follow a script."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    GenerationMixin,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.modeling_outputs import CausalLMOutput

VOCAB_SIZE = 48
PAD, END, BEGIN, TURN_END = 0, 1, 2, 3
FIRST_TOKEN = 4

Logits = Callable[[torch.Tensor], torch.Tensor]


@functools.cache
def tiny_model(kind: str, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> PreTrainedModel:
    """A random ``llama``, ``gpt2`` or ``t5`` whose next-token distributions are far from uniform."""
    torch.manual_seed(seed)
    control: dict[str, Any] = {"bos_token_id": None, "eos_token_id": END, "pad_token_id": PAD}
    if kind == "llama":
        model: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=256,
                initializer_range=0.5,
                **control,
            )
        )
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size,
                n_positions=256,
                n_embd=16,
                n_layer=2,
                n_head=2,
                initializer_range=0.5,
                **control,
            )
        )
    else:
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=vocab_size,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=2,
                num_decoder_layers=2,
                num_heads=2,
                initializer_factor=3.0,
                decoder_start_token_id=PAD,
                tie_word_embeddings=False,
                **control,
            )
        )
    return model.eval()


class ScriptedModel(PreTrainedModel, GenerationMixin):
    """A language model whose logits [batch, vocabulary] are a function of the ids [batch, length] so far."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, logits: Logits, vocab_size: int, eos_token_id: int, pad_token_id: int = PAD) -> None:
        super().__init__(
            PretrainedConfig(
                vocab_size=vocab_size, eos_token_id=eos_token_id, pad_token_id=pad_token_id, num_hidden_layers=1
            )
        )
        self._logits = logits
        self._device_marker = torch.nn.Parameter(torch.zeros(1))
        self.generation_config.use_cache = False

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> CausalLMOutput:
        return CausalLMOutput(logits=self._logits(input_ids)[:, None])

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any
    ) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}


def markov_logits(seed: int, vocab_size: int = VOCAB_SIZE, **raised: float) -> Logits:
    """Random logits that depend on the last two tokens and the position.

    Each row's logits are computed apart from the other rows', so that batches can be compared bit for bit.
    ``raised`` maps ``t<id>`` to what is added to that token.
    """
    generator = torch.Generator().manual_seed(seed)
    last, before = (2 * torch.randn(vocab_size, vocab_size, generator=generator) for _ in range(2))
    position = torch.randn(1024, vocab_size, generator=generator)
    bias = torch.zeros(vocab_size)
    for name, value in raised.items():
        bias[int(name[1:])] = value

    def logits(ids: torch.Tensor) -> torch.Tensor:
        rows = ids.cpu()
        second = rows[:, -2] if rows.shape[1] > 1 else rows[:, -1]
        return (last[rows[:, -1]] + before[second] + position[rows.shape[1]] + bias).to(ids.device)

    return logits
