"""What a LM head multiplies hidden states with, PEFT's adapters included."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class HeadParts(NamedTuple):
    """``hidden @ weight.T + bias`` is what the head gives.

    Attributes
    ----------
    hidden
        [..., D + r]: hidden states, and behind them the output of the adapters' first matrices (r = 0 without LoRA).
    weight
        [V, D + r].
    bias
        [V] or None.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None


def head_parts(head: Any, hidden: torch.Tensor) -> HeadParts:
    """The factors of ``head(hidden)``, for hidden states [..., D].

    Follows ``modules_to_save``, ``trainable_token_indices``, LoRA and DoRA as they are switched on, off, merged or not.
    Adapters that are neither merged nor ``modules_to_save`` make a copy of the head.

    Raises
    ------
    TypeError
        For a head that is no ``torch.nn.Linear`` inside or is quantised, and for another kind of adapter.
    ValueError
        For a weight of another size or on another device than the hidden states.
    """
    if hasattr(head, "modules_to_save") and hasattr(head, "original_module"):
        names = [] if head.disable_adapters else _active(head)
        own = names[:1] and head.modules_to_save[names[0]] if names[:1] and names[0] in head.modules_to_save else None
        return head_parts(head.original_module if own is None else own, hidden)
    if hasattr(head, "token_adapter"):  # the wrapper, whose `weight` is a copy already
        return head_parts(head.token_adapter, hidden)
    if not hasattr(head, "base_layer"):
        if not (hasattr(head, "weight") and hasattr(head, "bias")):
            raise TypeError(f"the LM head is a {type(head).__name__}, expected a torch.nn.Linear")
        return HeadParts(hidden, plain_weight(head.weight, hidden), head.bias)
    if head.disable_adapters and head.merged:
        head.unmerge()  # as its own forward does
    plain = head_parts(head.base_layer, hidden)
    names = [] if head.disable_adapters or head.merged else _active(head)
    if hasattr(head, "trainable_tokens_delta"):
        # Theirs adds no bias where tokens are trained.
        return plain._replace(weight=head.get_merged_weights(names), bias=None) if names else plain
    if not hasattr(head, "lora_A"):
        raise TypeError(
            f"the LM head is a {type(head).__module__}.{type(head).__qualname__}, an adapter that is not LoRA: leave "
            "the head out of target_modules, or train it whole with modules_to_save"
        )
    names = [name for name in names if name in head.lora_A]
    return _lora(head, names, plain) if names else plain


def _lora(layer: Any, names: list[str], plain: HeadParts) -> HeadParts:
    hidden, weight, bias = plain
    columns, rows = [hidden], [weight]
    for name in names:
        first, second = layer.lora_A[name], layer.lora_B[name]
        column = first(layer.lora_dropout[name](hidden.to(first.weight.dtype))) * layer.scaling[name]
        columns.append(column.to(hidden.dtype))
        rows.append(second.weight.to(weight.dtype))
        if second.bias is not None:
            added = second.bias * layer.scaling[name]
            bias = added if bias is None else bias + added.to(bias.dtype)
    variants = {name: variant for name in names if (variant := _variant(layer, name)) is not None}
    if variants:
        (name, variant), *_ = variants.items()
        if variant != "DoRA" or len(names) > 1 or layer.lora_B[name].bias is not None:
            raise TypeError(
                f"the LM head has the adapters {names}, of which {name!r} is {variant}: only DoRA by itself"
            )
        if layer.training and getattr(layer.lora_dropout[name], "p", 0.0) > 0:
            raise TypeError(f"the LM head has the DoRA adapter {name!r} with lora_dropout above 0: set it to 0")
        with torch.no_grad():
            change = layer.lora_B[name].weight @ layer.lora_A[name].weight * layer.scaling[name]
            norm = torch.linalg.norm(weight + change.to(weight.dtype), dim=1).to(weight.dtype)
        magnitude = (layer.lora_magnitude_vector[name].weight / norm).to(weight.dtype)
        rows = [magnitude[:, None] * row for row in rows]
    return HeadParts(torch.cat(columns, -1), torch.cat(rows, 1), bias)


def _active(layer: Any) -> list[str]:
    return [layer.active_adapter] if isinstance(layer.active_adapter, str) else list(layer.active_adapter)


def _variant(layer: Any, name: str) -> str | None:
    """What an adapter is beyond plain LoRA, as PEFT calls it."""
    if getattr(layer, "use_dora", {}).get(name):
        return "DoRA"
    variant = getattr(layer, "lora_variant", {}).get(name)
    return None if variant is None else type(variant).__name__


def plain_weight(weight: Any, hidden: torch.Tensor) -> torch.Tensor:
    """The weight of a head [V, D], checked against hidden states [..., D].

    Weights of packed or scaled numbers have a class or a dtype of their own: what is no plain tensor is refused.
    """
    if not isinstance(weight, torch.Tensor):
        raise TypeError(
            f"lm_head is a {type(weight).__name__}, expected the module model.get_output_embeddings(), or its weight "
            "as a torch.Tensor"
        )
    if type(weight) not in (torch.Tensor, torch.nn.Parameter) or weight.dtype not in FLOATS:
        raise TypeError(
            f"lm_head is a {type(weight).__module__}.{type(weight).__qualname__} of {weight.dtype}: the rows of a "
            "quantised or sharded head are no vectors to multiply with; keep the head out of the quantisation, or pass "
            "its weight as a plain floating point tensor"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"lm_head has shape {tuple(weight.shape)}, expected [vocabulary, {hidden.shape[-1]}] as hidden has "
            f"shape {tuple(hidden.shape)}"
        )
    if weight.device != hidden.device:
        raise ValueError(f"lm_head is on {weight.device}, expected {hidden.device}")
    return weight
