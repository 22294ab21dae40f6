"""What the operations of the losses mean: one row after the other, from their definitions, in the dtype they are given.

Tests compare every kernel and every plain torch form with these in float64.
"""

from __future__ import annotations

import torch


def valid_columns(
    width: int, row: int, indptr: torch.Tensor | None, tokens: torch.Tensor | None, node: torch.Tensor | None
) -> torch.Tensor:
    """int64, the columns of a row that count: ``tokens[indptr[k]:indptr[k + 1]]`` for ``k = node[row]``.

    ``node`` defaults to the row number; below 0, and without ``indptr``, all columns count.
    """
    if indptr is None or tokens is None:
        return torch.arange(width)
    at = row if node is None else int(node[row])
    return torch.arange(width) if at < 0 else tokens[int(indptr[at]) : int(indptr[at + 1])].long()


def topb_threshold(
    logits: torch.Tensor,
    beam_width: int,
    indptr: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    node: torch.Tensor | None = None,
    tau: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The ``beam_width``-th in descending order (or the last), and the logsumexp at temperature ``tau``; [N] each.

    Rows with node -2 are at temperature 1; a row of no tokens has -inf twice.
    """
    thresholds, totals = [], []
    for row in range(logits.shape[0]):
        values = logits[row, valid_columns(logits.shape[1], row, indptr, tokens, node)]
        free = node is not None and int(node[row]) == -2
        ordered = values.sort(descending=True).values
        thresholds.append(ordered[min(beam_width, len(ordered)) - 1] if len(ordered) else values.new_tensor(-torch.inf))
        totals.append((values if free else values / tau).logsumexp(0))
    if not totals:
        return logits.new_zeros(0), logits.new_zeros(0)
    return torch.stack(thresholds), torch.stack(totals)


def bear_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    beam_width: int,
    reg_weight: float,
    reg_temperature: float,
    form: str,
    sign: str,
    tau: float,
    indptr: torch.Tensor | None = None,
    tokens: torch.Tensor | None = None,
    node: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Differentiable losses, one a row; 0 where only one token is valid, which is no choice."""
    losses = []
    for row, label in enumerate(labels.tolist()):
        free = node is not None and int(node[row]) == -2
        columns = valid_columns(logits.shape[1], row, indptr, tokens, node)
        if indptr is not None and len(columns) < 2 and (node is None or int(node[row]) >= 0):
            losses.append(logits[row].sum() * 0)
            continue
        log_probs = (logits[row, columns] if free else logits[row, columns] / tau).log_softmax(0)
        chosen = log_probs[columns == label].squeeze(0)
        if free:
            losses.append(chosen * 0 if sign == "negative" else -chosen)
            continue
        ordered = log_probs.detach().sort(descending=True).values
        margin = (ordered[min(beam_width, len(ordered)) - 1] - chosen) / reg_temperature
        if form == "reweighted":
            losses.append(-(1 + reg_weight * torch.sigmoid(-margin.detach())) * chosen)
        else:
            regulariser = reg_weight * torch.nn.functional.logsigmoid(margin)
            losses.append(-regulariser if sign == "negative" else regulariser - chosen)
    return losses


def trie_linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    softcap: float | None,
    scale: float,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
) -> torch.Tensor:
    """The logits of each row's tokens, row after row.

    Rows ``group_rows[g]`` to ``group_rows[g + 1]`` have the tokens ``tokens[group_tokens[g]:group_tokens[g + 1]]``.
    """
    values = [hidden.new_zeros(0)]
    for group in range(len(group_rows) - 1):
        columns = tokens[int(group_tokens[group]) : int(group_tokens[group + 1])].long()
        for row in range(int(group_rows[group]), int(group_rows[group + 1])):
            logits = weight[columns] @ hidden[row]
            logits = scale * (logits if bias is None else logits + bias[columns])
            values.append(logits if softcap is None else softcap * torch.tanh(logits / softcap))
    return torch.cat(values)
