"""Every check of what the losses are given, for all of them."""

from __future__ import annotations

import math
from typing import Any

import torch

from gentrie import _validate
from gentrie.item_filter import filter_from
from gentrie.training._adapters import FLOATS, head_parts, plain_weight
from gentrie.training._head import Head
from gentrie.training._hidden import HiddenSource
from gentrie.training._logits import LogitsSource
from gentrie.training._rows import FilteredTrie
from gentrie.training._scores import Tau
from gentrie.trie import TokenTrie

Normalizer = str | float | torch.Tensor


def logits_source(
    logits: object, labels: object, trie: TokenTrie | None, inplace: bool = False
) -> tuple[LogitsSource, torch.Tensor]:
    """Logits [..., V] as rows, and labels [...] as a tensor."""
    values = _floats("logits", logits)
    tokens = _labels(labels, "logits", values)
    _check_width("logits", values.shape[-1], trie)
    return LogitsSource(values.reshape(-1, values.shape[-1]), inplace), tokens


def hidden_source(
    hidden: object,
    lm_head: object,
    labels: object,
    trie: TokenTrie | None,
    bias: object,
    softcap: float | None,
    scale: float | None,
) -> tuple[HiddenSource, torch.Tensor]:
    """Hidden states [..., D] as rows with their head (module or weight), and labels [...] as a tensor."""
    states = _floats("hidden", hidden)
    tokens = _labels(labels, "hidden", states)
    if isinstance(lm_head, torch.nn.Module):
        if bias is not None:
            raise ValueError("lm_head_bias is given beside a module as lm_head, which has a bias of its own")
        states, matrix, bias = head_parts(lm_head, states)
    else:
        matrix = plain_weight(lm_head, states)
    _check_width("lm_head", matrix.shape[0], trie)
    vector = None
    if bias is not None:
        vector = _floats("lm_head_bias", bias)
        if vector.shape != matrix.shape[:1]:
            raise ValueError(f"lm_head_bias has shape {tuple(vector.shape)}, expected [{matrix.shape[0]}]")
        _check_device("lm_head_bias", vector, states)
    cap = None if softcap is None else positive("logit_softcap", softcap)
    factor = 1.0 if scale is None else positive("logit_scale", scale)
    return HiddenSource(states.reshape(-1, states.shape[-1]), Head(matrix, vector, cap, factor)), tokens


def positive(name: str, value: object) -> float:
    """A finite number above zero as a float."""
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name}={number} must be above 0")
    return number


def finite(name: str, value: object) -> float:
    """A finite number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value} is not finite")
    return float(value)


def temperature(value: object, device: torch.device, dtype: torch.dtype) -> Tau:
    """A number above zero, or a tensor of no dimensions that is taken as constant."""
    if not isinstance(value, torch.Tensor):
        return positive("tau", value)
    return _scalar("tau", value, device, dtype)


def normalizer(value: object, choices: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> Normalizer:
    """One of ``choices``, a number above zero, or a tensor of no dimensions."""
    if isinstance(value, str):
        name: str = _validate.choice("normalizer", value, choices)
        return name
    if isinstance(value, torch.Tensor):
        return _scalar("normalizer", value, device, dtype)
    return positive("normalizer", value)


def weights(name: str, value: object, shape: tuple[int, ...], device: torch.device) -> torch.Tensor | None:
    """Weights of that shape on that device, or None."""
    if value is None:
        return None
    given = _floats(name, value)
    if tuple(given.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(given.shape)}, expected {shape}")
    if given.device != device:
        raise ValueError(f"{name} is on {given.device}, the labels are scored on {device}")
    return given


def trie(value: object) -> TokenTrie:
    """A trie."""
    return _validate.trie("trie", value)


def catalog(trie_given: object, item_filter: Any) -> FilteredTrie:
    """A trie, less what a filter closes."""
    checked = trie(trie_given)
    return FilteredTrie(checked, None if item_filter is None else filter_from(checked, item_filter))


def _scalar(name: str, value: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    if value.dim() != 0:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected a tensor of no dimensions")
    if value.requires_grad:
        raise ValueError(f"{name} requires a gradient, which none of the losses gives: detach it")
    if value.device.type == "cpu":  # elsewhere a look would wait for the device
        positive(name, value.item())
    return value.to(device=device, dtype=dtype)


def _floats(name: str, value: object) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}, expected a torch.Tensor")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name} has dtype {value.dtype}, expected float16, bfloat16, float32 or float64")
    return value


def _labels(labels: object, name: str, values: torch.Tensor) -> torch.Tensor:
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"labels is a {type(labels).__name__}, expected a torch.Tensor")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"labels has dtype {labels.dtype}, expected integers")
    if labels.dim() == 0 or values.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} and {name} {tuple(values.shape)}: expected [...] and [..., width]"
        )
    if labels.device.type != "cpu":  # from where they can be looked up without waiting
        _check_device("labels", labels, values)
    return labels


def _check_device(name: str, tensor: torch.Tensor, other: torch.Tensor) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{name} is on {tensor.device}, expected {other.device}")


def _check_width(name: str, width: int, trie: TokenTrie | None) -> None:
    if trie is not None and width < _validate.trie("trie", trie).vocab_size:
        raise ValueError(f"{name} is {width} tokens wide, fewer than the trie's vocab_size={trie.vocab_size}")
    if width == 0:
        raise ValueError(f"{name} is 0 tokens wide")
