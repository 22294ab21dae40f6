"""Rows of a packed sequence as rectangles, prompt by prompt, so that their attention is a few dense products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gentrie.model.tree_slots import Int64Array

_NARROW = 8
"""Up to so many rows a prompt, scoring rows for nothing is cheaper than copying the keys of the other prompts."""


@dataclass(frozen=True)
class Block:
    """Rows of some prompts that were encoded together.

    Attributes
    ----------
    batch
        Number of the call that encoded the prompts.
    prompts
        int64 [P], which of them; None for all, in order.
    row
        int64 [P, n], rows of the packed sequence, each prompt's in order, filled up with any others.
    flat, target
        int64 [rows]: places in ``row``, flattened, that are no filling, and the rows that stand there.
    lengths
        int64 [P], tokens of each prompt.
    positions
        int64 [P, n], the place of each row in its own sequence.
    """

    batch: int
    prompts: torch.Tensor | None
    row: torch.Tensor
    flat: torch.Tensor
    target: torch.Tensor
    lengths: torch.Tensor
    positions: torch.Tensor


def prompt_block(batch: int, lengths: Int64Array, device: torch.device) -> Block:
    """All tokens of prompts [P] that are packed one after the other."""
    starts = np.cumsum(lengths) - lengths
    column = np.arange(lengths.max())
    place = np.minimum(column, lengths[:, None] - 1)
    return _block(batch, None, starts[:, None] + place, column < lengths[:, None], lengths, place, device)


def tree_blocks(
    prompts: Int64Array,
    positions: Int64Array,
    batches: list[tuple[int, int]],
    prompt_lengths: Int64Array,
    device: torch.device,
) -> list[Block]:
    """Rows [N] by batch and prompt; prompts with like numbers of rows together, so that half of a wide block is used.

    Parameters
    ----------
    prompts, positions
        int64 [N]: the prompt of each row, and its place in its own sequence.
    batches
        First prompt and number of prompts of each call that encoded some.
    prompt_lengths
        int64 [prompts].
    """
    blocks = []
    for batch, (first, size) in enumerate(batches):
        mine = np.flatnonzero((prompts >= first) & (prompts < first + size))
        counts = np.bincount(prompts[mine] - first, minlength=size)
        starts = np.cumsum(counts) - counts
        order = mine[np.argsort(prompts[mine], kind="stable")]
        by_count = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
        while by_count.size:
            width = int(counts[by_count[0]])
            alike = by_count.size if width <= _NARROW else int(np.count_nonzero(2 * counts[by_count] >= width))
            chosen, by_count = np.sort(by_count[:alike]), by_count[alike:]
            if width <= _NARROW and 2 * chosen.size >= size:
                chosen = np.arange(size)
            column = np.arange(width)
            row = order[np.minimum(starts[chosen, None] + column, order.size - 1)]
            real = column < counts[chosen, None]
            which = None if chosen.size == size else chosen
            lengths = prompt_lengths[first + chosen]
            blocks.append(_block(batch, which, row, real, lengths, positions[row], device))
    return blocks


def _block(
    batch: int,
    prompts: Int64Array | None,
    row: Int64Array,
    real: npt.NDArray[np.bool_],
    lengths: Int64Array,
    positions: Int64Array,
    device: torch.device,
) -> Block:
    flat = np.flatnonzero(real)
    return Block(
        batch=batch,
        prompts=None if prompts is None else on_device(prompts, device),
        row=on_device(row, device),
        flat=on_device(flat, device),
        target=on_device(row.ravel()[flat], device),
        lengths=on_device(lengths, device),
        positions=on_device(positions, device),
    )


def on_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array as a tensor there, copied without waiting for the device."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
