"""What all losses share: look the labels up, score them, weigh them by an objective, reduce."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _validate
from gentrie.training import _arguments, _device
from gentrie.training._device_rows import DeviceScope, ResidentRows
from gentrie.training._logits import LogitsSource
from gentrie.training._moments import first_logits
from gentrie.training._reduce import LossStats, Reducer, Reduction
from gentrie.training._rows import FilteredTrie, LabelRows, OnInvalid, Scope, at
from gentrie.training._scores import Scores, Source, Tau

ScopeName = Literal["trie", "vocab"]


class Objective(Protocol):
    """A loss of each label, given its scores."""

    @property
    def published_normalizer(self) -> str:
        """What a normalizer of None stands for."""
        ...

    @property
    def beam_width(self) -> int | None:
        """B of the threshold, None where none is needed."""
        ...

    @property
    def one_pass(self) -> _device.OnePass | None:
        """How a kernel computes the losses together with their gradient, None where none does."""
        ...

    def restricted(self, rows: LabelRows) -> npt.NDArray[np.bool_]:
        """[n], whether a label in an item is scored over its valid tokens only."""
        ...

    def losses(self, scores: Scores, scope: Scope) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Losses [n] of the scored labels, and the weights [n] in them that a normalizer may sum (None for ones)."""
        ...

    def describe(self, scores: Scores, scope: Scope) -> dict[str, torch.Tensor]:
        """Fields of :class:`LossStats` of its own."""
        ...


def loss(
    source: Source,
    labels: torch.Tensor,
    catalog: FilteredTrie | None,
    objective: Objective,
    *,
    states: object,
    tau: object,
    normalizer: float | str | torch.Tensor | None,
    token_weights: torch.Tensor | None,
    sequence_weights: torch.Tensor | None,
    reduction: Reduction,
    ignore_index: int,
    on_invalid: OnInvalid,
    return_stats: bool,
) -> Any:
    """The loss, and its statistics on request."""
    reducer = Reducer.of(
        labels,
        source.device,
        source.dtype,
        reduction=reduction,
        normalizer=normalizer,
        published=objective.published_normalizer,
        token_weights=token_weights,
        sequence_weights=sequence_weights,
    )
    scope, temperature = looked_up(
        source,
        labels,
        catalog,
        objective,
        states=states,
        tau=tau,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
        on_host=return_stats,
    )
    if isinstance(scope, DeviceScope):
        reducer = _for_device(reducer, scope, source.dtype)
    with torch.no_grad():  # before the logits may become their gradient
        moments = first_logits(source, scope, catalog) if return_stats and catalog is not None else None
    how = objective.one_pass if isinstance(source, LogitsSource) and source.in_one_pass else None
    ahead = None if how is None else reducer.ahead(scope, source)
    if isinstance(source, LogitsSource) and how is not None and ahead is not None:
        factors, divisor = ahead
        losses, scores = source.lose(scope, temperature, how, factors)
        value = losses.sum()
    else:
        scores = source.score(scope, temperature, objective.beam_width)
        losses, weights = objective.losses(scores, scope)
        value, divisor = reducer(losses, scope, weights)
    if isinstance(scope, DeviceScope):
        value = scope.refused(value)
    else:
        _refuse_scores(scores, scope, labels)
        refuse_loss(value)
    if not return_stats:
        return value
    with torch.no_grad():
        num_labels = len(scope.rows.row)
        stats = LossStats(
            num_labels=num_labels,
            num_branching=len(scope),
            num_free=len(scope.free),
            num_invalid=scope.rows.num_invalid,
            normalizer=divisor,
            mean_log_prob=scores.log_prob.detach().sum() / max(1, num_labels),
            first_logits=moments,
            **objective.describe(scores, scope),
        )
    return value, stats


def scored(
    source: Source,
    labels: torch.Tensor,
    catalog: FilteredTrie | None,
    objective: Objective,
    *,
    states: object,
    tau: object,
    ignore_index: int,
    on_invalid: OnInvalid,
) -> tuple[Scope, Scores]:
    """Look the labels up and score them."""
    scope, temperature = looked_up(
        source,
        labels,
        catalog,
        objective,
        states=states,
        tau=tau,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
    )
    scores = source.score(scope, temperature, objective.beam_width)
    if isinstance(scope, DeviceScope):
        scores = replace(scores, log_prob=scope.refused(scores.log_prob))
    else:
        _refuse_scores(scores, scope, labels)
    return scope, scores


def looked_up(
    source: Source,
    labels: torch.Tensor,
    catalog: FilteredTrie | None,
    objective: Objective,
    *,
    states: object,
    tau: object,
    ignore_index: int,
    on_invalid: OnInvalid,
    on_host: bool = False,
) -> tuple[Scope, Tau]:
    """Look the labels up, and check the temperature.

    Labels of logits on a device are looked up there, but for filtered catalogs and focal losses, and with ``on_host``.
    """
    temperature = _arguments.temperature(tau, source.device, source.dtype)
    ignored = _validate.integer("ignore_index", ignore_index, -(2**63), 2**63 - 1)
    choice = _validate.choice("on_invalid", on_invalid, ("error", "ignore"))
    is_whole = catalog is None or catalog.item_filter is None
    if isinstance(source, LogitsSource) and is_whole and objective.one_pass and not on_host and source.is_taken:
        resident = ResidentRows.of(None if catalog is None else catalog.trie, source.device)
        return DeviceScope.at(
            resident, objective, labels, states, ignore_index=ignored, width=source.width, on_invalid=choice
        ), temperature
    rows = LabelRows.of(catalog, labels, states, ignore_index=ignored, width=source.width, on_invalid=choice)
    return Scope.of(rows, objective.restricted(rows), source.device), temperature


def refuse_loss(value: torch.Tensor) -> None:
    """Raise for a loss on the CPU that is not finite although every log-probability is. A device is not waited for."""
    if value.device.type == "cpu" and not bool(value.detach().isfinite().all()):
        raise ValueError(
            f"the loss is {value.detach().flatten()[~value.detach().isfinite().flatten()][0].item()}: weights, "
            "normalizer or temperatures are not finite, or log-probabilities too large"
        )


def _refuse_scores(scores: Scores, scope: Scope, labels: torch.Tensor) -> None:
    """Raise for the first label on the CPU whose log-probability is not finite. A device is not waited for."""
    log_prob = scores.log_prob.detach()
    if log_prob.device.type != "cpu" or bool(log_prob.isfinite().all()):
        return
    first = int((~log_prob.isfinite()).nonzero()[0])
    row = int(scope.row[first])
    raise ValueError(
        f"the log-probability of labels{at(row, tuple(labels.shape))}={int(labels.reshape(-1)[row])} is "
        f"{log_prob[first].item()}: the logits of its scope (or the hidden states and head that give them) are not "
        "finite, or too far apart"
    )


def restricted_by(scope: str, rows: LabelRows) -> npt.NDArray[np.bool_]:
    """All labels for ``"trie"``, none for ``"vocab"``."""
    return np.full(len(rows.row), scope == "trie")


def _for_device(reducer: Reducer, scope: DeviceScope, dtype: torch.dtype) -> Reducer:
    """The same for labels of which some are not scored: those have weight 0, and the device counts the others."""
    ones = torch.ones(len(scope), dtype=dtype, device=scope.row.device)
    given = reducer.weights(scope, ones)
    weights = torch.where(scope.is_scored, ones if given is None else given, 0.0)
    counted = {"labels": scope.counts, "branching": scope.is_scored}
    kind = reducer.normalizer
    if isinstance(kind, str) and kind in counted:
        kind = counted[kind].sum().clamp(min=1).to(dtype)
    return replace(reducer, normalizer=kind, token_weights=weights.reshape(scope.rows.shape), sequence_weights=None)
