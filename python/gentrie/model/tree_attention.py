"""Attention over [prompt | ancestors in the tree | itself], for rows of many prompts in one packed sequence.

Keys and values of a prompt are stored once, in a rectangle [prompts, key heads, longest, head size]; those of decoded
tokens in one pool [key heads, slots, head size]. Rows are attended in blocks of prompts with like numbers of rows, so
that a block is a dense product and never more than twice its rows. The model itself sees no padding at all.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache

from gentrie.model.tree_blocks import Block

NAME = "gentrie_tree"
"""How the attention function is called in ``transformers``' registry."""


class UnsupportedModelError(ValueError):
    """The model cannot be served by this way of running it; the message says why."""


@dataclass
class Step:
    """One call of the model: what its rows may attend to.

    Attributes
    ----------
    slots
        int64 [N], pool rows to store the new keys and values in; None while prompts are encoded.
    ancestors
        int64 [N, L], pool rows of the tokens before each row, itself first; any pool row where ``above`` is
        False.
    above
        bool [N, L].
    blocks
        All rows, by rectangle.
    """

    slots: torch.Tensor | None
    ancestors: torch.Tensor
    above: torch.Tensor
    blocks: list[Block]
    masks: dict[tuple[int, int | None], torch.Tensor] = field(default_factory=dict)
    stored: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    attended: set[int] = field(default_factory=set)


@dataclass
class _Layer:
    """Keys and values of one layer: rectangles of prompts, and the pool [key heads, slots, head size]."""

    prompts: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    pool: tuple[torch.Tensor, torch.Tensor] | None = None


class TreeCache(Cache):
    """The keys and values of all layers. To the model it looks empty: what is stored is read by the attention."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.stores: dict[int, _Layer] = {}
        self.capacity = 0
        self.step: Step | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store keys and values [1, key heads, N, head size] of the rows and return them as they are."""
        step = self.step
        if step is None:
            raise RuntimeError("the cache of a TreeDecoder works only inside its own calls")
        layer = self.stores.setdefault(layer_idx, _Layer())
        step.stored[layer_idx] = key_states, value_states
        if step.slots is None:
            batch, row = step.blocks[0].batch, step.blocks[0].row
            pair = tuple(x[0].transpose(0, 1)[row].transpose(1, 2).contiguous() for x in (key_states, value_states))
            if batch == len(layer.prompts):
                layer.prompts.append(pair)  # type: ignore[arg-type]
            else:  # prompts in the place of others, at the same addresses
                for old, new in zip(layer.prompts[batch], pair, strict=True):
                    old.copy_(new)
        else:
            layer.pool = tuple(  # type: ignore[assignment]
                _stored(old, new, step.slots, self.capacity)
                for old, new in zip(layer.pool or (None, None), (key_states[0], value_states[0]), strict=True)
            )
        return key_states, value_states

    def forget_prompts(self, count: int) -> None:
        """Drop what a call that failed has stored: all but the first ``count`` rectangles."""
        for layer in self.stores.values():
            del layer.prompts[count:]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are always given to the model."""
        return 0

    def get_mask_sizes(self, query_length: Any, layer_idx: int) -> tuple[int, int]:
        """Only the new rows: no mask is ever made."""
        return (query_length if isinstance(query_length, int) else query_length.shape[0]), 0

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of the prompts' keys and values, and of the pool."""
        prompts = sum(x.nbytes for layer in self.stores.values() for pair in layer.prompts for x in pair)
        pool = sum(x.nbytes for layer in self.stores.values() for x in layer.pool or ())
        return prompts, pool


def _stored(old: torch.Tensor | None, new: torch.Tensor, slots: torch.Tensor, capacity: int) -> torch.Tensor:
    if old is None or old.shape[1] < capacity:
        grown = new.new_zeros(new.shape[0], capacity, new.shape[2])
        if old is not None:
            grown[:, : old.shape[1]] = old
        old = grown
    return old.index_copy_(1, slots, new)


_active = threading.local()


@contextmanager
def tree_attention(cache: TreeCache, step: Step) -> Iterator[None]:
    """Let models whose attention is this module's serve a step, in this thread."""
    cache.step, outer = step, getattr(_active, "cache", None)
    _active.cache = cache
    try:
        yield
    finally:
        cache.step, _active.cache = None, outer


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The registered function: ``query`` [1, heads, N, head size] to [1, N, heads, value size]."""
    cache: TreeCache | None = getattr(_active, "cache", None)
    if cache is None or cache.step is None:
        raise RuntimeError(f"the attention {NAME!r} works only inside a TreeDecoder, in the thread that called it")
    step = cache.step
    layer_idx: int = module.layer_idx  # type: ignore[assignment]
    _refuse(module, step, layer_idx, query.shape[2], attention_mask, sliding_window, others)
    _refuse_others(module, step, layer_idx, key, value)
    step.attended.add(layer_idx)
    layer = cache.stores[layer_idx]
    rows = query[0].transpose(0, 1)
    num_rows, num_heads, size = rows.shape
    num_key_heads = key.shape[1]
    rows = rows.reshape(num_rows, num_key_heads, num_heads // num_key_heads, size)
    scale = size**-0.5 if scaling is None else scaling
    plain = softcap is None and s_aux is None
    out = rows.new_empty(num_rows, num_heads, value.shape[-1])
    for block in step.blocks:
        if step.slots is None and plain and _no_longer(block, sliding_window):
            attended = _causal(rows[block.row], layer.prompts[block.batch], scale)
        else:
            attended = _explicit(rows, layer, step, block, scale, softcap, sliding_window, s_aux)
        out[block.target] = attended.flatten(0, 1)[block.flat]
    return out[None], None


def _refuse(
    module: torch.nn.Module,
    step: Step,
    layer_idx: int,
    num_rows: int,
    attention_mask: torch.Tensor | None,
    sliding_window: int | None,
    others: dict[str, Any],
) -> None:
    name = type(module).__name__
    if layer_idx not in step.stored:
        raise UnsupportedModelError(f"{name} of layer {layer_idx} attends to keys of another layer")
    if attention_mask is not None:
        raise UnsupportedModelError(f"{name} makes its own attention mask")
    if others.get("position_bias") is not None:
        raise UnsupportedModelError(f"{name} adds a bias to its attention scores")
    bidirectional = others.get("is_causal") is False and num_rows > 1  # said of one row, it means nothing
    if bidirectional or getattr(module, "is_causal", True) is False:
        raise UnsupportedModelError(f"{name} is not causal")
    config: Any = getattr(module, "config", None)
    layer_types = getattr(config, "layer_types", None)
    kind = layer_types[layer_idx] if layer_types is not None and layer_idx < len(layer_types) else None
    if kind not in (None, "full_attention", "sliding_attention"):
        raise UnsupportedModelError(f"{name} of layer {layer_idx} is a layer of type {kind!r}")
    if kind == "sliding_attention" and sliding_window is None:
        raise UnsupportedModelError(f"{name} of layer {layer_idx} does not say how wide its window is")


def _refuse_others(module: torch.nn.Module, step: Step, layer_idx: int, *attended: torch.Tensor) -> None:
    """Raise where the layer attends to something else than it stores, such as keys that it makes from stored latents.

    Tensors that were converted on the way are compared once, while prompts are encoded, as that waits for the device.
    """
    for stored, own in zip(step.stored[layer_idx], attended, strict=True):
        if own is stored:
            continue
        if own.shape != stored.shape or (step.slots is None and not torch.equal(own, stored.to(own.dtype))):
            raise UnsupportedModelError(
                f"{type(module).__name__} of layer {layer_idx} attends to other keys and values than it stores"
            )


def _no_longer(block: Block, sliding_window: int | None) -> bool:
    return sliding_window is None or block.row.shape[1] <= sliding_window


def _causal(query: torch.Tensor, prompts: tuple[torch.Tensor, torch.Tensor], scale: float) -> torch.Tensor:
    """Prompts among themselves: [P, T, key heads, group, head size] to [P, T, heads, value size]."""
    group = query.shape[3]
    keys, values = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in prompts)
    heads = query.flatten(2, 3).transpose(1, 2)
    attended = torch.nn.functional.scaled_dot_product_attention(heads, keys, values, is_causal=True, scale=scale)
    return attended.transpose(1, 2)


def _explicit(
    rows: torch.Tensor,
    layer: _Layer,
    step: Step,
    block: Block,
    scale: float,
    softcap: float | None,
    sliding_window: int | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """[P, n, heads, value size] of a block, by the scores themselves."""
    keys, values = layer.prompts[block.batch]
    if block.prompts is not None:
        keys, values = keys[block.prompts], values[block.prompts]
    num_prompts, num_rows = block.row.shape
    num_key_heads, longest = keys.shape[1:3]
    group = rows.shape[2]
    flat_row = block.row.flatten()
    queries = rows[flat_row] * scale  # [P * n, key heads, group, head size]
    dense = queries.view(num_prompts, num_rows, num_key_heads, group, -1).permute(0, 2, 3, 1, 4)
    dense = dense.reshape(num_prompts, num_key_heads, group * num_rows, -1)
    scores = (dense @ keys.transpose(-1, -2)).view(num_prompts, num_key_heads, group, num_rows, longest)
    tree_values = None
    if layer.pool is not None and step.slots is not None:
        above = step.ancestors[flat_row]
        tree_keys, tree_values = (  # [key heads, P * n, L, size]
            pool.index_select(1, above.flatten()).view(num_key_heads, *above.shape, -1) for pool in layer.pool
        )
        tree = queries.transpose(0, 1) @ tree_keys.transpose(-1, -2)
        tree = tree.view(num_key_heads, num_prompts, num_rows, group, -1).permute(1, 0, 3, 2, 4)
        scores = torch.cat([scores, tree], dim=-1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if softcap is not None:
        scores = (scores / softcap).tanh_().mul_(softcap)
    scores = scores.masked_fill_(~_visible(step, block, longest, sliding_window)[:, None, None], -torch.inf)
    if sinks is not None:
        sink = sinks.to(scores.dtype).view(1, num_key_heads, group, 1, 1).expand(num_prompts, -1, -1, num_rows, 1)
        weights = torch.cat([scores, sink], dim=-1).softmax(-1)[..., :-1]
    else:
        weights = scores.softmax(-1)
    weights = weights.to(values.dtype)
    out = weights[..., :longest].reshape(num_prompts, num_key_heads, group * num_rows, longest) @ values
    out = out.view(num_prompts, num_key_heads, group, num_rows, -1).permute(0, 3, 1, 2, 4)
    if tree_values is not None:
        tree = weights[..., longest:].permute(1, 0, 3, 2, 4).flatten(1, 2) @ tree_values
        out = out + tree.view(num_key_heads, num_prompts, num_rows, group, -1).permute(1, 2, 0, 3, 4)
    return out.flatten(2, 3)


def _visible(step: Step, block: Block, longest: int, sliding_window: int | None) -> torch.Tensor:
    """Bool [P, n, longest + L]: which keys a row may attend to. The same for all layers of one window."""
    key = (id(block), sliding_window)
    if key not in step.masks:
        positions = block.positions[:, :, None]
        place = torch.arange(longest, device=positions.device)
        seen = (place < block.lengths[:, None, None]) & (place <= positions)
        if sliding_window is not None:
            seen &= positions - place < sliding_window
        if step.slots is not None:
            above = step.above[block.row]
            if sliding_window is not None:
                above = above & (torch.arange(above.shape[-1], device=above.device) < sliding_window)
            seen = torch.cat([seen, above], dim=-1)
        step.masks[key] = seen
    return step.masks[key]


AttentionInterface.register(NAME, _attend)
