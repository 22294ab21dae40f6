"""The exact top-B items of a catalog, by best-first search over its trie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _core, _validate
from gentrie.generation._best_first_frontier import Frontier
from gentrie.generation._frontier_search import FrontierSearch
from gentrie.item_filter import items_of, make_filters
from gentrie.matcher import make_constraint
from gentrie.model.tree_decoder import TreeDecoder
from gentrie.search.item_scores import ItemScores
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BestFirstStats:
    """What a search cost, over all prompts.

    Attributes
    ----------
    model_calls
        Calls of the model, the prompts' included.
    rows
        Distributions over the next token that were computed, the prompts' included.
    tokens_computed
        Tokens fed to the model behind the prompts.
    tokens_forced
        Those of the returned sequences that were the only choice.
    """

    model_calls: int
    rows: int
    tokens_computed: int
    tokens_forced: int


@dataclass(frozen=True)
class BestFirstResult:
    """The best items of each prompt, best first; only what was found.

    Attributes
    ----------
    sequences
        For each prompt, token ids of each item, end token included.
    sequences_scores
        For each prompt float64 [found]: log-probabilities.
    token_scores
        For each prompt and item float64 [tokens]; they sum to the item's score. 0 for forced tokens under
        ``scope="trie"``.
    item_ids
        For each prompt and item int64 [n], the items that share the sequence.
    num_found
        int64 [prompts].
    certified
        bool [prompts]: no other item of the catalog scores higher than those returned, to the rounding of float32.
    gap
        float64 [prompts]: by how much an item not yet seen could score above the last one returned; 0 where
        certified, infinite where fewer than asked for were found and others are left.
    stats
        What it cost.
    """

    sequences: list[list[list[int]]]
    sequences_scores: list[Float64Array]
    token_scores: list[list[Float64Array]]
    item_ids: list[list[npt.NDArray[np.int64]]]
    num_found: npt.NDArray[np.int64]
    certified: npt.NDArray[np.bool_]
    gap: Float64Array
    stats: BestFirstStats


def best_first_search(
    model: Any,
    input_ids: torch.Tensor | None,
    trie: TokenTrie,
    *,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    num_results: int = 10,
    scope: Literal["trie", "vocab"] = "trie",
    item_filter: Any = None,
    item_scores: Any = None,
    alpha: float | None = None,
    max_calls: int | None = None,
    max_rows_per_call: int = 256,
    speculation: float = 0.2,
    length_penalty: float = 0.0,
    logits_processor: Sequence[Any] = (),
) -> BestFirstResult:
    """The items of highest log-probability, certainly.

    The score of an item is a sum of log-probabilities, none of them positive, so a prefix bounds every item below it:
    once the last of the best finished items beats every open prefix, nothing better is left. Prefixes are opened best
    first. Those that are certainly needed go into one call: the masses of disjoint prefixes limit how high the last
    item can score, and whatever reaches that limit must be opened. Others are opened with them only so long as they
    stay a small share of all, so that the rows computed stay near the fewest possible.

    Parameters
    ----------
    model
        What :class:`TreeDecoder` serves.
    input_ids, attention_mask, inputs_embeds
        Prompts [P, T], as for :class:`TreeDecoder`; each is encoded once.
    trie
        The catalog.
    num_results
        Items wanted for each prompt; fewer come back where catalog or filter hold fewer.
    scope
        ``"trie"``: softmax over the valid tokens (``generate`` with ``renormalize_logits=True``), forced tokens are
        free; ``"vocab"``: over the whole vocabulary, forced tokens cost log-probability.
    item_filter
        Items that may be given, as in :class:`TrieLogitsProcessor`; also one a prompt.
    item_scores, alpha
        D3: real numbers [prompts, items], column i for item id i, and a weight in [0, 1]. A token then scores
        ``alpha * log p + (1 - alpha) * log q``, q being its share of the item scores below the allowed tokens.
    max_calls
        Calls of the model behind the prompts after which the search ends with what it has, and the gap left.
    max_rows_per_call
        Prefixes opened in one call at most.
    speculation
        Rows not known to be needed, as a share of those that are.
    length_penalty, logits_processor
        Only 0 and nothing: anything else may raise a score, and then a prefix bounds nothing.

    Raises
    ------
    ValueError, TypeError
        For a length penalty or processors, and what :class:`TreeDecoder` and filters refuse, and logits of
        valid tokens that are not numbers.
    """
    _validate.trie("trie", trie)
    if length_penalty != 0:
        raise ValueError(
            f"length_penalty={length_penalty}: scores divided by the length may rise along a path, so no prefix bounds "
            "its items; only 0 can be certified"
        )
    if len(logits_processor):
        names = ", ".join(type(processor).__name__ for processor in logits_processor)
        raise ValueError(f"logits_processor={names}: they may raise a score, so no prefix bounds its items")
    _validate.choice("scope", scope, ("trie", "vocab"))
    wanted = _validate.integer("num_results", num_results, 1, 2**31 - 1)
    limit = 2**62 if max_calls is None else _validate.integer("max_calls", max_calls, 0, 2**31 - 1)
    width = _validate.integer("max_rows_per_call", max_rows_per_call, 1, 2**31 - 1)
    if not 0 <= speculation < float("inf"):
        raise ValueError(f"speculation={speculation} is outside [0, inf)")
    if (item_scores is None) != (alpha is None):
        raise ValueError("item_scores and alpha go together, one of them is missing")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is outside [0, 1], so no prefix bounds its items")
    outside = None if item_scores is None else ItemScores(trie, item_scores)
    filters = make_filters(trie, item_filter)
    decoder = TreeDecoder(model, input_ids, attention_mask, inputs_embeds=inputs_embeds)
    prompts = len(decoder.prompt_slots)
    if len(filters) not in (1, prompts):
        raise ValueError(f"item_filter has {len(filters)} entries for {prompts} prompts")
    if outside is not None and outside.num_prompts != prompts:
        raise ValueError(f"item_scores has {outside.num_prompts} rows for {prompts} prompts")
    filters = filters * prompts if len(filters) == 1 else filters
    matchers = [_core.Matcher(make_constraint(trie, None, None, False, chosen)) for chosen in filters]
    frontiers = [
        Frontier(
            trie,
            matchers[row],
            wanted,
            float(speculation),
            scope == "trie",
            outside,
            row,
            1.0 if alpha is None else float(alpha),
        )
        for row in range(prompts)
    ]
    FrontierSearch(decoder, trie, frontiers, scope).run(limit, width)
    calls = decoder.stats
    found = [frontier.best() for frontier in frontiers]
    return BestFirstResult(
        sequences=[[item.path() for item in items] for items in found],
        sequences_scores=[np.array([item.score for item in items]) for items in found],
        token_scores=[[np.array(item.path_scores()) for item in items] for items in found],
        item_ids=[
            [items_of(trie, chosen, item.path()) for item in items]
            for items, chosen in zip(found, filters, strict=True)
        ],
        num_found=np.array([len(items) for items in found], dtype=np.int64),
        certified=np.array([frontier.gap() <= 0 for frontier in frontiers]),
        gap=np.array([frontier.gap() for frontier in frontiers]),
        stats=BestFirstStats(
            model_calls=calls.prompt_calls + calls.calls,
            rows=sum(frontier.rows for frontier in frontiers),
            tokens_computed=calls.tokens,
            tokens_forced=sum(item.num_forced() for items in found for item in items),
        ),
    )
