"""Distinct items drawn from the model's own distribution over the catalog, for reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _core, _validate
from gentrie.generation._best_first_frontier import Frontier, Prefix
from gentrie.generation._frontier_search import FrontierSearch
from gentrie.generation.best_first_search import BestFirstStats
from gentrie.item_filter import items_of, make_filters
from gentrie.matcher import make_constraint
from gentrie.model.tree_decoder import TreeDecoder
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ItemSamples:
    """Distinct items for each prompt: in the order of the draws, or from :func:`beam_rollouts` the most probable first.

    Attributes
    ----------
    sequences
        For each prompt, token ids of each item, end token included; all distinct.
    log_probs
        For each prompt float64 [items]: exact log-probability of each item, as if it were drawn alone.
    token_log_probs
        For each prompt and item float64 [tokens]; 0 for forced tokens.
    item_ids
        For each prompt and item int64 [n], the items that share the sequence.
    stats
        What it cost.
    """

    sequences: list[list[list[int]]]
    log_probs: list[Float64Array]
    token_log_probs: list[list[Float64Array]]
    item_ids: list[list[npt.NDArray[np.int64]]]
    stats: BestFirstStats


def sample_items(
    model: Any,
    input_ids: torch.Tensor | None,
    trie: TokenTrie,
    *,
    num_samples: int,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    temperature: float = 1.0,
    item_filter: Any = None,
    seed: int | None = None,
) -> ItemSamples:
    """Draw distinct items without replacement, exactly as drawing one after the other and leaving out those drawn.

    Stochastic beam search (Kool et al. 2019, "Stochastic Beams and Where to Find Them"): every item's log-probability
    is perturbed by Gumbel noise, drawn lazily down the trie, and the items of the highest perturbed values are a sample
    without replacement. The model is asked only at branches. Probabilities are softmaxes over the valid tokens.

    Parameters
    ----------
    model, input_ids, attention_mask, inputs_embeds
        As for :class:`TreeDecoder`; prompts [P, T], each encoded once.
    trie
        The catalog.
    num_samples
        Items for each prompt; fewer where catalog or filter hold fewer.
    temperature
        Logits are divided by it; the returned log-probabilities are those at this temperature.
    item_filter
        Items that may be drawn, as in :class:`TrieLogitsProcessor`; also one a prompt.
    seed
        Seed of the noise. Default: drawn from torch's generator, so ``torch.manual_seed`` governs it.

    Raises
    ------
    ValueError, TypeError
        For arguments out of range and what :class:`TreeDecoder` and filters refuse, and logits of valid tokens that
        are not numbers.
    """
    _validate.trie("trie", trie)
    wanted = _validate.integer("num_samples", num_samples, 1, 2**31 - 1)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} is outside (0, inf)")
    draw = int(torch.randint(2**62, ())) if seed is None else _validate.integer("seed", seed, 0, 2**63 - 1)
    noise = np.random.default_rng(draw)
    filters = make_filters(trie, item_filter)
    decoder = TreeDecoder(model, input_ids, attention_mask, inputs_embeds=inputs_embeds)
    prompts = len(decoder.prompt_slots)
    if len(filters) not in (1, prompts):
        raise ValueError(f"item_filter has {len(filters)} entries for {prompts} prompts")
    filters = filters * prompts if len(filters) == 1 else filters
    matchers = [_core.Matcher(make_constraint(trie, None, None, False, chosen)) for chosen in filters]
    frontiers = [_GumbelFrontier(trie, matchers[row], wanted, float(temperature), noise, row) for row in range(prompts)]
    FrontierSearch(decoder, trie, frontiers, "trie").run(2**62, prompts * wanted)
    found = [frontier.best() for frontier in frontiers]
    return ItemSamples(
        sequences=[[item.path() for item in items] for items in found],
        log_probs=[np.array([item.score for item in items]) for items in found],
        token_log_probs=[[np.array(item.path_scores()) for item in items] for items in found],
        item_ids=[
            [items_of(trie, chosen, item.path()) for item in items]
            for items, chosen in zip(found, filters, strict=True)
        ],
        stats=BestFirstStats(
            model_calls=decoder.stats.prompt_calls + decoder.stats.calls,
            rows=sum(frontier.rows for frontier in frontiers),
            tokens_computed=decoder.stats.tokens,
            tokens_forced=sum(item.num_forced() for items in found for item in items),
        ),
    )


class _GumbelFrontier(Frontier):
    """Prefixes ordered by the highest perturbed log-probability of an item below."""

    def __init__(
        self,
        trie: TokenTrie,
        matcher: _core.Matcher,
        wanted: int,
        temperature: float,
        noise: np.random.Generator,
        prompt: int,
    ) -> None:
        super().__init__(trie, matcher, wanted, 0.0, True, prompt=prompt)
        self._temperature = temperature
        self._noise = noise
        self._drawn: dict[int, float] = {}  # of open prefixes' first tokens, by their order

    def select(self, limit: int) -> list[Prefix]:
        """Open prefixes among the ``wanted`` highest: a lower one has that many items above it already."""
        chosen: list[Prefix] = []
        while self._open and len(chosen) < limit:
            above = sum(entry[0] < self._open[0][0] for entry in self._found)
            if above + len(chosen) >= self._wanted:
                break
            prefix = self._pop()
            if prefix.is_item:
                self._finish(prefix)
            else:
                chosen.append(prefix)
        return chosen

    def settle(self) -> None:
        """Every selected prefix has been opened; nothing is left to take."""

    def _branch(self, prefix: Prefix, scores: Float64Array, vocabulary: npt.NDArray[np.int32]) -> None:
        tokens = prefix.matcher.allowed_tokens()[1]
        own = self._log_probs(scores[np.searchsorted(vocabulary, tokens)] / self._temperature)
        tokens, own = tokens[own > -np.inf], own[own > -np.inf]
        gumbels = _below(prefix.gumbel, prefix.score + own, self._noise)
        for at in np.argsort(-gumbels, kind="stable")[: self._wanted].tolist():
            self._order += 1
            self._drawn[self._order] = float(own[at])
            self._push(-float(gumbels[at]), self._order, prefix, int(tokens[at]))

    def _pop(self) -> Prefix:
        minus, order, parent, _ = self._open[0]
        prefix = super()._pop()
        prefix.gumbel = -minus
        if prefix.num_chosen:
            prefix.scores[0] = self._drawn.pop(order)
            prefix.score = parent.score + prefix.scores[0]
        return prefix

    def _rank(self, prefix: Prefix) -> float:
        return prefix.gumbel


def _below(highest: float, log_probs: Float64Array, noise: np.random.Generator) -> Float64Array:
    """Gumbel variables of locations ``log_probs`` whose maximum is ``highest`` (Kool et al. 2019, appendix B.3)."""
    free = log_probs + noise.gumbel(size=log_probs.shape)
    apart = free - free.max()
    with np.errstate(divide="ignore"):
        value = highest - free + np.log(-np.expm1(apart))
    limited: Float64Array = highest - np.maximum(value, 0.0) - np.log1p(np.exp(-np.abs(value)))
    return limited
