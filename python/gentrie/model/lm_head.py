"""What models do to the output of their LM head."""

from __future__ import annotations

from typing import Any


def logit_softcap(config: Any) -> float | None:
    """``c`` where a model's logits are ``c * tanh(raw / c)`` (Gemma 2's ``final_logit_softcapping``), or None."""
    cap = getattr(config, "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def logit_scale(config: Any) -> float:
    """What a model multiplies the output of its head by: Cohere's ``logit_scale``, one over Granite's scaling."""
    scale = float(getattr(config, "logit_scale", None) or 1.0)
    scale *= float(getattr(config, "lm_head_multiplier", None) or 1.0)
    scaling = float(getattr(config, "logits_scaling", None) or 1.0)
    return scale * (scaling if config.model_type.startswith("hyperclovax") else 1 / scaling)
