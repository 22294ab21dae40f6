"""Tiny random models of the shapes that differ for a token tree: heads, windows, caps, scales, sinks, encoders."""

from __future__ import annotations

import functools
from typing import Any

import torch
import transformers
from tiny_models import END, PAD, VOCAB_SIZE, tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

_DECODER: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": END,
    "pad_token_id": PAD,
}
_OWN: dict[str, dict[str, Any]] = {
    "Qwen2": {"head_dim": 4},
    "Qwen3": {},
    "Mistral": {"sliding_window": 4},
    "Gemma2": {
        "sliding_window": 4,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 3.0,
        "final_logit_softcapping": 5.0,
        "attn_implementation": "eager",  # older transformers' sdpa drops the soft-cap
    },
    "Cohere": {"logit_scale": 0.25, "head_dim": 4},
    "Granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3, "head_dim": 4},
    "GptOss": {"sliding_window": 4, "num_local_experts": 2, "num_experts_per_tok": 1, "rope_scaling": None},
    "Bloom": {"n_head": 4, "n_layer": 2},
    "MiniMax": {"num_local_experts": 2, "num_experts_per_tok": 1},
}
_LATENT = {
    "num_key_value_heads": 4,
    "head_dim": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_OWN |= dict.fromkeys(("DeepseekV2", "DeepseekV3", "Glm4MoeLite", "MiniCPM3"), _LATENT)

PACKED = ("llama", "gpt2", "Qwen2", "Qwen3", "Mistral", "Gemma2", "Cohere", "Granite", "GptOss")
PADDED = ("t5", "tied_t5", "Bloom", "MiniMax")
LATENT = tuple(  # newer releases store latents, older ones the keys and values that are made from them
    kind for kind in ("DeepseekV2", "DeepseekV3", "Glm4MoeLite", "MiniCPM3") if hasattr(transformers, f"{kind}Config")
)


@functools.cache
def tree_model(kind: str) -> PreTrainedModel:
    """A random model in evaluation mode, by the name of its config class or of :func:`tiny_models.tiny_model`."""
    if kind in ("llama", "gpt2"):
        return tiny_model(kind)
    torch.manual_seed(len(kind))
    if kind in ("t5", "tied_t5"):
        own = {"tie_word_embeddings": kind == "tied_t5", "initializer_factor": 1.0}
        config = transformers.T5Config(**{**tiny_model("t5").config.to_dict(), **own})
        return transformers.T5ForConditionalGeneration(config).eval()
    config = getattr(transformers, f"{kind}Config")(**{**_DECODER, **_OWN[kind]})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "sinks" in name or "bias" in name:
                weight.normal_()
    return model


def logits_behind(model: PreTrainedModel, rows: list[tuple[list[int], list[int]]]) -> torch.Tensor:
    """[rows, vocabulary] by the plain model, from whole sequences: prompt and path of each row.

    Sequences are padded on the right, where no causal model looks.
    """
    prompts, paths = zip(*rows, strict=True)
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            mask = _padded([[1] * len(prompt) for prompt in prompts])
            starts = _padded([[PAD, *path] for path in paths])
            logits = model(input_ids=_padded(prompts), attention_mask=mask, decoder_input_ids=starts).logits
            return torch.stack([row[len(path)] for row, path in zip(logits, paths, strict=True)])
        whole = [prompt + path for prompt, path in rows]
        logits = model(input_ids=_padded(whole), use_cache=False).logits
        return torch.stack([row[len(ids) - 1] for row, ids in zip(logits, whole, strict=True)])


def _padded(rows: list[list[int]] | tuple[list[int], ...]) -> torch.Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
