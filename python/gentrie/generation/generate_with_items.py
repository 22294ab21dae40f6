"""Greedy and sampled text with catalog items inside, several tokens a step wherever the catalog leaves no choice."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel, StoppingCriteriaList

from gentrie import _validate
from gentrie.generation._generate_arguments import (
    check_settings,
    embedded_prompts,
    empty_cache,
    eos_ids,
    make_matchers,
    unpadded,
)
from gentrie.generation.item_row import ItemRow
from gentrie.generation.response_template import ResponseTemplate
from gentrie.generation.text_histories import TextHistories
from gentrie.generation.text_results import TextStats, TextWithItems
from gentrie.generation.token_choice import TokenChoice, what_may_follow
from gentrie.model.cache_names import drop_unused_cache
from gentrie.model.model_copies import uncompiled
from gentrie.model.ragged_cache import RaggedCache
from gentrie.trie import TokenTrie


def generate_with_items(
    model: PreTrainedModel,
    input_ids: torch.Tensor | None = None,
    logits_processor: LogitsProcessorList | None = None,
    stopping_criteria: StoppingCriteriaList | None = None,
    generation_config: GenerationConfig | None = None,
    *,
    trie: TokenTrie,
    begin_token_id: int,
    unique: bool | Literal["item"] = False,
    item_filter: Any = None,
    template: ResponseTemplate | None = None,
    streamer: Any = None,
    **kwargs: Any,
) -> Any:
    """Greedy or sampled text with items inside (RecLM-cgen), forced tokens appended without asking the model.

    The text is that of ``model.generate(..., logits_processor=[TrieLogitsProcessor(trie, begin_token_id=...)])``: the
    same tokens in greedy search (up to ties within rounding), the same distribution in sampling. Tokens that are an
    item's only continuation are appended at once and fed to the model together with the token before them, so that it
    is called only for tokens that are a choice.

    Two ways to call it::

        generate_with_items(model, input_ids, trie=trie, begin_token_id=soi, max_new_tokens=256)
        model.generate(input_ids, custom_generate=generate_with_items, trie=trie, begin_token_id=soi)

    The second returns what ``generate`` does: sequences, or a :class:`TextWithItems` under
    ``return_dict_in_generate``. ``transformers`` hands no streamer to a ``custom_generate``: give it in the first way.

    Parameters
    ----------
    model
        A decoder-only model of ``transformers`` with a dynamic cache; a compiled one runs uncompiled, with a warning.
    input_ids
        int64 [rows, length], padded on the left under ``attention_mask``; or give ``inputs_embeds``.
    logits_processor, stopping_criteria, generation_config
        As in ``generate``. Criteria are asked after every token, for each row alone; processors only where a token is
        a choice.
    trie
        The catalog.
    begin_token_id
        An item begins behind each of these tokens.
    unique, item_filter
        As in :class:`TrieLogitsProcessor`; ``item_filter`` may hold one entry a prompt.
    template
        The fixed text around the items. The response then has exactly as many items, and ends with them.
    streamer
        A streamer of ``transformers``, for one row; it gets every token by itself, forced ones too.
    **kwargs
        As for ``generate``: ``attention_mask``, ``max_new_tokens``, ``do_sample``, ``eos_token_id``, ...;
        ``output_scores`` asks for the log-probabilities of :class:`TextWithItems`.

    Raises
    ------
    ValueError, TypeError
        For what :class:`TrieLogitsProcessor` refuses; for settings that need every step (logits, attentions, hidden
        states, guidance, watermarks), other searches than greedy and sampling, other caches than the dynamic one,
        recurrent and encoder-decoder models; a prompt that ends inside an item outside the catalog; a template that
        asks for more items than are left; NaN as the score of a token that an item may go on with.
    """
    _validate.trie("trie", trie)
    if not hasattr(generation_config, "_pad_token_tensor"):  # not prepared by `generate`: go through it
        if kwargs.pop("synced_gpus", None):
            raise ValueError("synced_gpus=True: ranks call the model different numbers of times here")
        plain_model = uncompiled(model, stacklevel=2)
        if streamer is not None and input_ids is not None:
            streamer.put(input_ids.cpu())
        own = {
            "trie": trie,
            "begin_token_id": begin_token_id,
            "unique": unique,
            "item_filter": item_filter,
            "template": template,
            "streamer": streamer,
        }

        # Bound here: older `transformers` hand a `custom_generate` no arguments of its own, and a streamer of None.
        def prepared(*arguments: Any, **given: Any) -> Any:
            return generate_with_items(*arguments, **{**given, **own})

        return plain_model.generate(
            input_ids,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            custom_generate=prepared,
            **{"return_dict_in_generate": True, **kwargs},
        )
    assert input_ids is not None
    assert generation_config is not None
    criteria, processors = stopping_criteria or StoppingCriteriaList(), logits_processor or LogitsProcessorList()
    drop_unused_cache(model, kwargs)
    check_settings(generation_config)
    kwargs.pop("synced_gpus", None)  # older `transformers` pass it always
    cache = empty_cache(model, kwargs)
    if streamer is not None and len(input_ids) > 1:
        raise ValueError(f"streamer: one row can be streamed, input_ids has {len(input_ids)}")
    eos = eos_ids(generation_config, trie, unique)
    if template is not None:
        end = [] if trie.end_token_id is None else [trie.end_token_id]
        template.check(trie.vocab_size, {"begin token": [begin_token_id], "item's end token": end, "eos token": eos})
    matchers = make_matchers(trie, begin_token_id, eos, unique, item_filter, len(input_ids))
    prompts = unpadded(input_ids, kwargs)
    rows = [
        ItemRow(number, *matcher, trie, prompt, begin_token_id, eos, template)
        for number, (matcher, prompt) in enumerate(zip(matchers, prompts, strict=True))
    ]
    scored = bool(generation_config.output_scores and generation_config.return_dict_in_generate)
    model = uncompiled(model, stacklevel=2)
    decoder = _Decoder(
        rows,
        RaggedCache(model, cache, head_once="logits_to_keep" in kwargs),
        TokenChoice(processors, num_rows=len(rows), do_sample=generation_config.do_sample, log_probs=scored),
        TextHistories(input_ids, criteria, streamer),
        begin_token_id,
    )
    decoder.run(prompts, embedded_prompts(kwargs))
    if streamer is not None:
        streamer.end()
    sequences = decoder.histories.sequences(generation_config)
    if not generation_config.return_dict_in_generate:
        return sequences
    items = [row.items(decoder.histories.response(row.number)) for row in rows]
    ids = [[same for same, _ in own] for own in items]
    if not scored:
        return TextWithItems(sequences, ids, decoder.stats())
    scores = [decoder.token_scores(row.number) for row in rows]
    sums = [
        np.array([of_row[place].sum() for _, place in own], dtype=np.float64)
        for of_row, own in zip(scores, items, strict=True)
    ]
    return TextWithItems(sequences, ids, decoder.stats(), scores, sums)


class _Decoder:
    """The loop: feed what is certain, choose what is not."""

    def __init__(
        self,
        rows: list[ItemRow],
        cache: RaggedCache,
        choice: TokenChoice,
        histories: TextHistories,
        begin_token_id: int,
    ) -> None:
        self._rows = rows
        self._cache = cache
        self._choice = choice
        self.histories = histories
        self._begin = begin_token_id
        self._chosen = 0
        self._log_probs: list[dict[int, float]] = [{} for _ in rows]  # of chosen tokens, by their place

    def run(self, prompts: list[list[int]], embeddings: tuple[torch.Tensor, torch.Tensor | None] | None) -> None:
        """Until every row has ended; ``embeddings`` are prompts given so, with their mask."""
        live = list(range(len(self._rows)))
        logits = None if embeddings is None else self._cache.feed_embeddings(*embeddings)
        waiting = {}
        for row in live:
            certain = self._rows[row].start()
            if certain and self.histories.append(row, certain, self._rows[row].ended):
                continue
            waiting[row] = certain if embeddings is not None else prompts[row] + certain
        live = self._drop(live, list(waiting), has_keys=embeddings is not None)
        while live:
            if logits is None or any(waiting.values()):
                taken, logits = self._cache.feed([waiting[row] for row in live])
                waiting = {row: waiting[row][count:] for row, count in zip(live, taken, strict=True)}
            ready = [at for at, row in enumerate(live) if not waiting[row]]
            chosen = self._choose([live[at] for at in ready], logits if len(ready) == len(live) else logits[ready])
            logits = None
            self._chosen += len(chosen)
            ended = set()
            for at, token in zip(ready, chosen, strict=True):
                row = live[at]
                waiting[row] = self._rows[row].take(token)
                if self.histories.append(row, waiting[row], self._rows[row].ended):
                    ended.add(row)
            live = self._drop(live, [row for row in live if row not in ended], has_keys=True)

    def _choose(self, rows: list[int], logits: torch.Tensor) -> list[int]:
        scores = self._choice.processed([self.histories.of(row) for row in rows], rows, logits)
        picked = [
            self._choice.pick(scores[at : at + 1], *what_may_follow(self._rows[row].matcher, self._begin), row=row)
            for at, row in enumerate(rows)
        ]
        log_probs = [log_prob for _, log_prob in picked if log_prob is not None]
        if log_probs:
            for row, log_prob in zip(rows, torch.stack(log_probs).tolist(), strict=True):
                self._log_probs[row][self.histories.num_said(row)] = log_prob
        tokens: list[int] = torch.stack([token for token, _ in picked]).tolist()
        return tokens

    def token_scores(self, row: int) -> npt.NDArray[np.float64]:
        """Log-probability of each token of a row's response, 0 where it was forced."""
        scores = np.zeros(self.histories.num_said(row))
        scores[list(self._log_probs[row])] = list(self._log_probs[row].values())
        return scores

    def _drop(self, live: list[int], left: list[int], *, has_keys: bool) -> list[int]:
        if has_keys and left and len(left) < len(live):
            self._cache.keep([live.index(row) for row in left])
        return left

    def stats(self) -> TextStats:
        """What it came to."""
        said = sum(self.histories.num_said(row) for row in range(len(self._rows)))
        return TextStats(
            self._cache.model_calls,
            self._cache.tokens,
            self._chosen,
            said - self._chosen,
            self._cache.padded,
        )
