"""How good recommendations are: hits and ranks, lists, and what beam search loses.

Metrics need numpy alone; what runs a model (:func:`catalog_logprobs`, :func:`item_logprobs`,
:func:`target_token_ranks`) loads torch and transformers when first named.
"""

from typing import TYPE_CHECKING, Any

from gentrie.evaluation.lists import (
    control_symbol_rate,
    coverage,
    gini,
    in_history_rate,
    ood_rate,
    repeat_rate,
    resolve_lists,
)
from gentrie.evaluation.pruned import Pruning, pruning
from gentrie.evaluation.ranking import hit_rate, mrr, ndcg, ranks, recall

if TYPE_CHECKING:
    from gentrie.evaluation.catalog import catalog_logprobs, item_logprobs
    from gentrie.evaluation.token_ranks import target_token_ranks

__all__ = [
    "Pruning",
    "catalog_logprobs",
    "control_symbol_rate",
    "coverage",
    "gini",
    "hit_rate",
    "in_history_rate",
    "item_logprobs",
    "mrr",
    "ndcg",
    "ood_rate",
    "pruning",
    "ranks",
    "recall",
    "repeat_rate",
    "resolve_lists",
    "target_token_ranks",
]


def __getattr__(name: str) -> Any:
    module = {"target_token_ranks": "token_ranks", "catalog_logprobs": "catalog", "item_logprobs": "catalog"}.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from gentrie._optional import require

    require("torch", extra="hf")
    require("transformers", extra="hf")
    return getattr(import_module(f"gentrie.evaluation.{module}"), name)
