"""From the loss of each scored label to what a loss function returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from gentrie import _validate
from gentrie.training import _arguments
from gentrie.training._moments import LogitMoments
from gentrie.training._rows import Scope
from gentrie.training._scores import Source

Reduction = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class LossStats:
    """What a loss saw, outside the graph.

    Attributes
    ----------
    num_labels
        Labels that count.
    num_branching
        Of these, those with more than one token in their scope: the ones that are in the sum.
    num_free
        Of these, those in free text.
    num_invalid
        Labels that were dropped because the trie does not allow them.
    normalizer
        What the sum was divided by; a tensor of no dimensions (1 under ``reduction="sum"`` and ``"none"``).
    mean_log_prob
        Mean log-probability of the ``num_labels`` labels over their scopes; a tensor of no dimensions.
    violation_rate
        Share of the branching labels in items that are not among the B largest of their scope, so that a beam search
        of width B that has nothing but this prefix loses them; None for losses without a threshold.
    mean_weight
        Mean weight that the reweighted form of BEAR gives to branching labels in items, whichever form is used; None
        for losses without a threshold.
    first_logits
        Moments of the valid logits at the first branching place of the catalog, for :class:`AdaptiveTau`.
    """

    num_labels: int
    num_branching: int
    num_free: int
    num_invalid: int
    normalizer: torch.Tensor
    mean_log_prob: torch.Tensor
    violation_rate: torch.Tensor | None = None
    mean_weight: torch.Tensor | None = None
    first_logits: LogitMoments | None = None


@dataclass(frozen=True)
class Reducer:
    """How losses are weighted, summed and divided; checked before anything is computed.

    Attributes
    ----------
    reduction
        ``"none"`` gives the labels' shape back, undivided, 0 where a label is not in the sum.
    normalizer
        ``"labels"``, ``"branching"``, ``"weights"``, a number or a tensor.
    token_weights
        [...] like the labels, or None.
    sequence_weights
        [...] without the last dimension, or None.
    """

    reduction: Reduction
    normalizer: _arguments.Normalizer
    token_weights: torch.Tensor | None
    sequence_weights: torch.Tensor | None

    @classmethod
    def of(
        cls,
        labels: torch.Tensor,
        device: torch.device,
        dtype: torch.dtype,
        *,
        reduction: Reduction,
        normalizer: float | str | torch.Tensor | None,
        published: str,
        token_weights: torch.Tensor | None,
        sequence_weights: torch.Tensor | None,
    ) -> Reducer:
        """Check; ``device`` is where losses are, ``published`` what a normalizer of None stands for."""
        _validate.choice("reduction", reduction, ("mean", "sum", "none"))
        if normalizer is not None and reduction != "mean":
            raise ValueError(f"normalizer={normalizer!r} has no use with reduction={reduction!r}")
        return cls(
            reduction,
            _arguments.normalizer(
                published if normalizer is None else normalizer, ("labels", "branching", "weights"), device, dtype
            ),
            _arguments.weights("token_weights", token_weights, tuple(labels.shape), device),
            _arguments.weights("sequence_weights", sequence_weights, tuple(labels.shape[:-1]), device),
        )

    def weights(self, scope: Scope, like: torch.Tensor) -> torch.Tensor | None:
        """[n], the product of the weights of each scored label, or None for ones."""
        if self.token_weights is None and self.sequence_weights is None:
            return None
        row = scope.row
        product = torch.ones_like(like)
        if self.token_weights is not None:
            product = product * self.token_weights.reshape(-1)[row]
        if self.sequence_weights is not None:
            product = product * self.sequence_weights.reshape(-1)[row // scope.rows.shape[-1]]
        return product

    def ahead(self, scope: Scope, source: Source) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Factors [n] of the losses whose sum is the loss, and what is in them as divisor.

        None where only the losses tell: without a sum, and where their own weights are summed.
        """
        kind = self.normalizer
        if self.reduction == "none" or (self.reduction == "mean" and isinstance(kind, str) and kind == "weights"):
            return None
        factors = torch.ones(len(scope), dtype=source.dtype, device=source.device)
        given = self.weights(scope, factors)
        factors = factors if given is None else given
        if self.reduction == "sum":
            return factors, torch.ones((), dtype=factors.dtype, device=factors.device)
        divisor = self._divisor(factors, scope, given, None)
        return factors / divisor, divisor

    def __call__(
        self, losses: torch.Tensor, scope: Scope, weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Reduce.

        Parameters
        ----------
        losses
            [n], of the scored labels.
        scope
            Which they are.
        weights
            [n], of the loss itself, without which ``losses`` already are; they count for ``"weights"`` only.

        Returns
        -------
        The loss, and what it was divided by.
        """
        given = self.weights(scope, losses)
        if given is not None:
            losses = losses * given
        one = torch.ones((), dtype=losses.dtype, device=losses.device)
        if self.reduction == "none":
            full = losses.new_zeros(scope.num_labels_given)
            return full.index_put((scope.row,), losses).reshape(scope.rows.shape), one
        if self.reduction == "sum":
            return losses.sum(), one
        divisor = self._divisor(losses, scope, given, weights)
        return losses.sum() / divisor, divisor

    def _divisor(
        self, losses: torch.Tensor, scope: Scope, given: torch.Tensor | None, weights: torch.Tensor | None
    ) -> torch.Tensor:
        kind = self.normalizer
        if isinstance(kind, torch.Tensor):
            return kind
        if kind == "weights":
            total = torch.ones_like(losses) if weights is None else weights
            total = (total if given is None else total * given).detach().sum()
            return torch.where(total == 0, torch.ones_like(total), total)
        if kind == "labels":
            kind = max(1, len(scope.rows.row))
        elif kind == "branching":
            kind = max(1, len(scope))
        return torch.full((), float(kind), dtype=losses.dtype, device=losses.device)
