"""Keys and values that searches hold, measured on the caches that the model is called with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from gentrie.model.cache_names import find_cache
from gentrie.model.tree_attention import TreeCache


@dataclass
class HeldBytes:
    """The most bytes that caches held behind a call of the model.

    Attributes
    ----------
    prompts, tree
        Of a token tree's cache: keys and values of prompts, and of the tokens behind them with places that are free.
    dynamic
        Of a cache of ``transformers``, as ``generate`` uses it.
    """

    prompts: int = 0
    tree: int = 0
    dynamic: int = 0

    def see(self, cache: Any) -> None:
        if isinstance(cache, TreeCache):
            layers = cache.stores.values()
            self.prompts = max(self.prompts, allocated(x for layer in layers for pair in layer.prompts for x in pair))
            self.tree = max(self.tree, allocated(x for layer in layers for x in layer.pool or ()))
        else:
            self.dynamic = max(self.dynamic, allocated(x for layer in cache.layers for x in (layer.keys, layer.values)))


@contextmanager
def held_bytes(model: Any) -> Iterator[HeldBytes]:
    """Look at the cache behind each call of the model's layers."""
    held = HeldBytes()
    hook = model.base_model.register_forward_hook(
        lambda module, arguments, given, output: held.see(find_cache(given)[1]), with_kwargs=True
    )
    try:
        yield held
    finally:
        hook.remove()


def allocated(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, each once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
