"""Constrained generation with Hugging Face ``transformers``."""

from gentrie._optional import require

require("torch", extra="hf")
require("transformers", extra="hf")

from gentrie.generation.beam_results import BeamSearchResult, BeamStats  # noqa: E402
from gentrie.generation.beam_rollouts import beam_rollouts  # noqa: E402
from gentrie.generation.beam_search import beam_search  # noqa: E402
from gentrie.generation.best_first_search import BestFirstResult, best_first_search  # noqa: E402
from gentrie.generation.custom_generate import TrieBeamOutput, trie_beam_search  # noqa: E402
from gentrie.generation.generate_with_items import generate_with_items  # noqa: E402
from gentrie.generation.item_lists import ItemLists, merge_names, read_items, read_text_items  # noqa: E402
from gentrie.generation.item_sampling import ItemSamples, sample_items  # noqa: E402
from gentrie.generation.item_tokens import add_item_tokens  # noqa: E402
from gentrie.generation.logits_processor import TrieLogitsProcessor  # noqa: E402
from gentrie.generation.recommend import recommend  # noqa: E402
from gentrie.generation.recommendation_store import Recommendation, RecommendationStore  # noqa: E402
from gentrie.generation.response_template import ResponseTemplate  # noqa: E402
from gentrie.generation.text_results import TextStats, TextWithItems  # noqa: E402
from gentrie.model.tree_decoder import TreeDecoder, TreeStats  # noqa: E402
from gentrie.search import BeamItems, BeamRows, BeamStep, BeamStepper  # noqa: E402

__all__ = [
    "BeamItems",
    "BeamRows",
    "BeamSearchResult",
    "BeamStats",
    "BeamStep",
    "BeamStepper",
    "BestFirstResult",
    "ItemLists",
    "ItemSamples",
    "Recommendation",
    "RecommendationStore",
    "ResponseTemplate",
    "TextStats",
    "TextWithItems",
    "TreeDecoder",
    "TreeStats",
    "TrieBeamOutput",
    "TrieLogitsProcessor",
    "add_item_tokens",
    "beam_rollouts",
    "beam_search",
    "best_first_search",
    "generate_with_items",
    "merge_names",
    "read_items",
    "read_text_items",
    "recommend",
    "sample_items",
    "trie_beam_search",
]
