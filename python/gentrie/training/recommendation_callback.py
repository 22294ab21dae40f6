"""Constrained recommendations, judged while a model trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import TrainerCallback

from gentrie import _validate
from gentrie.evaluation import hit_rate, ndcg
from gentrie.generation.beam_search import beam_search
from gentrie.item_filter import ItemFilter, make_filters
from gentrie.trie import TokenTrie

Recommend = Callable[[Any, Sequence[Sequence[int]], int], npt.NDArray[np.int64]]

_logger = logging.getLogger("gentrie")


def beam_recommend(
    model: Any,
    prompts: Sequence[Sequence[int]],
    num_items: int,
    *,
    trie: TokenTrie,
    pad_token_id: int,
    batch_size: int = 16,
    length_penalty: float = 0.0,
    item_filter: Any = None,
) -> npt.NDArray[np.int64]:
    """The ``num_items`` best items behind each prompt by constrained beam search.

    Parameters
    ----------
    model
        What :class:`gentrie.generation.TreeDecoder` serves.
    prompts
        Token ids, one list a user; the response is one item.
    num_items
        Items a user, and beams.
    trie
        The catalog. Scores are over its valid tokens.
    pad_token_id
        Fills prompts up on the left.
    batch_size
        Prompts that are searched together.
    length_penalty
        As in ``generate``.
    item_filter
        Items that may be given, as in :func:`gentrie.generation.beam_search`; also one a prompt.

    Returns
    -------
    int64 [users, num_items], best first; where several items share a title, the smallest id; -1 where fewer were found.

    Raises
    ------
    ValueError, TypeError
        For a list of filters that holds not one a prompt, and what ``beam_search`` refuses.
    """
    made = make_filters(trie, item_filter)
    filters = [None if core is None else ItemFilter(core, trie, "") for core in made]
    if len(filters) not in (1, len(prompts)):
        raise ValueError(f"item_filter has {len(filters)} entries for {len(prompts)} prompts")
    lists = np.full((len(prompts), num_items), -1, dtype=np.int64)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = max(len(prompts[row]) for row in rows)
        lengths = torch.tensor([len(prompts[row]) for row in rows], device=model.device)
        ids = torch.tensor([[pad_token_id] * (width - len(prompts[row])) + list(prompts[row]) for row in rows])
        mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
        found = beam_search(
            model,
            ids.to(model.device),
            trie,
            attention_mask=mask,
            beam_width=num_items,
            length_penalty=length_penalty,
            item_filter=filters[0] if len(filters) == 1 else [filters[row] for row in rows],
        )
        for row, items in zip(rows, found.item_ids, strict=True):
            lists[row, : len(items)] = [int(same.min()) for same in items]
    return lists


class RecommendationCallback(TrainerCallback):
    """Recommends to some users at every evaluation, and adds HR@K and NDCG@K to its metrics.

    Parameters
    ----------
    trie
        The catalog.
    prompts
        Token ids, one list a user.
    targets
        The item id each user chose, int64 [users].
    pad_token_id
        As in :func:`beam_recommend`.
    ks
        Cut-offs K; the largest is the number of items asked for.
    item_filter
        As in :func:`beam_recommend`, for the default ``recommend`` alone.
    recommend
        ``recommend(model, prompts, num_items)`` gives item ids [users, num_items], best first, -1 where fewer.
        Default: :func:`beam_recommend`.

    Attributes
    ----------
    history : list of dict
        The metrics of every evaluation, with its ``step``.
    """

    def __init__(
        self,
        trie: TokenTrie,
        prompts: Sequence[Sequence[int]],
        targets: Sequence[int] | npt.NDArray[Any],
        *,
        pad_token_id: int,
        ks: Sequence[int] = (10,),
        recommend: Recommend | None = None,
        item_filter: Any = None,
    ) -> None:
        if recommend is not None and item_filter is not None:
            raise ValueError("item_filter is given to a recommend of one's own, which does not get it")
        if len(prompts) != len(targets):
            raise ValueError(f"prompts are of {len(prompts)} users, targets of {len(targets)}")
        for row, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(f"prompts[{row}] is empty")
        if not ks:
            raise ValueError("ks is empty")
        self._ks = [_validate.integer("ks", k, 1, 512) for k in ks]
        self._trie, self._prompts = trie, prompts
        self._targets = _validate.int64_array("targets", targets)
        self._pad_token_id, self._recommend, self._filter = pad_token_id, recommend, item_filter
        self.history: list[dict[str, float]] = []

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after an evaluation; every process recommends to all users."""
        model = kwargs["model"]
        was_training = model.training
        model.eval()
        try:
            found = self.recommend(model)
        finally:
            model.train(was_training)
        metrics: dict[str, float] = {}
        for k in self._ks:
            metrics[f"eval_hr@{k}"] = hit_rate(found, self._targets, k, trie=self._trie)
            metrics[f"eval_ndcg@{k}"] = ndcg(found, self._targets, k, trie=self._trie)
        self.history.append({"step": state.global_step, **metrics})
        if kwargs.get("metrics") is not None:
            kwargs["metrics"].update(metrics)
        if state.is_world_process_zero:
            state.log_history.append({"step": state.global_step, **metrics})
            _logger.info("step %d: %s", state.global_step, metrics)

    def recommend(self, model: Any) -> npt.NDArray[np.int64]:
        """Item ids [users, max(ks)]."""
        most = max(self._ks)
        if self._recommend is not None:
            return self._recommend(model, self._prompts, most)
        return beam_recommend(
            model,
            self._prompts,
            most,
            trie=self._trie,
            pad_token_id=self._pad_token_id,
            item_filter=self._filter,
        )
