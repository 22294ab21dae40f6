"""The models of Table A2: shapes of real ones, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from transformers import LlamaConfig, LlamaForCausalLM

Model: TypeAlias = Any
"""A ``LlamaForCausalLM``; transformers' own annotations do not let one call its ``generate``."""

MODELS: Mapping[str, Mapping[str, Any]] = {
    # Small enough that constraining takes about the share of a step that it takes in the paper.
    "small": {
        "vocab_size": 131_072,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "dtype": torch.float32,
    },
    "llama-3-8b": {
        "vocab_size": 128_256,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "dtype": torch.bfloat16,
    },
}


def build_model(name: str, device: torch.device, *, at_least: int = 0, seed: int = 0) -> Model:
    """Build one of ``MODELS`` with random weights, made on ``device``.

    Parameters
    ----------
    name
        The model.
    device
        Where it is to run.
    at_least
        Widens a vocabulary that is smaller.
    seed
        Seed of the weights.

    Raises
    ------
    ValueError
        There is no such model.
    """
    shape = shape_of(name)
    dtype = shape.pop("dtype")
    shape["vocab_size"] = max(shape["vocab_size"], at_least)
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=None)
    before = torch.get_default_dtype()
    torch.manual_seed(seed)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model: Model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    return model.eval()


def shape_of(name: str) -> dict[str, Any]:
    """The settings of a model of ``MODELS``, and its ``dtype``."""
    if name not in MODELS:
        raise ValueError(f"model: {name!r} is not one of {', '.join(MODELS)}")
    return dict(MODELS[name])
