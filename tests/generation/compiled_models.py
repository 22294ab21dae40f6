"""Compiled models that fail as soon as compiled code would be made or run."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

WAYS = ("wrapper", "module", "forward", "inside")
# One in the fast set, for what takes seconds a way.
SOME_WAYS = (WAYS[0], *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:]))


def never(*_: Any) -> Any:
    """A backend of ``torch.compile``."""
    raise AssertionError("the model was compiled")


def compiled(model: Any, way: str) -> Any:
    """A copy of the model, compiled in one of ``WAYS``."""
    model = copy.deepcopy(model)
    if way == "wrapper":
        return torch.compile(model, backend=never)
    if way == "module":
        model.compile(backend=never)
    elif way == "forward":
        model.forward = torch.compile(model.forward, backend=never)
    else:
        name, inner = next((name, child) for name, child in model.named_children() if next(child.children(), None))
        setattr(model, name, torch.compile(inner, backend=never))
        next(iter(model.modules())).lm_head.compile(backend=never)
    return model


def still_compiled(model: Any, ids: torch.Tensor) -> bool:
    """Whether the model, called by itself, runs compiled code."""
    inputs = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    try:
        model(input_ids=ids, **inputs)
    except Exception as error:
        return "the model was compiled" in str(error)
    return False
