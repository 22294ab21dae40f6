"""BEAR, beam-search-aware regularisation (SIGIR 2026, arXiv 2601.22925)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import logsigmoid

from gentrie import _validate
from gentrie.training import _arguments, _compute
from gentrie.training._compute import ScopeName
from gentrie.training._device import OnePass
from gentrie.training._reduce import Reduction
from gentrie.training._rows import LabelRows, OnInvalid, Scope
from gentrie.training._scores import Scores
from gentrie.trie import TokenTrie

Form = Literal["regularized", "reweighted"]
Sign = Literal["positive", "negative"]


@dataclass(frozen=True)
class BearObjective:
    """The token losses of BEAR; see :func:`bear_loss` for the arguments."""

    beam_width: int
    reg_weight: float
    reg_temperature: float
    scope: ScopeName
    form: Form
    sign: Sign

    def __post_init__(self) -> None:
        _validate.integer("beam_width", self.beam_width, 1, 2**31 - 1)
        if _arguments.finite("reg_weight", self.reg_weight) < 0:
            raise ValueError(f"reg_weight={self.reg_weight} is negative")
        _arguments.positive("reg_temperature", self.reg_temperature)
        _validate.choice("scope", self.scope, ("trie", "vocab"))
        _validate.choice("form", self.form, ("regularized", "reweighted"))
        _validate.choice("sign", self.sign, ("positive", "negative"))
        if self.form == "reweighted" and self.sign == "negative":
            raise ValueError('sign="negative" belongs to form="regularized": the reweighted form has no such side')

    @property
    def published_normalizer(self) -> str:
        return "weights" if self.form == "reweighted" else "labels"

    @property
    def one_pass(self) -> OnePass:
        return OnePass(self.beam_width, self.reg_weight, self.reg_temperature, self.form, self.sign)

    def restricted(self, rows: LabelRows) -> npt.NDArray[np.bool_]:
        return _compute.restricted_by(self.scope, rows)

    def margins(self, scores: Scores, scope: Scope) -> torch.Tensor:
        """``delta / reg_temperature`` [item rows]: above 0 where a label is not among the B largest."""
        assert scores.log_threshold is not None
        return (scores.log_threshold - scores.log_prob[: scope.num_item_rows]) / self.reg_temperature

    def losses(self, scores: Scores, scope: Scope) -> tuple[torch.Tensor, torch.Tensor | None]:
        margin, rest = self.margins(scores, scope), len(scope.free)
        if self.form == "reweighted":
            weights = self.weights(margin)
            weights = torch.cat([weights, weights.new_ones(rest)])
            return -weights * scores.log_prob, weights
        regulariser = self.reg_weight * logsigmoid(margin)
        regulariser = torch.cat([regulariser, regulariser.new_zeros(rest)])
        return (-regulariser if self.sign == "negative" else regulariser - scores.log_prob), None

    def weights(self, margin: torch.Tensor) -> torch.Tensor:
        """Weights of the reweighted form."""
        return 1 + self.reg_weight * torch.sigmoid(-margin.detach())

    def describe(self, scores: Scores, scope: Scope) -> dict[str, torch.Tensor]:
        margin = self.margins(scores, scope).detach()
        count = max(1, margin.numel())
        return {
            "violation_rate": (margin > 0).sum() / count,
            "mean_weight": self.weights(margin).sum() / count,
        }


def bear_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    trie: TokenTrie,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    beam_width: int = 10,
    reg_weight: float = 1.0,
    reg_temperature: float = 1.0,
    tau: float | torch.Tensor = 1.0,
    scope: ScopeName = "trie",
    form: Form = "regularized",
    sign: Sign = "positive",
    normalizer: float | str | torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    sequence_weights: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
    return_stats: bool = False,
    inplace_backward: bool = False,
) -> Any:
    """The BEAR objective (eq. 3.4 and 3.5) from logits, touching only valid tokens.

    For a label y, with ``log p`` its log-probability over the scope and ``beta`` the B-th largest probability there
    (constant to the gradient), ``delta = log beta - log p(y)``. The token loss is

    - ``-log p(y) + reg_weight * log sigmoid(delta / reg_temperature)`` in the regularised form (unbounded below: the
      second term rewards labels far above the threshold without end),
    - ``w * -log p(y)``, ``w = 1 + reg_weight * sigmoid(-delta / reg_temperature)`` constant to the gradient, in the
      reweighted form of the authors' code. Its gradient is that of the regularised form with ``reg_weight`` times
      ``reg_temperature``.

    Nothing is shifted: ``logits[i]`` predict ``labels[i]``, which is chosen from ``states[i]``.

    CUDA logits are scored by Triton kernels, and their labels looked up on the device: nothing waits for it after the
    first call for a trie, which copies that there, and a captured CUDA graph reads the labels and states that are in
    place when it is replayed. A label that is not valid then makes the loss nan, with a gradient of 0 from there, and
    the next call for this trie raises. Logits that are not finite make the loss nan or infinite there, where they raise
    on the CPU. ``item_filter``, ``return_stats`` and focal losses look labels up on the host, which waits for labels
    that lie on the device.

    Parameters
    ----------
    logits
        [..., V], V at least the trie's vocabulary; float16, bfloat16, float32 or float64. Sums are formed in float32
        (float64 for float64).
    labels
        Integers [...], where the logits are or on the CPU.
    trie
        The catalog.
    states
        int64 [...]: the state each label is chosen from, as :meth:`TokenTrie.token_states` gives them; -2 is free
        text, whose loss is plain cross entropy over the whole vocabulary: temperature 1, weight 1, no regulariser.
        Default: each row's item starts at the root, at its first label.
    item_filter
        Which items there are: an :class:`gentrie.ItemFilter` of the trie (made once, not at every step), item ids, or
        bool by item id. Tokens below which it leaves no item are not valid. Default: all items.
    beam_width
        B.
    reg_weight
        Weight of the regulariser; 0 gives plain likelihood over the scope.
    reg_temperature
        Temperature of the sigmoid.
    tau
        Temperature of the softmax; a number, or a tensor of no dimensions (constant to the gradient).
    scope
        ``"trie"``: probabilities over the valid tokens, where a label without alternative adds nothing; ``"vocab"``:
        over the whole width of the logits.
    form
        ``"regularized"`` (the paper) or ``"reweighted"`` (its code).
    sign
        ``"negative"``: only ``-reg_weight * log sigmoid(delta / reg_temperature)``, which pushes a rejected item's
        labels below the threshold; regularised form, free text adds nothing.
    normalizer
        What the sum is divided by under ``reduction="mean"``: ``"labels"`` (labels that count, the default of the
        regularised form), ``"branching"`` (labels with more than one token in their scope), ``"weights"`` (sum of
        their weights, the default of the reweighted form), or a number or tensor of no dimensions. Under gradient
        accumulation give the number for the whole batch: each micro-batch dividing by its own is another loss.
    token_weights, sequence_weights
        [...] like ``labels``, and [...] without its last dimension: factors of the token losses, in no count of labels
        but in the sum of weights.
    reduction
        ``"mean"``, ``"sum"``, or ``"none"`` for token losses in the shape of ``labels``, 0 where nothing is scored.
    ignore_index
        The label that does not count.
    on_invalid
        ``"error"``, or ``"ignore"`` to drop and count labels that the trie does not allow.
    return_stats
        Return ``(loss, LossStats)``.
    inplace_backward
        The gradient may take the place of contiguous logits, which saves a tensor of their size: they are undefined
        after the call, and the graph has one backward.

    Returns
    -------
    torch.Tensor
        Of no dimensions, or like ``labels``; float32, float64 for float64 logits. 0 where no label counts.

    Raises
    ------
    ValueError, TypeError
        A label that is not valid at its state, naming row, token and state, and every argument of wrong type, shape,
        range or device. On the CPU also a log-probability or a loss that is not finite.
    """
    _validate.choice("inplace_backward", inplace_backward, (False, True))
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.logits_source(logits, labels, catalog.trie, inplace_backward)
    return _compute.loss(
        source,
        tokens,
        catalog,
        BearObjective(beam_width, reg_weight, reg_temperature, scope, form, sign),
        states=states,
        tau=tau,
        normalizer=normalizer,
        token_weights=token_weights,
        sequence_weights=sequence_weights,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
        return_stats=return_stats,
    )


def linear_bear_loss(
    hidden: torch.Tensor,
    lm_head: torch.nn.Module | torch.Tensor,
    labels: torch.Tensor,
    *,
    trie: TokenTrie,
    lm_head_bias: torch.Tensor | None = None,
    logit_softcap: float | None = None,
    logit_scale: float | None = None,
    states: torch.Tensor | None = None,
    item_filter: Any = None,
    beam_width: int = 10,
    reg_weight: float = 1.0,
    reg_temperature: float = 1.0,
    tau: float | torch.Tensor = 1.0,
    scope: ScopeName = "trie",
    form: Form = "regularized",
    sign: Sign = "positive",
    normalizer: float | str | torch.Tensor | None = None,
    token_weights: torch.Tensor | None = None,
    sequence_weights: torch.Tensor | None = None,
    reduction: Reduction = "mean",
    ignore_index: int = -100,
    on_invalid: OnInvalid = "error",
    return_stats: bool = False,
) -> Any:
    """:func:`bear_loss` of the logits that the LM head would give, which are never formed.

    Equals ``bear_loss(logits, ...)`` with ``logits = cap(logit_scale * lm_head(hidden))``, ``cap(x) = logit_softcap *
    tanh(x / logit_softcap)``: valid rows of the head only, in blocks.

    Which rows of the head are needed depends on the labels, so that these are looked up on the host, and errors raised
    at once. On CUDA nothing waits for the device where ``labels`` and ``states`` are on the CPU, as collators make
    them; what lies on the device is copied back, which waits.

    Parameters
    ----------
    hidden
        [..., D]: what the model hands to its head.
    lm_head
        The head itself, ``model.get_output_embeddings()``: a ``torch.nn.Linear``, also with PEFT's LoRA or DoRA on it,
        ``trainable_token_indices`` or ``modules_to_save`` (adapters cost a copy of the head). Or its weight [V, D], for
        heads without an adapter alone: the weight of an adapted head is the one before adaptation, and nothing in it
        tells. Its dtype may differ from ``hidden``'s, products are formed in float32 (float64 where one of them is),
        also under autocast. Its gradient is computed only where it requires one.
    labels, trie, states, item_filter, beam_width, reg_weight, reg_temperature, tau, scope, form, sign, normalizer
        As in :func:`bear_loss`.
    token_weights, sequence_weights, reduction, ignore_index, on_invalid, return_stats
        As in :func:`bear_loss`.
    lm_head_bias
        [V] or None, beside a weight; a module has its own.
    logit_softcap, logit_scale
        As the model has them: Gemma's ``final_logit_softcapping``, Cohere's ``logit_scale``, one over Granite's
        ``logits_scaling``; None for none.

    Raises
    ------
    ValueError, TypeError
        As :func:`bear_loss`, and TypeError for a quantised head or one with an adapter of another kind.
    """
    catalog = _arguments.catalog(trie, item_filter)
    source, tokens = _arguments.hidden_source(
        hidden, lm_head, labels, catalog.trie, lm_head_bias, logit_softcap, logit_scale
    )
    return _compute.loss(
        source,
        tokens,
        catalog,
        BearObjective(beam_width, reg_weight, reg_temperature, scope, form, sign),
        states=states,
        tau=tau,
        normalizer=normalizer,
        token_weights=token_weights,
        sequence_weights=sequence_weights,
        reduction=reduction,
        ignore_index=ignore_index,
        on_invalid=on_invalid,
        return_stats=return_stats,
    )
