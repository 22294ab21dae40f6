"""The items of each prompt: read from what ``generate`` returns, from a conversation, or from a search by item."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _validate
from gentrie.item_filter import items_of, make_filters
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ItemLists:
    """The items of each prompt, in the order in which they were returned.

    Attributes
    ----------
    sequences
        For each prompt the token ids of each item, end token included.
    sequences_scores
        For each prompt float64 [items]; None where the output has no scores.
    item_ids
        For each prompt and item int64 [n], the items that share the sequence.
    num_found
        int64 [prompts].
    """

    sequences: list[list[list[int]]]
    sequences_scores: list[Float64Array] | None
    item_ids: list[list[Int64Array]]
    num_found: Int64Array


def read_items(
    trie: TokenTrie, output: Any, *, prompt_length: int, num_return_sequences: int = 1, item_filter: Any = None
) -> ItemLists:
    """Return the items that ``generate`` wrote, each once a prompt.

    A row is read from the end of its prompt to the end of its first item; padding and what else follows is not looked
    at. Rows without an item are left out: those that only fill up, where a prompt has fewer items than rows, and those
    that the limit on new tokens has cut. Of rows with the same item the first is kept. Rows with a score of -inf only
    fill up, whatever they hold.

    Parameters
    ----------
    trie
        The catalog.
    output
        What ``generate`` returned for responses that are one item: int64 [prompts * num_return_sequences, length], or
        an object with ``sequences`` and maybe ``sequences_scores``, as under ``return_dict_in_generate=True``.
    prompt_length
        Columns of the prompts: the width of ``input_ids``; for an encoder-decoder 1, its start token; 0 where the
        prompts were given as ``inputs_embeds``.
    num_return_sequences
        Rows a prompt, as ``generate`` was told.
    item_filter
        What the search was given; also one a prompt. Items that it closes are not named beside those that share their
        sequence.

    Raises
    ------
    ValueError, TypeError
        For an output of another kind or shape, numbers out of range, and a filter that does not fit the catalog or the
        number of prompts.
    """
    _validate.trie("trie", trie)
    rows = _validate.int64_array("output", getattr(output, "sequences", output))
    each = _validate.integer("num_return_sequences", num_return_sequences, 1, 2**31 - 1)
    if rows.ndim != 2 or len(rows) % each:
        raise ValueError(f"output has shape {rows.shape}, expected [prompts * {each}, length]")
    begin = _validate.integer("prompt_length", prompt_length, 0, rows.shape[1])
    scores = _row_scores(output, len(rows))
    prompts = len(rows) // each
    filters = make_filters(trie, item_filter)
    if len(filters) not in (1, prompts):
        raise ValueError(f"item_filter has {len(filters)} entries for {prompts} prompts")
    filters = filters * prompts if len(filters) == 1 else filters
    sequences, found_scores, item_ids = [], [], []
    for prompt, chosen in enumerate(filters):
        found: dict[tuple[int, ...], tuple[int, Int64Array]] = {}
        for number in range(prompt * each, (prompt + 1) * each):
            tokens = _first_item(trie, rows[number, begin:].tolist())
            if tokens and tuple(tokens) not in found and (scores is None or scores[number] != -np.inf):
                items = items_of(trie, chosen, tokens)
                if items.size:
                    found[tuple(tokens)] = number, items
        sequences.append([list(tokens) for tokens in found])
        item_ids.append([items for _, items in found.values()])
        if scores is not None:
            found_scores.append(scores[[number for number, _ in found.values()]])
    counts = np.array([len(own) for own in sequences], dtype=np.int64)
    return ItemLists(sequences, None if scores is None else found_scores, item_ids, counts)


def read_text_items(trie: TokenTrie, token_ids: Any, *, begin_token_id: int) -> list[npt.NDArray[Any]]:
    """Return the complete items of a text, in order, each as the ids of the items that share its sequence.

    ``unique`` forgets what was given when a turn ends. To give nothing twice in a whole conversation, deny what its
    tokens hold already::

        given = read_text_items(trie, input_ids[row], begin_token_id=soi)
        item_filter = ItemFilter.all_items(trie).deny(np.concatenate(given)) if given else None

    Parameters
    ----------
    trie
        The catalog.
    token_ids
        int64 [length], one conversation.
    begin_token_id
        The token before each item.

    Raises
    ------
    ValueError, TypeError
        For token ids of another kind or shape, and a begin token out of range.
    """
    _validate.trie("trie", trie)
    tokens = _validate.int64_array("token_ids", token_ids)
    if tokens.ndim != 1:
        raise ValueError(f"token_ids has shape {tokens.shape}, expected [length]")
    begin = _validate.integer("begin_token_id", begin_token_id, 0, 2**31 - 1)
    places = np.flatnonzero(tokens == begin) + 1
    items = [_first_item(trie, own.tolist()) for own in np.split(tokens, places)[1:]]
    return [trie.resolve(own) for own in items if own]


def merge_names(found: Any) -> tuple[list[npt.NDArray[Any]], list[Float64Array]]:
    """Add up the probabilities of an item's names, so that each item is listed once.

    A catalog may hold several sequences of one item (its names in several languages, say): build it with that item's
    id in several rows. The score of an item is the logarithm of the sum of the probabilities of those of its sequences
    that were found, as mGENRE marginalises over languages (De Cao et al., TACL 2022). A sequence that several items
    share counts for each of them. Names that the search did not find are not in the sum, so search wide enough.

    Parameters
    ----------
    found
        A :class:`BeamSearchResult` or :class:`BestFirstResult`.

    Returns
    -------
    For each prompt the item ids [n], most probable first, and float64 [n], their log-probabilities. The search's
    length penalty is not in them.
    """
    item_ids, log_probs = [], []
    for items, scores in zip(found.item_ids, found.token_scores, strict=True):
        of_item: dict[Any, float] = {}
        for own, tokens in zip(items, scores, strict=True):
            for item in own.tolist():
                of_item[item] = float(np.logaddexp(of_item.get(item, -np.inf), tokens.sum()))
        ranked = sorted(of_item, key=lambda item: -of_item[item])
        item_ids.append(np.array(ranked) if ranked else np.empty(0, dtype=np.int64))
        log_probs.append(np.array([of_item[item] for item in ranked], dtype=np.float64))
    return item_ids, log_probs


def _row_scores(output: Any, num_rows: int) -> Float64Array | None:
    given = getattr(output, "sequences_scores", None)
    if given is None:
        return None
    if isinstance(given, torch.Tensor):
        given = given.detach().double().cpu().numpy()
    scores = np.asarray(given, dtype=np.float64)
    if scores.shape != (num_rows,):
        raise ValueError(f"sequences_scores has shape {scores.shape}, expected [{num_rows}]")
    return scores


def _first_item(trie: TokenTrie, tokens: list[int]) -> list[int]:
    """The tokens up to the end of a complete sequence; none where they leave the catalog or end before that."""
    state = trie.root
    for length, token in enumerate(tokens, start=1):
        state = trie.advance(state, token)
        if state < 0:
            break
        if trie.is_leaf(state):
            return tokens[:length]
    return []
