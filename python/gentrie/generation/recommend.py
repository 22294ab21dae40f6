"""Recommendations for many prompts: sorted by length, resumable, over several processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gentrie import _validate
from gentrie.generation.custom_generate import TrieBeamOutput
from gentrie.generation.item_sampling import ItemSamples
from gentrie.generation.recommendation_store import Recommendation, RecommendationStore
from gentrie.generation.text_results import TextWithItems


def recommend(
    prompts: Sequence[Sequence[int]],
    search: Callable[..., Any],
    *,
    batch_size: int = 16,
    pad_token_id: int = 0,
    device: torch.device | str = "cpu",
    folder: str | os.PathLike[str] | None = None,
    label: str = "",
    progress: bool = True,
) -> list[Recommendation]:
    """Search items for every prompt.

    Prompts are taken longest first in batches of like lengths, so that padding is small and memory runs out at once
    or not at all. With ``folder`` each batch is written as it is done, and a call that was interrupted goes on where
    it stopped, with any number of processes. Where ``torch.distributed`` is initialised (under ``accelerate launch``,
    ``accelerate.PartialState()`` does it) every process takes its share of the batches and all return all results.
    ``examples/recommend_ray.py`` does the same on Ray Data.

    Any search here serves, bound to its model and catalog::

        functools.partial(beam_search, model, trie=trie, beam_width=10)
        functools.partial(best_first_search, model, trie=trie)
        functools.partial(sample_items, model, trie=trie, num_samples=10)
        functools.partial(generate_with_items, model, trie=trie, begin_token_id=soi, max_new_tokens=256)
        functools.partial(model.generate, custom_generate=trie_beam_search, trie=trie, num_beams=10,
                          num_return_sequences=10, return_dict_in_generate=True)

    Parameters
    ----------
    prompts
        Token ids of each prompt.
    search
        ``search(input_ids, attention_mask=mask)`` for a batch padded on the left, int64 [P, T] each; returns what one
        of the searches here does, or anything with ``item_ids`` and ``sequences_scores`` for each prompt, and maybe
        ``sequences`` and ``token_scores``. What a call of it cost is in its own ``stats``.
    batch_size
        Prompts in a call.
    pad_token_id
        Stands where nothing is.
    device
        Where the batches are made.
    folder
        For the results, see :class:`RecommendationStore`; made where missing. Needed with several processes, which all
        must see it.
    label
        What the results depend on besides the prompts, in words of one's own; a folder that was filled under another
        label is refused. Without it the caller answers for using a folder with one search only.
    progress
        Show a progress bar on stderr, of the first process.

    Returns
    -------
    One for each prompt, in the order given.

    Raises
    ------
    ValueError
        For an empty prompt, naming it; a folder that holds results of other prompts or another label; several processes
        without one; a search that returns another number of results than it was given prompts.
    TypeError
        For a search that returns something without items.
    OSError
        If the folder cannot be written.
    """
    rows = [_validate.token_row(f"prompts[{number}]", prompt) for number, prompt in enumerate(prompts)]
    for number, row in enumerate(rows):
        if row.size == 0:
            raise ValueError(f"prompts[{number}] is empty")
    size = _validate.integer("batch_size", batch_size, 1, 2**31 - 1)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    if world > 1 and folder is None:
        raise ValueError(f"folder is missing: {world} processes exchange their results through it")
    store = None if folder is None else RecommendationStore(folder, rows, label=label, rank=rank)
    done = {} if store is None else store.read()
    if world > 1:
        torch.distributed.barrier()  # all have read the same before any writes
    left = sorted((number for number in range(len(rows)) if number not in done), key=lambda n: -rows[n].size)
    batches = [left[at : at + size] for at in range(0, len(left), size)][rank::world]
    with tqdm(total=sum(map(len, batches)), unit="prompt", disable=not progress or rank > 0) as bar:
        for batch in batches:
            ids, mask = _padded([rows[number] for number in batch], pad_token_id, device)
            answers = list(_recommendations(search(ids, attention_mask=mask)))
            if len(answers) != len(batch):
                raise ValueError(f"search returned {len(answers)} results for {len(batch)} prompts")
            found = dict(zip(batch, answers, strict=True))
            done |= found
            if store is not None:
                store.write(found)
            bar.update(len(batch))
    if world > 1:
        assert store is not None
        torch.distributed.barrier()
        done = store.read()
    return [done[number] for number in range(len(rows))]


def _padded(
    rows: list[_validate.Int64Array], pad_token_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(row.size for row in rows)
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, width - row.size :] = row
        mask[at, width - row.size :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _recommendations(result: Any) -> Iterator[Recommendation]:
    if isinstance(result, TrieBeamOutput):
        result = result.items
    columns: list[Any]
    if isinstance(result, TextWithItems):
        columns = [result.items, result.item_log_probs, None, None]
    elif isinstance(result, ItemSamples):
        columns = [result.item_ids, result.log_probs, result.sequences, result.token_log_probs]
    elif hasattr(result, "item_ids") and hasattr(result, "sequences_scores"):
        more = [getattr(result, name, None) for name in ("sequences", "token_scores")]
        columns = [result.item_ids, result.sequences_scores, *more]
    else:
        raise TypeError(f"search returned a {type(result).__name__}, without item_ids and sequences_scores")
    columns = [[[]] * len(columns[0]) if column is None else column for column in columns]
    for item_ids, scores, sequences, token_scores in zip(*columns, strict=True):
        yield Recommendation(
            [[item if isinstance(item, str) else int(item) for item in same] for same in item_ids],
            [float(score) for score in scores],
            [[int(token) for token in tokens] for tokens in sequences],
            [[float(score) for score in own] for own in token_scores],
        )
