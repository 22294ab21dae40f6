"""Losses that touch only valid tokens, from logits and straight from hidden states, and what trains with them."""

from gentrie._optional import require

for _module in ("torch", "transformers"):
    require(_module, extra="hf")

from gentrie.training._moments import LogitMoments  # noqa: E402
from gentrie.training._reduce import LossStats  # noqa: E402
from gentrie.training.adaptive_tau import AdaptiveTau  # noqa: E402
from gentrie.training.beam_objective import BeamObjectiveStats, beam_search_objective  # noqa: E402
from gentrie.training.bear import bear_loss, linear_bear_loss  # noqa: E402
from gentrie.training.collator import ItemCollator  # noqa: E402
from gentrie.training.full_vocabulary import linear_sft_loss, sft_loss  # noqa: E402
from gentrie.training.hf_loss import TrieLoss  # noqa: E402
from gentrie.training.masked_softmax import linear_masked_softmax_loss, masked_softmax_loss  # noqa: E402
from gentrie.training.preference import PreferenceStats, linear_sdpo_loss, sdpo_loss  # noqa: E402
from gentrie.training.recommendation_callback import LogsRecommendations, RecommendationCallback  # noqa: E402
from gentrie.training.token_logprobs import (  # noqa: E402
    linear_sequence_logprobs,
    linear_token_logprobs,
    sequence_logprobs,
    token_logprobs,
)

__all__ = [
    "AdaptiveTau",
    "BeamObjectiveStats",
    "BearTrainer",
    "ItemCollator",
    "LogitMoments",
    "LogsRecommendations",
    "LossStats",
    "PreferenceStats",
    "RecommendationCallback",
    "TrieLoss",
    "beam_search_objective",
    "bear_loss",
    "linear_bear_loss",
    "linear_masked_softmax_loss",
    "linear_sdpo_loss",
    "linear_sequence_logprobs",
    "linear_sft_loss",
    "linear_token_logprobs",
    "masked_softmax_loss",
    "sdpo_loss",
    "sequence_logprobs",
    "sft_loss",
    "token_logprobs",
]


def __getattr__(name: str) -> type:
    """Load ``BearTrainer`` when it is first named: ``transformers.Trainer`` needs ``accelerate``, the losses do not."""
    if name != "BearTrainer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("accelerate", extra="train")
    from gentrie.training.hf_trainer import BearTrainer

    return BearTrainer
