"""The losses once more, dense, in float64 and one label after the other, from their definitions only.

Nothing here knows the trie: what is valid after a prefix is found by looking through the catalog's rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100


@dataclass(frozen=True)
class Label:
    """One label that counts: its place in the batch, its token, and the valid tokens (None in free text)."""

    row: int
    column: int
    token: int
    valid: list[int] | None


def valid_tokens(rows: list[list[int]], prefix: list[int]) -> list[int]:
    """Tokens that continue ``prefix`` in some row, ascending."""
    count = len(prefix)
    return sorted({row[count] for row in rows if len(row) > count and row[:count] == prefix})


def log_softmax(logits: torch.Tensor, over: list[int] | None) -> torch.Tensor:
    """Log-probabilities [V] over some tokens, -inf for the others."""
    if over is None:
        return logits - logits.logsumexp(0)
    masked = torch.full_like(logits, -torch.inf)
    masked[over] = logits[over]
    return masked - logits[over].logsumexp(0)


def scope_of(label: Label, scope: str) -> list[int] | None:
    return None if scope == "vocab" else label.valid


def log_prob(logits: torch.Tensor, label: Label, scope: str, tau: float) -> torch.Tensor:
    if label.valid is None:
        return log_softmax(logits[label.row, label.column], None)[label.token]
    return log_softmax(logits[label.row, label.column] / tau, scope_of(label, scope))[label.token]


def log_threshold(logits: torch.Tensor, label: Label, scope: str, tau: float, beam_width: int) -> torch.Tensor:
    """The B-th in sorted order, or the last."""
    everything = log_softmax(logits[label.row, label.column].detach() / tau, scope_of(label, scope))
    ordered = everything[everything > -torch.inf].sort(descending=True).values
    return ordered[min(beam_width, len(ordered)) - 1]


def is_forced(label: Label, scope: str) -> bool:
    return scope == "trie" and label.valid is not None and len(label.valid) == 1


def bear(
    logits: torch.Tensor,
    labels: list[Label],
    *,
    scope: str,
    form: str,
    sign: str,
    tau: float,
    beam_width: int,
    reg_weight: float,
    reg_temperature: float,
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Token losses and weights, one a label; forced labels have neither."""
    losses, weights = [], []
    for label in labels:
        if is_forced(label, scope):
            losses.append(logits.sum() * 0)
            weights.append(torch.zeros((), dtype=logits.dtype))
            continue
        chosen = log_prob(logits, label, scope, tau)
        one = torch.ones((), dtype=logits.dtype)
        if label.valid is None:
            losses.append(chosen * 0 if sign == "negative" else -chosen)
            weights.append(one)
            continue
        delta = log_threshold(logits, label, scope, tau, beam_width) - chosen
        regulariser = reg_weight * torch.nn.functional.logsigmoid(delta / reg_temperature)
        if form == "reweighted":
            weight = one + reg_weight * torch.sigmoid(-delta.detach() / reg_temperature)
            losses.append(-weight * chosen)
            weights.append(weight)
        else:
            losses.append(-regulariser if sign == "negative" else regulariser - chosen)
            weights.append(one)
    return losses, weights


def masked_softmax(
    logits: torch.Tensor,
    labels: list[Label],
    *,
    variant: str,
    end: int | None,
    end_in_scope: bool,
    gamma: float | None,
    focal_rows: str,
    tau: float,
) -> list[torch.Tensor]:
    """Token losses."""
    losses = []
    for label in labels:
        restricted = label.valid is not None
        if restricted and variant != "msl":
            restricted = label.token != end or end_in_scope
            if variant == "scope_mask_1":
                restricted = restricted and len(label.valid or []) > 1
        if restricted and len(label.valid or []) == 1:
            losses.append(logits.sum() * 0)
            continue
        chosen = log_prob(logits, label, "trie" if restricted else "vocab", tau)
        loss = -chosen
        if gamma is not None and (restricted or focal_rows == "all"):
            loss = loss * (1 - chosen.exp()) ** gamma
        losses.append(loss)
    return losses


def head_logits(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    scale: float | None,
) -> torch.Tensor:
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if scale is not None:
        logits = logits * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
