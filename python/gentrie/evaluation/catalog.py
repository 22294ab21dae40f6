"""Overall log-probabilities of whole sequences: of every one in the catalog, or of a list of candidates.

Prefixes are walked depth first in windows, so that the model sees each prefix once and only the path to the next
window stays in memory. With ``scope="trie"`` a prefix with one continuation needs no distribution, and what follows
the last branching one is not even fed to the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _validate
from gentrie.evaluation.prefixes import Int64Array, Prefixes
from gentrie.evaluation.windows import Walk, Window
from gentrie.item_filter import filter_from
from gentrie.model.tree_decoder import TreeDecoder

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie

_MOST_LOGITS = 1 << 24
"""Logits held at a time."""


def catalog_logprobs(
    model: Any,
    input_ids: torch.Tensor | None,
    trie: TokenTrie,
    *,
    attention_mask: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
    item_filter: Any = None,
    scope: Literal["trie", "vocab"] = "trie",
    tau: float = 1.0,
    sequences: Any = None,
    tokens_per_call: int = 1024,
    progress: bool = False,
) -> npt.NDArray[np.float64]:
    """Log-probability of sequences behind each prompt, by the chain rule over their tokens; no length penalty.

    Parameters
    ----------
    model, input_ids, attention_mask, inputs_embeds
        As for :class:`gentrie.generation.TreeDecoder`: B prompts.
    trie
        The catalog.
    item_filter
        Which items there are, for all prompts: an :class:`gentrie.ItemFilter` of the trie, item ids, or bool by item
        id. Tokens below which it leaves no item are not valid. Default: all items.
    scope
        Over what each token's softmax goes: ``"trie"``, the tokens valid there, or ``"vocab"``, all.
    tau
        Logits are divided by it.
    sequences
        int64 [C], leaves wanted, in any order; None: all. The softmax of a token goes over its scope in any case.
    tokens_per_call
        About how many tokens one call of the model takes.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    float64 [B, C], or [B, num_sequences] in the order of :meth:`gentrie.TokenTrie.to_sequences`; -inf for sequences
    that ``item_filter`` closes.

    Raises
    ------
    ValueError, TypeError
        For a model or prompts that :class:`gentrie.generation.TreeDecoder` refuses, an unknown scope, a vocabulary
        wider than the model's logits, a leaf outside the trie, a filter of another trie.
    """
    _validate.trie("trie", trie)
    scope = _validate.choice("scope", scope, ("trie", "vocab"))
    rows = _validate.integer("tokens_per_call", tokens_per_call, 1, 2**31 - 1)
    prefixes = Prefixes.of(trie, None if item_filter is None else filter_from(trie, item_filter))
    leaves = prefixes.leaf[_chosen_leaves(sequences, trie.num_sequences)]
    there = leaves >= 0
    prompts = inputs_embeds if inputs_embeds is not None else input_ids
    if prompts is None:
        raise ValueError("give either input_ids or inputs_embeds")
    wanted = np.zeros(prefixes.num_nodes, dtype=bool)
    wanted[leaves[there]] = True
    walk = Walk.over(prefixes, prefixes.with_ancestors(wanted), scope)
    together = max(1, min(len(prompts), rows // 64))
    windows = [
        walk.window(prefixes, start, start + max(1, rows // together))
        for start in range(0, max(1, walk.fed.size), max(1, rows // together))
    ]
    out = np.full((len(prompts), leaves.size), -np.inf)
    with _bar(len(windows) * -(-len(prompts) // together), progress) as bar:
        for first in range(0, len(prompts), together):
            part = slice(first, min(first + together, len(prompts)))
            decoder = TreeDecoder(
                model,
                None if input_ids is None else input_ids[part],
                None if attention_mask is None else attention_mask[part],
                inputs_embeds=None if inputs_embeds is None else inputs_embeds[part],
            )
            if decoder.vocab_size < trie.vocab_size:
                raise ValueError(f"the model's logits are {decoder.vocab_size} wide, the trie needs {trie.vocab_size}")
            edges = np.zeros((part.stop - part.start, prefixes.num_nodes))
            for window, logprobs in _scored(decoder, windows, prefixes.num_nodes, scope, tau):
                edges[:, window.scored_children] = logprobs
                bar.update()
            out[part, there] = _summed(edges, prefixes)[:, leaves[there]]
    return out


def item_logprobs(
    logprobs: npt.NDArray[np.float64], trie: TokenTrie, *, item_filter: Any = None
) -> tuple[Int64Array, npt.NDArray[np.float64]]:
    """Item ids [items], ascending, and their log-probabilities [B, items], from those of all sequences.

    Items that share a sequence have all of its probability each; an item with several sequences has their sum. With
    the ``item_filter`` of :func:`catalog_logprobs` only the items that it leaves are there.
    """
    _validate.trie("trie", trie)
    _, _, items, indptr = trie._core.to_sequences(False)
    if logprobs.ndim != 2 or logprobs.shape[1] != trie.num_sequences:
        raise ValueError(f"logprobs has shape {logprobs.shape}, expected [B, {trie.num_sequences}]")
    leaf = np.repeat(np.arange(trie.num_sequences), np.diff(indptr))
    order = np.argsort(items, kind="stable")
    if item_filter is not None:
        order = order[np.isin(items[order], filter_from(trie, item_filter)._core.items_below(trie.root))]
    ids, starts = np.unique(items[order], return_index=True)
    if not ids.size:
        return trie._named(ids), np.empty((logprobs.shape[0], 0))
    return trie._named(ids), np.logaddexp.reduceat(logprobs[:, leaf[order]], starts, axis=1)


def _scored(
    decoder: TreeDecoder, windows: list[Window], num_nodes: int, scope: str, tau: float
) -> Iterator[tuple[Window, npt.NDArray[np.float64]]]:
    """Each window with the log-probabilities [B, E] of the children of what it scores."""
    num_prompts = decoder.prompt_slots.size
    slot_of = np.empty((num_prompts, num_nodes), dtype=np.int64)
    slot_of[:, 0] = decoder.prompt_slots
    for window in windows:
        width = window.nodes.size
        rows = np.arange(num_prompts)[:, None] * width
        parents = np.where(window.inside >= 0, ~(rows + window.inside), slot_of[:, window.parents])
        tokens = np.tile(window.tokens, num_prompts)
        slots, hidden = decoder.extend(parents.ravel(), tokens)
        slot_of[:, window.nodes] = slots.reshape(num_prompts, width)
        if window.scored.size:
            states = torch.cat([decoder.prompt_hidden, hidden])
            at = np.where(window.scored < 0, np.arange(num_prompts)[:, None], num_prompts + rows + window.scored)
            chosen = states[torch.from_numpy(at.ravel()).to(states.device)]
            yield window, _children(decoder, chosen.view(num_prompts, -1, states.shape[-1]), window, scope, tau)
        else:
            yield window, np.empty((num_prompts, 0))
        decoder.keep(slot_of[:, window.path].ravel())


def _children(
    decoder: TreeDecoder, hidden: torch.Tensor, window: Window, scope: str, tau: float
) -> npt.NDArray[np.float64]:
    """Log-probabilities [B, E] of the children behind hidden states [B, S, D]."""
    device = hidden.device
    num_prompts, num_scored, size = hidden.shape
    if scope == "trie":
        union, column = np.unique(window.child_tokens, return_inverse=True)
        columns: torch.Tensor | None = torch.from_numpy(union).to(device)
    else:
        column, columns = window.child_tokens, None
    width = decoder.vocab_size if columns is None else columns.numel()
    place = torch.from_numpy(np.ascontiguousarray(column)).to(device)
    owner = torch.from_numpy(window.owner).to(device)
    step = max(1, _MOST_LOGITS // width)
    flat = hidden.reshape(-1, size)
    chosen, normaliser = [], []
    edge_row = (torch.arange(num_prompts, device=device)[:, None] * num_scored + owner).flatten()
    edge_column = place.repeat(num_prompts)
    for start in range(0, flat.shape[0], step):
        logits = decoder.logits(flat[start : start + step], columns).double() / tau
        first, last = torch.searchsorted(
            edge_row, torch.tensor([start, start + logits.shape[0]], device=device)
        ).tolist()
        chosen.append(logits[edge_row[first:last] - start, edge_column[first:last]])
        if scope == "vocab":
            normaliser.append(logits.logsumexp(1))
    values = torch.cat(chosen)
    if scope == "vocab":
        total = torch.cat(normaliser)
    else:
        highest = torch.full((flat.shape[0],), -torch.inf, dtype=values.dtype, device=device)
        highest = highest.scatter_reduce(0, edge_row, values, "amax")
        total = torch.zeros_like(highest).index_add_(0, edge_row, (values - highest[edge_row]).exp()).log() + highest
    logprobs = (values - total[edge_row]).view(num_prompts, -1)
    array: npt.NDArray[np.float64] = logprobs.cpu().numpy()
    return array


def _summed(edges: npt.NDArray[np.float64], prefixes: Prefixes) -> npt.NDArray[np.float64]:
    """Sums [B, nodes] from the root of what stands at each node; ``edges`` is overwritten."""
    by_depth = np.argsort(prefixes.depth, kind="stable")
    bounds = np.searchsorted(prefixes.depth[by_depth], np.arange(1, int(prefixes.depth.max()) + 2))
    for first, last in itertools.pairwise(bounds):
        level = by_depth[first:last]
        edges[:, level] += edges[:, prefixes.parent[level]]
    return edges


def _chosen_leaves(sequences: Any, num_sequences: int) -> Int64Array:
    if sequences is None:
        return np.arange(num_sequences)
    leaves = _validate.int64_array("sequences", sequences)
    if leaves.ndim != 1:
        raise ValueError(f"sequences has shape {leaves.shape}, expected [C]")
    for row in np.flatnonzero((leaves < 0) | (leaves >= num_sequences))[:1]:
        raise ValueError(f"sequences[{row}]={leaves[row]} is outside [0, {num_sequences})")
    return leaves


def _bar(total: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc="scoring the catalog", unit="call", disable=not progress)
