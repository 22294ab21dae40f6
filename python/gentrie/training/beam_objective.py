"""BEAR's objective (3.1): the beam search itself, simulated in training. Slow; what BEAR's regulariser approximates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from gentrie import _validate
from gentrie.training import _arguments, _compute
from gentrie.training._compute import ScopeName
from gentrie.training._rows import FilteredTrie
from gentrie.training.token_logprobs import token_logprobs
from gentrie.trie import TokenTrie

NextLogits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class BeamObjectiveStats:
    """What :func:`beam_search_objective` saw, outside the graph.

    Attributes
    ----------
    num_labels
        Labels that count.
    mean_log_prob
        Mean log-probability of these labels over their scopes; a tensor of no dimensions.
    violation_rate
        Share of the target's prefixes that the beam search loses: their log-probability is below ``beta_t``, by more
        than rounding; a tensor of no dimensions.
    pruned_rate
        Share of the prompts that lose any prefix of their target; a tensor of no dimensions.
    model_calls, rows
        Calls of ``next_logits``, and prefixes in them.
    """

    num_labels: int
    mean_log_prob: torch.Tensor
    violation_rate: torch.Tensor
    pruned_rate: torch.Tensor
    model_calls: int
    rows: int


def beam_search_objective(
    logits: torch.Tensor,
    labels: torch.Tensor,
    next_logits: NextLogits,
    *,
    trie: TokenTrie,
    item_filter: Any = None,
    beam_width: int = 10,
    reg_weight: float = 1.0,
    reg_temperature: float = 1.0,
    tau: float = 1.0,
    scope: ScopeName = "trie",
    reduction: str = "mean",
    ignore_index: int = -100,
    return_stats: bool = False,
) -> Any:
    """Likelihood, regularised by whether each prefix of the target survives the beam search (eq. 3.1).

    For every prompt the constrained beam search of width B runs along with the target item y. With ``log P`` the
    log-probability of a whole prefix and ``beta_t`` the B-th largest one among all candidates of step t (the smallest
    where there are fewer), constant to the gradient, the loss of a prompt is
    ``sum_t -log p(y_t) + reg_weight * log sigmoid((log beta_t - log P(y_1..y_t)) / reg_temperature)``. BEAR puts the
    B-th largest probability of the next token alone in the place of ``beta_t``, which needs no search.

    Finished items stay among the candidates of later steps: no length penalty.

    Parameters
    ----------
    logits
        [N, T, V]: of the targets, from the training step's own forward pass; ``logits[:, t]`` predict ``labels[:, t]``.
    labels
        Integers [N, T]: the target items' tokens from the root on, then ``ignore_index``.
    next_logits
        ``next_logits(prompts, prefixes)``, with int64 [n] (prompt numbers) and int64 [n, t] (tokens of an item so
        far), gives the logits [n, V] of the token after them. Called once a step for all beams, without gradients.
    trie, item_filter, beam_width, reg_weight, reg_temperature, tau, scope, ignore_index
        As in :func:`bear_loss`.
    reduction
        ``"mean"``: divided by the number of labels that count; ``"sum"``; or ``"none"`` for [N, T].
    return_stats
        Return ``(loss, BeamObjectiveStats)``.

    Raises
    ------
    ValueError, TypeError
        For a label that is not valid under the trie, and arguments of wrong type, shape or range.
    """
    _validate.integer("beam_width", beam_width, 1, 2**31 - 1)
    _arguments.finite("reg_weight", reg_weight)
    _arguments.positive("reg_temperature", reg_temperature)
    _arguments.positive("tau", tau)
    _validate.choice("reduction", reduction, ("mean", "sum", "none"))
    catalog = _arguments.catalog(trie, item_filter)
    log_prob = token_logprobs(
        logits,
        labels,
        trie=catalog.trie,
        item_filter=catalog.item_filter,
        scope=scope,
        tau=tau,
        ignore_index=ignore_index,
    )
    if labels.dim() != 2:
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected [prompts, tokens]")
    counts = labels != ignore_index
    for row in (counts.int().diff(dim=1) > 0).any(1).nonzero()[:1, 0].tolist():
        raise ValueError(f"labels[{row}] has labels behind ignored ones: an item begins at the first column")
    search = _Search(next_logits, catalog, beam_width, tau, scope)
    with torch.no_grad():
        thresholds = search.thresholds(counts.sum(1).tolist(), labels.shape[1], log_prob)
    margins = (thresholds - log_prob.cumsum(1)) / reg_temperature
    losses = (reg_weight * logsigmoid(margins) - log_prob) * counts
    total, num_labels = losses.sum(), int(counts.sum())
    value = {"mean": total / max(1, num_labels), "sum": total, "none": losses}[reduction]
    _compute.refuse_loss(value)
    if not return_stats:
        return value
    with torch.no_grad():
        rounding = 64 * torch.finfo(thresholds.dtype).eps * thresholds.abs().clamp(min=1)
        lost = (thresholds - log_prob.cumsum(1) > rounding) & counts
        return value, BeamObjectiveStats(
            num_labels=num_labels,
            mean_log_prob=(log_prob.detach() * counts).sum() / max(1, num_labels),
            violation_rate=lost.sum() / max(1, num_labels),
            pruned_rate=lost.any(1).sum() / counts.any(1).sum().clamp(min=1),
            model_calls=search.calls.model_calls,
            rows=search.calls.rows,
        )


@dataclass
class _Calls:
    """What the search asked of the model."""

    model_calls: int = 0
    rows: int = 0


@dataclass(frozen=True)
class _Beam:
    """A prefix of items, or a whole one."""

    tokens: tuple[int, ...]
    state: int
    score: float
    finished: bool = False


@dataclass(frozen=True)
class _Search:
    """Token-synchronous beam search of several prompts."""

    next_logits: NextLogits
    catalog: FilteredTrie
    beam_width: int
    tau: float
    scope: ScopeName
    calls: _Calls = field(default_factory=_Calls)

    def thresholds(self, lengths: list[int], num_steps: int, like: torch.Tensor) -> torch.Tensor:
        """[prompts, steps], the B-th largest score of each step, up to each prompt's length; 0 beyond."""
        found = like.new_zeros(len(lengths), num_steps)
        beams = [[_Beam((), self.catalog.trie.root, 0.0)] for _ in lengths]
        for step in range(max(lengths, default=0)):
            running = [prompt for prompt, length in enumerate(lengths) if step < length]
            live = [(prompt, beam) for prompt in running for beam in beams[prompt] if not beam.finished]
            candidates = {prompt: [beam for beam in beams[prompt] if beam.finished] for prompt in running}
            for (prompt, beam), scores in zip(live, self._next_scores(live, like.device), strict=True):
                candidates[prompt] += self._extensions(beam, scores)
            for prompt in running:
                best = sorted(candidates[prompt], key=lambda beam: -beam.score)[: self.beam_width]
                beams[prompt] = best
                found[prompt, step] = best[-1].score
        return found

    def _next_scores(self, live: list[tuple[int, _Beam]], device: torch.device) -> list[torch.Tensor]:
        """Logits over the temperature after each live beam, in float64."""
        if not live:
            return []
        self.calls.model_calls += 1
        self.calls.rows += len(live)
        prompts = torch.tensor([prompt for prompt, _ in live], device=device)
        prefixes = torch.tensor([beam.tokens for _, beam in live], dtype=torch.int64, device=device)
        return list((self.next_logits(prompts, prefixes).double() / self.tau).cpu())

    def _extensions(self, beam: _Beam, scaled: torch.Tensor) -> list[_Beam]:
        trie = self.catalog.trie
        tokens = self.catalog.next_tokens_batch(np.array([beam.state]))[0].tolist()
        valid = scaled[tokens]
        over = valid if self.scope == "trie" else scaled
        normaliser = over.logsumexp(0)
        if not bool(normaliser.isfinite()):
            raise ValueError(f"next_logits gives no finite sum of probabilities behind the prefix {list(beam.tokens)}")
        scores = (beam.score + valid - normaliser).tolist()
        extended = []
        for token, score in zip(tokens, scores, strict=True):
            state = trie.advance(beam.state, token)
            extended.append(_Beam((*beam.tokens, token), state, score, trie.is_leaf(state)))
        return extended
