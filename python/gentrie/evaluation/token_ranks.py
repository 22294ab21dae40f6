"""Where the tokens of positive items rank at their own steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from gentrie import _validate
from gentrie.evaluation.prefixes import Int64Array
from gentrie.evaluation.pruned import leaves_of
from gentrie.evaluation.ranking import Targets, flat_targets
from gentrie.item_filter import filter_from
from gentrie.model.tree_decoder import TreeDecoder

if TYPE_CHECKING:
    from gentrie.item_filter import ItemFilter
    from gentrie.trie import TokenTrie


@torch.no_grad()
def target_token_ranks(
    model: Any,
    input_ids: torch.Tensor | None,
    trie: TokenTrie,
    targets: Targets,
    *,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    item_filter: Any = None,
    scope: Literal["trie", "vocab"] = "trie",
    tokens_per_call: int = 1024,
) -> Int64Array:
    """Rank of each token of each positive among the tokens of its scope, from 1; what (3.2) of BEAR bounds by B.

    Parameters
    ----------
    targets
        Item ids, one a prompt or a list a prompt.
    model, input_ids, trie, attention_mask, inputs_embeds, item_filter, scope, tokens_per_call
        As of :func:`catalog_logprobs`.

    Returns
    -------
    int64 [positives, max_depth] in the order of ``targets``, 0 behind the last token.

    Raises
    ------
    ValueError, TypeError
        As :func:`catalog_logprobs`, and for a target that the catalog lacks or ``item_filter`` closes.
    """
    _validate.trie("trie", trie)
    scope = _validate.choice("scope", scope, ("trie", "vocab"))
    prompts = inputs_embeds if inputs_embeds is not None else input_ids
    if prompts is None:
        raise ValueError("give either input_ids or inputs_embeds")
    items, users = flat_targets(targets, len(prompts))
    chosen = None if item_filter is None else filter_from(trie, item_filter)
    values, indptr, _, _ = trie.to_sequences()
    leaves = leaves_of(items, trie, "targets", chosen)
    ranks = np.zeros((items.size, trie.max_depth), dtype=np.int64)
    together = max(1, tokens_per_call // trie.max_depth)
    for first in range(0, len(prompts), together):
        part = slice(first, first + together)
        decoder = TreeDecoder(
            model,
            None if input_ids is None else input_ids[part],
            None if attention_mask is None else attention_mask[part],
            inputs_embeds=None if inputs_embeds is None else inputs_embeds[part],
        )
        for positive in np.flatnonzero((users >= first) & (users < first + together)):
            path = values[indptr[leaves[positive]] : indptr[leaves[positive] + 1]].astype(np.int64)
            ranks[positive, : path.size] = _path_ranks(decoder, int(users[positive]) - first, path, trie, chosen, scope)
    return ranks


def _path_ranks(
    decoder: TreeDecoder, prompt: int, path: Int64Array, trie: TokenTrie, chosen: ItemFilter | None, scope: str
) -> Int64Array:
    """Ranks [T] of the tokens of one path; a call of its own, for other rows would only wait beside it."""
    parents = np.concatenate([decoder.prompt_slots[[prompt]], ~np.arange(path.size - 2)])[: path.size - 1]
    _, hidden = decoder.extend(parents, path[:-1])
    logits = decoder.logits(torch.cat([decoder.prompt_hidden[[prompt]], hidden]))
    decoder.keep([])
    own = logits.gather(1, torch.from_numpy(path).to(logits.device)[:, None])
    if scope == "vocab":
        above: Int64Array = (logits > own).sum(1).cpu().numpy()
        return above + 1
    states = trie.token_states(path)
    tokens, indptr = (trie if chosen is None else chosen).next_tokens_batch(states)
    step = np.repeat(np.arange(path.size), np.diff(indptr))
    rows, columns = (torch.from_numpy(x.astype(np.int64)).to(logits.device) for x in (step, tokens))
    higher = (logits[rows, columns] > own[rows, 0]).cpu().numpy()
    return 1 + np.bincount(step, weights=higher, minlength=path.size).astype(np.int64)
