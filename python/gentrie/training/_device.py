"""Scores and losses of CUDA tensors by :mod:`gentrie.kernels`, without waiting for the device.

A scope comes from the host (:class:`~gentrie.training._rows.Scope`: the rows that are scored, one after the other) or
from the device (:class:`~gentrie.training._device_rows.DeviceScope`: all rows, in their places).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch

from gentrie.training._device_rows import DeviceScope
from gentrie.training._head import Head
from gentrie.training._rows import Narrow, Scope
from gentrie.training._scores import Scores, Tau, sum_dtype


class OnePass(NamedTuple):
    """A loss that the kernel computes together with its gradient: BEAR's arguments, or those that make it likelihood.

    Attributes
    ----------
    beam_width, reg_weight, reg_temperature, form, sign
        As in :func:`gentrie.training.bear_loss`.
    """

    beam_width: int = 1
    reg_weight: float = 0.0
    reg_temperature: float = 1.0
    form: str = "regularized"
    sign: str = "positive"


class _Rows(NamedTuple):
    """Rows of a scope with their valid tokens, by the names that kernels have for them.

    Attributes
    ----------
    labels
        int64 [n].
    rows
        int64 [n], which logits; None: all.
    node
        int64 [n]: a place in ``indptr``, -1 for the vocabulary, -2 for free text.
    indptr, tokens
        int64 [M + 1] and integers [T]; None where no row is restricted.
    """

    labels: torch.Tensor
    rows: torch.Tensor | None
    node: torch.Tensor
    indptr: torch.Tensor | None
    tokens: torch.Tensor | None

    @classmethod
    def of(cls, scope: Scope) -> _Rows:
        if isinstance(scope, DeviceScope):
            return cls(scope.wide.label, None, scope.node, scope.resident.indptr, scope.resident.tokens)
        narrow, wide, free = scope.narrow, scope.wide, scope.free
        labels = torch.cat([narrow.label, wide.label, free.label])
        node = torch.cat([_nodes(narrow), narrow.row.new_full((len(wide),), -1)])
        node = torch.cat([node, node.new_full((len(free),), -2)])
        return cls(labels, scope.row, node, *((_indptr(narrow), narrow.tokens) if len(narrow) else (None, None)))


def takes(tensor: torch.Tensor) -> bool:
    """Whether kernels take a tensor: it is on CUDA, and Triton runs there."""
    if not tensor.is_cuda:
        return False
    from gentrie.kernels._launch import usable

    runs: bool = usable()
    return runs


def score_logits(logits: torch.Tensor, scope: Scope, tau: Tau, beam_width: int | None) -> Scores:
    """Scores from logits [rows, width]: one read, and backward one more and one write."""
    from gentrie.kernels.label_log_probs import label_log_probs

    log_prob, threshold = label_log_probs(
        logits,
        **_Rows.of(scope)._asdict(),
        beam_width=beam_width or 0,
        tau=_tau(tau, logits.device, sum_dtype(logits)),
    )
    if isinstance(scope, DeviceScope):
        # Above any label: no objective has anything against one of free text, or one that is not scored.
        threshold = threshold if beam_width is None else torch.where(scope.in_item, threshold, torch.inf)
        log_prob = torch.where(scope.is_scored, log_prob, 0.0)
    return Scores(log_prob, None if beam_width is None else threshold[: scope.num_item_rows])


def lose_logits(
    logits: torch.Tensor, scope: Scope, tau: Tau, how: OnePass, weights: torch.Tensor, inplace: bool
) -> tuple[torch.Tensor, Scores]:
    """Losses [n] of the scored labels times ``weights``, and the scores outside the graph: one read and one write."""
    from gentrie.kernels.bear_loss import bear_loss

    found = bear_loss(
        logits,
        **_Rows.of(scope)._asdict(),
        **how._asdict(),
        weights=weights,
        tau=_tau(tau, logits.device, sum_dtype(logits)),
        inplace_backward=inplace,
    )
    return found.losses, Scores(found.log_probs, found.log_thresholds[: scope.num_item_rows])


def score_narrow(hidden: torch.Tensor, head: Head, narrow: Narrow, tau: Tau, beam_width: int | None) -> Scores:
    """Scores of the restricted rows from hidden states [rows, D], one dense product a node of the trie."""
    from gentrie.kernels.label_log_probs import label_log_probs
    from gentrie.kernels.trie_linear import trie_linear

    nodes = _nodes(narrow)
    values = trie_linear(
        hidden,
        head.weight,
        torch.searchsorted(nodes, torch.arange(len(narrow.node_rows) + 1, device=nodes.device)),
        _indptr(narrow),
        narrow.tokens,
        int(narrow.counts.sum()),
        bias=head.bias,
        rows=narrow.row,
        softcap=head.softcap,
        scale=head.scale,
    )
    log_prob, threshold = label_log_probs(
        values,
        narrow.place,
        beam_width=beam_width or 0,
        indptr=torch.nn.functional.pad(narrow.count.cumsum(0), (1, 0)),
        tau=_tau(tau, hidden.device, values.dtype),
    )
    return Scores(log_prob, None if beam_width is None else threshold)


def without_narrow(scope: Scope) -> Scope:
    """The rows of a scope that are scored over the vocabulary."""
    empty = Narrow(**{name: values[:0] for name, values in vars(scope.narrow).items()})
    return replace(scope, narrow=empty, row=scope.row[len(scope.narrow) :])


def _nodes(narrow: Narrow) -> torch.Tensor:
    """int64 [n], the number of each row's node: rows of one node follow each other, from a start of their own."""
    return (narrow.start.diff(prepend=narrow.start[:1]) > 0).cumsum(0)


def _indptr(narrow: Narrow) -> torch.Tensor:
    """int64 [nodes + 1], where the tokens of each node start; they lie one after the other."""
    ends = narrow.start.new_empty(len(narrow.node_rows))
    ends[_nodes(narrow)] = narrow.start + narrow.count
    return torch.nn.functional.pad(ends, (1, 0))


def _tau(tau: Tau, device: torch.device, dtype: torch.dtype) -> torch.Tensor | None:
    if isinstance(tau, torch.Tensor):
        return tau
    return None if tau == 1.0 else torch.full((), tau, dtype=dtype, device=device)
