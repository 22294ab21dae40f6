# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
"""The logits of valid tokens straight from hidden states and the rows of the LM head, never [tokens, vocabulary].

Rows that share their valid tokens (those at one node of a trie) make a group: one dense product of its hidden states
with its rows of the head. Programs go through the tiles of all groups; small groups have tiles of their own shape.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from gentrie.kernels import _plain
from gentrie.kernels._launch import usable
from gentrie.kernels.trie_linear_forward import launch_trie_linear
from gentrie.kernels.trie_linear_head import head_gradient
from gentrie.kernels.trie_linear_hidden import launch_hidden_gradient

_SCHEMA = (
    "(Tensor hidden, Tensor weight, Tensor? bias, Tensor? rows, Tensor group_rows, Tensor group_tokens, "
    "Tensor tokens, int num_values, float? softcap, float scale) -> Tensor"
)


def _plain_groups(
    hidden: torch.Tensor,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, slice]]:
    """Rows of the hidden states, tokens and place of the logits of each group."""
    every = torch.arange(hidden.shape[0], device=hidden.device) if rows is None else rows
    row, token, value = 0, 0, 0
    for next_row, next_token in zip(group_rows[1:].tolist(), group_tokens[1:].tolist(), strict=True):
        size = (next_row - row) * (next_token - token)
        yield every[row:next_row], tokens[token:next_token].long(), slice(value, value + size)
        row, token, value = next_row, next_token, value + size


def _full_precision(tensor: torch.Tensor) -> AbstractContextManager[Any]:
    """Products in the dtype of their inputs, whatever autocast says outside."""
    return torch.autocast(tensor.device.type, enabled=False)


def _forward(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    num_values: int,
    softcap: float | None,
    scale: float,
) -> torch.Tensor:
    dtype = _plain.sum_dtype(hidden, weight)
    values = hidden.new_empty(num_values, dtype=dtype)
    if hidden.is_cuda and usable() and dtype == torch.float32:
        launch_trie_linear(hidden, weight, bias, rows, group_rows, group_tokens, tokens, softcap, scale, values)
        return values
    with _full_precision(hidden):
        for row, token, place in _plain_groups(hidden, rows, group_rows, group_tokens, tokens):
            logits = hidden[row].to(dtype) @ weight[token].to(dtype).T
            logits = scale * (logits if bias is None else logits + bias[token].to(dtype))
            values[place] = (logits if softcap is None else softcap * torch.tanh(logits / softcap)).flatten()
    return values


def _backward(
    gradient: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    rows: torch.Tensor | None,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    softcap: float | None,
    scale: float,
    of_hidden: bool,
    of_weight: bool,
    of_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dtype = values.dtype
    by_hidden = torch.zeros_like(hidden if of_hidden else hidden[:0], memory_format=torch.contiguous_format)
    by_bias = torch.zeros(weight.shape[0] if of_bias else 0, dtype=dtype, device=weight.device)
    if hidden.is_cuda and usable() and dtype == torch.float32:
        if of_hidden:
            launch_hidden_gradient(
                gradient, values, weight, rows, group_rows, group_tokens, tokens, softcap, scale, by_hidden
            )
        by_weight = weight.new_empty(0, weight.shape[1])
        if of_weight or of_bias:
            by_weight = head_gradient(
                gradient, values, hidden, weight, rows, group_rows, group_tokens, tokens, softcap, scale, by_bias
            )
    else:
        by_weight = torch.zeros_like(weight if of_weight else weight[:0], dtype=dtype)
        with _full_precision(hidden):
            for row, token, place in _plain_groups(hidden, rows, group_rows, group_tokens, tokens):
                slope = gradient[place] * scale
                if softcap is not None:
                    slope = slope * (1 - (values[place] / softcap).square())
                slope = slope.reshape(len(row), len(token))
                if of_hidden:
                    by_hidden[row] = (slope @ weight[token].to(dtype)).to(hidden.dtype)
                if of_weight:
                    by_weight.index_add_(0, token, slope.T @ hidden[row].to(dtype))
                if of_bias:
                    by_bias.index_add_(0, token, slope.sum(0))
    return by_hidden, by_weight.to(weight.dtype), by_bias if bias is None else by_bias.to(bias.dtype)


trie_linear_op = torch.library.custom_op("gentrie::trie_linear", _forward, mutates_args=(), schema=_SCHEMA)
_backward_op = torch.library.custom_op(
    "gentrie::trie_linear_backward",
    _backward,
    mutates_args=(),
    schema=(
        "(Tensor gradient, Tensor values, Tensor hidden, Tensor weight, Tensor? bias, Tensor? rows, "
        "Tensor group_rows, Tensor group_tokens, Tensor tokens, float? softcap, float scale, "
        "bool of_hidden, bool of_weight, bool of_bias) -> (Tensor, Tensor, Tensor)"
    ),
)


@trie_linear_op.register_fake
def _(hidden: torch.Tensor, weight: torch.Tensor, *arguments: Any) -> torch.Tensor:
    return hidden.new_empty(arguments[5], dtype=_plain.sum_dtype(hidden, weight))


@_backward_op.register_fake
def _(
    gradient: torch.Tensor,
    values: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    of_hidden, of_weight, of_bias = arguments[-3:]
    return (
        hidden.new_empty(hidden.shape if of_hidden else (0, hidden.shape[1])),
        weight.new_empty(weight.shape if of_weight else (0, weight.shape[1])),
        weight.new_empty(weight.shape[0] if of_bias else 0, dtype=values.dtype if bias is None else bias.dtype),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, _, ctx.softcap, ctx.scale = inputs
    ctx.save_for_backward(output, *tensors)


def _differentiate(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    values, *tensors = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    found = _backward_op(grad.contiguous(), values, *tensors, ctx.softcap, ctx.scale, *needs)
    return *(gradient if needed else None for gradient, needed in zip(found, needs, strict=True)), *(None,) * 7


trie_linear_op.register_autograd(_differentiate, setup_context=_setup)


def trie_linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    group_rows: torch.Tensor,
    group_tokens: torch.Tensor,
    tokens: torch.Tensor,
    num_values: int,
    *,
    bias: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """``cap(scale * (hidden @ weight.T + bias))`` of each row's valid tokens, ``cap(x) = softcap * tanh(x / softcap)``.

    Differentiable by ``hidden``, ``weight`` and ``bias``; each gradient is computed only where it is required. Products
    are summed in float32. The result and the gradient of ``hidden`` have equal bits in repeated calls; those of
    ``weight`` and ``bias`` are summed on CUDA by atomics where a token is valid in several groups, and may differ in
    the last bits. On CUDA nothing waits for the device.

    Parameters
    ----------
    hidden
        [R, D]; float16, bfloat16, float32 or float64, as ``weight``, whose dtype may be another.
    weight
        [V, D], the LM head.
    group_rows
        int64 [G + 1]: the entries ``group_rows[g]`` to ``group_rows[g + 1]`` of ``rows`` make group g.
    group_tokens, tokens
        int64 [G + 1] and integers [T]: ``tokens[group_tokens[g]:group_tokens[g + 1]]`` are valid in group g, each once.
        With one group a row this is any CSR matrix of valid tokens; rows of equal tokens are faster together.
    num_values
        E, the sum over groups of rows times tokens.
    bias
        [V] or None.
    rows
        int64 [group_rows[G]], rows of ``hidden``, none twice; default all in order.
    softcap, scale
        As the head has them.

    Returns
    -------
    torch.Tensor
        [E], row after row, the tokens of a row in the order of its group; float64 if hidden or weight is, else float32.

    Raises
    ------
    ValueError
        For shapes that do not fit.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)} and weight {tuple(weight.shape)}: expected [rows, size] and "
            "[vocabulary, size]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}, expected [{weight.shape[0]}]")
    if group_rows.dim() != 1 or group_rows.shape[0] < 1 or group_rows.shape != group_tokens.shape:
        raise ValueError(
            f"group_rows has shape {tuple(group_rows.shape)} and group_tokens {tuple(group_tokens.shape)}: expected "
            "[groups + 1] for both"
        )
    values: torch.Tensor = trie_linear_op(
        hidden, weight, bias, rows, group_rows, group_tokens, tokens, num_values, softcap, scale
    )
    return values
