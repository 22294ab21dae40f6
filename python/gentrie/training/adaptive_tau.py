"""MSL's adaptive temperature (SIGIR 2025, arXiv 2504.04178)."""

from __future__ import annotations

from typing import Any

import torch

from gentrie import _validate
from gentrie.training import _arguments
from gentrie.training._moments import LogitMoments
from gentrie.training._reduce import LossStats


class AdaptiveTau:
    """A temperature that follows the spread of the valid logits where items begin.

    With ``mu`` and ``var`` the mean and variance of the valid logits at labels at the catalog's first branching place,
    ``mu_y`` the mean of those labels' own logits, ``C = log(eta * valid tokens there)`` and ``d = mu_y - mu``, a step
    wants ``tau = (d + sqrt(max(d ** 2 - 2 * C * var, 0))) / (2 * C)``, clamped to [low, high], and :attr:`value` moves
    there by a share of ``alpha``. A training step computes the loss with ``tau=adaptive.value`` and
    ``return_stats=True``, then calls :meth:`update`; MSL's code uses the value *after* the update, one step earlier
    than this, and multiplies the loss by it.

    Parameters
    ----------
    initial
        Temperature before the first update.
    eta
        Share of the valid tokens that compete with the label.
    alpha
        How far each update moves, in (0, 1].
    low, high
        Limits of what a step may want.
    warm_up
        Updates that leave the value as it is.
    process_group
        Of torch.distributed: moments are summed over its ranks. Default: all, where it is initialised.

    Raises
    ------
    ValueError, TypeError
        For arguments of wrong type or range.
    """

    def __init__(
        self,
        initial: float = 1.5,
        *,
        eta: float = 0.25,
        alpha: float = 0.05,
        low: float = 1.5,
        high: float = 5.0,
        warm_up: int = 0,
        process_group: Any = None,
    ) -> None:
        self._value = torch.tensor(_arguments.positive("initial", initial), dtype=torch.float64)
        self._eta = _arguments.positive("eta", eta)
        self._alpha = _arguments.positive("alpha", alpha)
        if self._alpha > 1:
            raise ValueError(f"alpha={alpha} is above 1")
        self._low, self._high = _arguments.positive("low", low), _arguments.positive("high", high)
        if self._low > self._high:
            raise ValueError(f"low={low} is above high={high}")
        self._warm_up = _validate.integer("warm_up", warm_up, 0, 2**31 - 1)
        self._num_updates = 0
        self._group = process_group

    @property
    def value(self) -> torch.Tensor:
        """The temperature: a float64 tensor of no dimensions, on the device of the last update."""
        return self._value

    def update(self, stats: LossStats) -> torch.Tensor:
        """Move towards what the statistics of a step want, without waiting for the device.

        With torch.distributed every rank has to call it at every step. A step without labels at the first branching
        place, or with logits there that are not finite, changes nothing.

        Returns
        -------
        torch.Tensor
            The new :attr:`value`.

        Raises
        ------
        ValueError
            For the statistics of a loss without a trie, and where ``eta`` times the valid tokens is not above 1.
        """
        moments = stats.first_logits
        if moments is None:
            raise ValueError("stats.first_logits is None: the statistics are those of a loss without a trie")
        if self._eta * moments.num_tokens <= 1:
            raise ValueError(
                f"eta={self._eta} times the {moments.num_tokens} tokens valid where items begin is not above 1"
            )
        self._num_updates += 1
        self._value = self._value.to(moments.total.device)
        wanted, any_rows = self._wanted(moments)
        if self._num_updates > self._warm_up:
            moved = (1 - self._alpha) * self._value + self._alpha * wanted
            self._value = torch.where(any_rows, moved, self._value)
        return self._value

    def state_dict(self) -> dict[str, float | int]:
        """What a checkpoint has to keep."""
        return {"value": float(self._value), "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        ValueError, TypeError
            For values that :meth:`state_dict` does not give.
        """
        value = _arguments.positive("value", state.get("value"))
        self._num_updates = _validate.integer("num_updates", state.get("num_updates"), 0, 2**63 - 1)
        self._value = torch.tensor(value, dtype=torch.float64)

    def _wanted(self, moments: LogitMoments) -> tuple[torch.Tensor, torch.Tensor]:
        """The clamped temperature, and whether there were labels with finite logits to derive it from."""
        sums = torch.stack([moments.num_rows, moments.total, moments.squares, moments.target_total])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums, group=self._group)
        num_rows, total, squares, target_total = sums.unbind()
        count = (num_rows * moments.num_tokens).clamp(min=2)
        mean = total / count
        variance = (squares - total * mean) / (count - 1)  # unbiased, as torch.var
        gap = target_total / num_rows.clamp(min=1) - mean
        strength = torch.log(torch.tensor(self._eta * moments.num_tokens, dtype=torch.float64, device=sums.device))
        root = (gap.square() - 2 * strength * variance).clamp(min=0).sqrt()
        wanted = ((gap + root) / (2 * strength)).clamp(self._low, self._high)
        return wanted, (num_rows > 0) & wanted.isfinite()
