"""How good recommendations are: hits and ranks, lists, and what beam search loses."""

from gentrie.evaluation.lists import (
    control_symbol_rate,
    coverage,
    gini,
    in_history_rate,
    ood_rate,
    repeat_rate,
    resolve_lists,
)
from gentrie.evaluation.ranking import hit_rate, mrr, ndcg, ranks, recall

__all__ = [
    "control_symbol_rate",
    "coverage",
    "gini",
    "hit_rate",
    "in_history_rate",
    "mrr",
    "ndcg",
    "ood_rate",
    "ranks",
    "recall",
    "repeat_rate",
    "resolve_lists",
]
