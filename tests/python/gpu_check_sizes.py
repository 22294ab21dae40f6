"""Sizes of the GPU benchmarks at which a CPU runs them in seconds."""

from __future__ import annotations

from typing import Any

from gentrie.bench.gpu import (
    beam_step,
    beam_step_titles,
    bear_loss,
    generate,
    request,
    topb_threshold,
    trie_linear,
    trie_mask,
)
from gentrie.bench.models import MODELS

TITLES = {"items": 30, "vocab_size": 1100}
MODELS["tiny"] = MODELS["small"] | {"vocab_size": 1100, "hidden_size": 16, "intermediate_size": 16}  # type: ignore[index]

TINY: dict[str, Any] = {
    "beam-step": beam_step.Sizes(prompts=1, beams=3, length=4, num_codes=8, items=(20, 60), depths=(1, 2)),
    "beam-step-titles": beam_step_titles.Sizes(prompts=2, beams=3, depths=(0, 1), **TITLES),
    "trie-mask": trie_mask.Sizes(rows=3, **TITLES),
    "topb-threshold": topb_threshold.Sizes(rows=3, vocab_size=1100),
    "bear-loss": bear_loss.Sizes(tokens=3, **TITLES),
    "trie-linear": trie_linear.Sizes(tokens=8, hidden_size=16, **TITLES),
    "generate": generate.Sizes(model="tiny", items=30, prompt_tokens=8, new_tokens=4, calls=2, profiled=2),
    "request": request.Sizes(
        shape=request.QWEN3_1_7B
        | {
            "vocab_size": 50,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
        },
        beams=(3,),
        batches=(1,),
        items=60,
        length=2,
        num_codes=8,
        prompt_tokens=5,
        requests=1,
        dtype="float32",
    ),
}
