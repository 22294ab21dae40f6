"""The cache of keys and values, whatever a model or a release of ``transformers`` calls it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationMixin
from transformers.cache_utils import Cache

# ``transformers`` 5.24 renamed the argument and the output; models with code of their own may keep the older name.
_NAMES = ("cache", "past_key_values")


def cache_name(forward: Callable[..., Any]) -> str:
    """Return the keyword under which ``forward`` takes its cache.

    A signature that does not say (``**kwargs`` alone) gets the name that this release's ``generate`` uses.
    """
    for function in (forward, GenerationMixin.prepare_inputs_for_generation):
        taken = inspect.signature(function).parameters
        for name in _NAMES:
            if name in taken:
                return name
    return _NAMES[0]


def find_cache(values: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the name and the value of the cache among a model's arguments or outputs; ``None`` if there is none.

    A cache is known by its type first, so that a name of a later release is found as well.
    """
    for name, value in values.items():
        if isinstance(value, Cache):
            return name, value
    for name in _NAMES:
        if name in values and values[name] is not None:  # the tuples of older models
            return name, values[name]
    return _NAMES[0], None


def drop_unused_cache(model: Any, values: Mapping[str, Any]) -> None:
    """Let ``generate`` make a new cache at its next call, where the model keeps the one that stays empty here.

    ``transformers`` 4 keeps a static cache on the model, and its next call fails on one that was never filled.
    """
    _, cache = find_cache(values)
    if cache is not None and getattr(model, "_cache", None) is cache:
        del model._cache
