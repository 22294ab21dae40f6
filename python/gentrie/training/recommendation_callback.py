"""Constrained recommendations, judged while a model trains."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import TrainerCallback

from gentrie import _validate
from gentrie._item_names import refuse_item_names
from gentrie.evaluation import hit_rate, ndcg
from gentrie.generation.beam_search import beam_search
from gentrie.generation.best_first_search import best_first_search
from gentrie.item_filter import ItemFilter, make_filters
from gentrie.presets import Preset
from gentrie.training._prompts import warn_of_other_ends
from gentrie.trie import TokenTrie

Recommend = Callable[[Any, Sequence[Sequence[int]], int], npt.NDArray[np.int64]]
ScopeName = Literal["trie", "vocab"]
Search = Literal["beam", "best_first"]

_logger = logging.getLogger("gentrie")


def beam_recommend(
    model: Any,
    prompts: Sequence[Sequence[int]],
    num_items: int,
    *,
    trie: TokenTrie,
    pad_token_id: int,
    batch_size: int = 16,
    preset: Preset | None = None,
    scope: ScopeName | None = None,
    length_penalty: float | None = None,
    search: Search = "beam",
    item_filter: Any = None,
) -> npt.NDArray[np.int64]:
    """The ``num_items`` best items behind each prompt by a constrained search.

    Parameters
    ----------
    model
        What :class:`gentrie.generation.TreeDecoder` serves.
    prompts
        Token ids, one list a user; the response is one item.
    num_items
        Items a user, and beams at least.
    trie
        The catalog.
    pad_token_id
        Fills prompts up on the left.
    batch_size
        Prompts that are searched together.
    preset
        One of :mod:`gentrie.presets`, whose scope, length penalty, early stopping and number of beams are used.
    scope, length_penalty
        As in :func:`gentrie.generation.beam_search`. Default: the preset's; without one ``"trie"`` and 0.
    search
        ``"beam"``, or ``"best_first"`` for the items of highest score for certain, with a length penalty of 0 alone.
    item_filter
        Items that may be given, as in :func:`gentrie.generation.beam_search`; also one a prompt.

    Returns
    -------
    int64 [users, num_items], best first; where several items share a title, the smallest id; -1 where fewer were found.

    Raises
    ------
    ValueError, TypeError
        For a list of filters that holds not one a prompt, an unknown search, and what the search refuses.
    """
    refuse_item_names(_validate.trie("trie", trie), "beam_recommend")
    find = _search_of(num_items, preset, scope, length_penalty, search)
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
        found = find(
            model,
            ids.to(model.device),
            trie,
            attention_mask=mask,
            item_filter=filters[0] if len(filters) == 1 else [filters[row] for row in rows],
        )
        for row, items in zip(rows, found.item_ids, strict=True):
            lists[row, : len(items)] = [int(same.min()) for same in items]
    return lists


def _search_of(
    num_items: int, preset: Preset | None, scope: ScopeName | None, length_penalty: float | None, search: Search
) -> Callable[..., Any]:
    """A search with its options, checked."""
    _validate.choice("search", search, ("beam", "best_first"))
    if preset is not None and not isinstance(preset, Preset):
        raise TypeError(f"preset is a {type(preset).__name__}, expected one of gentrie.presets")
    options: dict[str, Any] = {"scope": "trie", "length_penalty": 0.0} if preset is None else preset.beam_search
    beams = options.pop("beam_width", num_items)
    if scope is not None:
        options["scope"] = _validate.choice("scope", scope, ("trie", "vocab"))
    if length_penalty is not None:
        options["length_penalty"] = length_penalty
    if search == "beam":
        return partial(beam_search, **options, beam_width=max(beams, num_items), num_return_sequences=num_items)
    options.pop("early_stopping", None)
    if options["length_penalty"] != 0:
        raise ValueError(f"search='best_first' with length_penalty={options['length_penalty']}: only 0 can be certain")
    return partial(best_first_search, **options, num_results=num_items)


class RecommendationCallback(TrainerCallback):
    """Recommends to some users at every evaluation, and adds HR@K and NDCG@K to its metrics.

    :class:`BearTrainer`, and any other Trainer that begins with :class:`LogsRecommendations`, logs them together with
    the loss of the evaluation. Under a plain ``Trainer`` they are in what ``evaluate`` returns and in ``log_history``,
    but its loggers have been called before.

    Parameters
    ----------
    trie
        The catalog.
    prompts
        Token ids, one list a user. Warns where one does not end as the context does that the catalog's titles were
        encoded behind.
    targets
        The item id each user chose, int64 [users].
    pad_token_id
        As in :func:`beam_recommend`.
    ks
        Cut-offs K; the largest is the number of items asked for.
    preset, scope, length_penalty, search, item_filter
        As in :func:`beam_recommend`, for the default ``recommend`` alone.
    recommend
        ``recommend(model, prompts, num_items)`` gives item ids [users, num_items], best first, -1 where fewer.
        Default: :func:`beam_recommend`.

    Attributes
    ----------
    history : list of dict
        The metrics of every evaluation, with its ``step``; those of the run that is resumed included.
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
        preset: Preset | None = None,
        scope: ScopeName | None = None,
        length_penalty: float | None = None,
        search: Search = "beam",
        item_filter: Any = None,
    ) -> None:
        refuse_item_names(_validate.trie("trie", trie), "RecommendationCallback")
        own = {"preset": preset, "scope": scope, "length_penalty": length_penalty, "item_filter": item_filter}
        for name, value in {**own, "search": None if search == "beam" else search}.items():
            if recommend is not None and value is not None:
                raise ValueError(f"{name} is given to a recommend of one's own, which does not get it")
        if len(prompts) != len(targets):
            raise ValueError(f"prompts are of {len(prompts)} users, targets of {len(targets)}")
        for row, prompt in enumerate(prompts):
            if len(prompt) == 0:
                raise ValueError(f"prompts[{row}] is empty")
        if not ks:
            raise ValueError("ks is empty")
        warn_of_other_ends(trie, prompts, "prompts[{}]", 2)
        self._ks = [_validate.integer("ks", k, 1, 512) for k in ks]
        self._trie, self._prompts = trie, prompts
        self._targets = _validate.int64_array("targets", targets)
        self._pad_token_id, self._recommend = pad_token_id, recommend
        self._options = {**own, "search": search}
        _search_of(max(self._ks), preset, scope, length_penalty, search)
        self._is_logged = False
        self.history: list[dict[str, float]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer; takes the history of a run that is resumed from its log."""
        if state.global_step:
            names = {"step", *(name for k in self._ks for name in (f"eval_hr@{k}", f"eval_ndcg@{k}"))}
            logged = [{name: entry[name] for name in entry if name in names} for entry in state.log_history]
            self.history = [entry for entry in logged if len(entry) == len(names)]

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by the Trainer after an evaluation, too late for its loggers."""
        if self._is_logged:
            return
        metrics = self.evaluate(kwargs["model"], state)
        if kwargs.get("metrics") is not None:
            kwargs["metrics"].update(metrics)
        if state.is_world_process_zero:
            state.log_history.append({"step": state.global_step, **metrics})

    def evaluate(self, model: Any, state: Any) -> dict[str, float]:
        """The metrics by name, which are added to the history; every process recommends to all users."""
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
        if state.is_world_process_zero:
            _logger.info("step %d: %s", state.global_step, metrics)
        return metrics

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
            **self._options,
        )


class LogsRecommendations:
    """Makes a Trainer log the metrics of its :class:`RecommendationCallback` with those of the evaluation.

    ``class MyTrainer(LogsRecommendations, Trainer): ...``; :class:`BearTrainer` is one. Where several data sets are
    evaluated together, the metrics come with those of the first.
    """

    _due: list[RecommendationCallback] | None = None  # None outside of an evaluation

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.evaluate``."""
        whole: Any = super()
        if self._due is not None:  # one of several data sets
            return whole.evaluate(*args, **kwargs)
        trainer: Any = self
        callbacks = [one for one in trainer.callback_handler.callbacks if isinstance(one, RecommendationCallback)]
        self._due = list(callbacks)
        for callback in callbacks:
            callback._is_logged = True
        try:
            return whole.evaluate(*args, **kwargs)
        finally:
            self._due = None
            for callback in callbacks:
                callback._is_logged = False

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.evaluation_loop``."""
        whole: Any = super()
        trainer: Any = self
        output = whole.evaluation_loop(*args, **kwargs)
        while self._due:
            output.metrics.update(self._due.pop(0).evaluate(trainer.model, trainer.state))
        return output
