"""Beam search over a catalog that calls the model only where a beam has a choice."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from gentrie import _validate
from gentrie.generation._beam_driver import BeamDriver
from gentrie.generation.beam_results import BeamSearchResult, BeamStats
from gentrie.item_filter import make_filters
from gentrie.model.tree_decoder import TreeDecoder
from gentrie.search.beam_stepper import BeamStepper
from gentrie.trie import TokenTrie


def beam_search(
    model: Any,
    input_ids: torch.Tensor | None,
    trie: TokenTrie,
    *,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    encoder_outputs: torch.Tensor | None = None,
    decoder_start_token_id: int | None = None,
    beam_width: int = 10,
    num_return_sequences: int | None = None,
    scope: Literal["trie", "vocab"] = "trie",
    length_penalty: float | None = None,
    early_stopping: bool | Literal["never"] = False,
    num_beam_groups: int = 1,
    diversity_penalty: float = 0.0,
    item_filter: Any = None,
    item_scores: Any = None,
    alpha: float | None = None,
    lookahead_scores: Any = None,
    max_length: int | None = None,
    temperature: float = 1.0,
    synced_gpus: bool = False,
) -> BeamSearchResult:
    """The beam search of ``generate`` with :class:`TrieLogitsProcessor`, where forced tokens cost next to nothing.

    Items, order and scores are those of the token-synchronous search, to rounding. Each prompt is encoded once; forced
    runs are fed together with the next token that is chosen; with ``scope="trie"`` a path that has become unique needs
    no call and only the catalog's tokens are scored.

    Parameters
    ----------
    model
        What :class:`TreeDecoder` serves.
    input_ids, attention_mask, inputs_embeds, encoder_outputs, decoder_start_token_id
        Prompts [P, T], as for :class:`TreeDecoder`.
    trie
        The catalog.
    beam_width
        ``num_beams`` of ``generate``, 1 to 512.
    num_return_sequences
        Items a prompt at most, ``beam_width`` by default; fewer come back where fewer were found.
    scope
        ``"trie"``: softmax over the valid tokens (``renormalize_logits=True``); ``"vocab"``: over the whole vocabulary
        (the default of ``generate``), forced tokens cost log-probability.
    length_penalty, early_stopping
        As in ``generate``. The length penalty is 1 by default, and 0 where items have scores of their own.
    num_beam_groups, diversity_penalty
        Diverse beam search (Vijayakumar et al. 2016), see :meth:`BeamStepper.add_request`.
    item_filter
        Items that may be given, as in :class:`TrieLogitsProcessor`; also one a prompt.
    item_scores, alpha
        D3 (EMNLP 2024, arXiv 2406.14900): real numbers [P, items], not negative, column i for item id i, and a
        weight in [0, 1]. A token scores ``alpha * log p + (1 - alpha) * log q``, q being its share of the item scores
        below the allowed tokens.
    lookahead_scores
        PAG (SIGIR 2024, arXiv 2404.14600, eq. 6): real numbers [P, items], such as the scores of simultaneous decoding
        (eq. 5). A prefix scores ``log p(prefix) + max(score(item) for allowed items below prefix)``.
    max_length
        Tokens of an item at most; the catalog's longest by default.
    temperature
        Logits are divided by it.
    synced_gpus
        For models whose weights are spread over ranks (FSDP, DeepSpeed ZeRO-3), each of which searches for prompts of
        its own: the whole model is called, and equally often on each rank, until all are done.

    Raises
    ------
    ValueError, TypeError
        For values out of range, and what :class:`TreeDecoder` and filters refuse, and logits of valid tokens that
        are not numbers.
    """
    _validate.trie("trie", trie)
    outside = item_scores is not None or lookahead_scores is not None
    penalty = (0.0 if outside else 1.0) if length_penalty is None else length_penalty
    stepper = BeamStepper(
        trie,
        beam_width=beam_width,
        scope=scope,
        length_penalty=penalty,
        early_stopping=early_stopping,
        max_length=max_length,
        num_beam_groups=num_beam_groups,
        diversity_penalty=diversity_penalty,
    )
    wanted = beam_width if num_return_sequences is None else num_return_sequences
    wanted = _validate.integer("num_return_sequences", wanted, 1, beam_width)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature={temperature} is outside (0, inf)")
    filters = make_filters(trie, item_filter)
    own = _rows("item_scores", stepper, item_scores, lowest=0.0)
    ahead = _rows("lookahead_scores", stepper, lookahead_scores, lowest=-np.inf)
    if synced_gpus and not torch.distributed.is_initialized():
        raise ValueError("synced_gpus=True: torch.distributed is not initialised")
    decoder = TreeDecoder(
        model,
        input_ids,
        attention_mask,
        inputs_embeds=inputs_embeds,
        encoder_outputs=encoder_outputs,
        decoder_start_token_id=decoder_start_token_id,
        whole_model=synced_gpus,
    )
    prompts = len(decoder.prompt_slots)
    if len(filters) not in (1, prompts):
        raise ValueError(f"item_filter has {len(filters)} entries for {prompts} prompts")
    filters = filters * prompts if len(filters) == 1 else filters
    for name, rows in (("item_scores", own), ("lookahead_scores", ahead)):
        if rows is not None and len(rows) != prompts:
            raise ValueError(f"{name} has {len(rows)} rows for {prompts} prompts")
    for prompt in range(prompts):
        stepper.add_request(
            prompt,
            item_filter=filters[prompt],
            item_scores=None if own is None else own[prompt],
            alpha=alpha,
            lookahead_scores=None if ahead is None else ahead[prompt],
        )
    driver = BeamDriver(decoder, trie, stepper, scope, temperature, synced_gpus)
    driver.run()
    found = [stepper.pop_result(prompt, wanted) for prompt in range(prompts)]
    calls = decoder.stats
    return BeamSearchResult(
        sequences=[items.sequences for items in found],
        sequences_scores=[items.scores for items in found],
        token_scores=[items.token_scores for items in found],
        item_ids=[items.item_ids for items in found],
        num_found=np.array([len(items.sequences) for items in found], dtype=np.int64),
        stats=BeamStats(
            model_calls=calls.prompt_calls + calls.calls,
            rows=driver.num_rows,
            tokens_computed=calls.tokens,
            tokens_forced=sum(items.num_forced for items in found),
            padded_slots=calls.padded_slots,
        ),
    )


def _rows(name: str, stepper: BeamStepper, scores: Any, *, lowest: float) -> Any:
    """Scores [prompts, items], checked; None where there are none."""
    return None if scores is None else stepper._leaves.check(name, scores, axes="[prompts, items]", lowest=lowest)
