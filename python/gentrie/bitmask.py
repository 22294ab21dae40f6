"""Token bitmasks in XGrammar's layout: int32 [batch, ceil(vocab_size / 32)], 1 = allowed, token t in bit t % 32."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie._optional import require

if TYPE_CHECKING:
    import torch


def get_bitmask_shape(batch_size: int, vocab_size: int) -> tuple[int, int]:
    """``(batch_size, ceil(vocab_size / 32))``."""
    batch_size = _validate.integer("batch_size", batch_size, 0, 2**31 - 1)
    return batch_size, (_validate.integer("vocab_size", vocab_size, 1, 2**31 - 1) + 31) // 32


def allocate_token_bitmask(batch_size: int, vocab_size: int) -> torch.Tensor:
    """A bitmask on the CPU that allows everything. Without torch,
    ``np.full(get_bitmask_shape(batch_size, vocab_size), -1, dtype=np.int32)`` serves as well."""
    library: Any = require("torch", extra="hf")
    mask: torch.Tensor = library.full(get_bitmask_shape(batch_size, vocab_size), -1, dtype=library.int32)
    return mask


def reset_token_bitmask(bitmask: torch.Tensor | npt.NDArray[np.int32]) -> None:
    """Allow everything again."""
    if isinstance(bitmask, np.ndarray):
        bitmask.fill(-1)
    else:
        bitmask.fill_(-1)


def apply_token_bitmask_inplace(
    logits: torch.Tensor | npt.NDArray[Any],
    bitmask: torch.Tensor | npt.NDArray[np.int32],
    *,
    vocab_size: int | None = None,
    indices: Sequence[int] | npt.NDArray[Any] | None = None,
) -> None:
    """Set forbidden logits to -inf.

    Equal to ``logits[i, t] = -inf`` for every row i in ``indices`` and every t that row i of the bitmask forbids or
    does not cover. Autograd sees the change: gradients are those of that loop, and what was saved for a backward pass
    before is known to have changed.

    Parameters
    ----------
    logits
        Floating point [batch, vocabulary] or [vocabulary], a tensor or a numpy array.
    bitmask
        int32 [batch, words] or [words]: of the same kind, on the same device.
    vocab_size
        Tokens from here on are forbidden; default: the bitmask's width.
    indices
        Rows to treat; default: all.

    Raises
    ------
    ValueError, TypeError
        For other dtypes, shapes, devices, logits whose rows share memory, or rows outside both.
    """
    if isinstance(logits, np.ndarray) and isinstance(bitmask, np.ndarray):
        _apply_to_array(logits, bitmask, vocab_size, indices)
    else:
        _apply_to_tensor(logits, bitmask, vocab_size, indices)


def _apply_to_tensor(logits: Any, bitmask: Any, vocab_size: int | None, indices: object) -> None:
    library: Any = sys.modules.get("torch") or require("torch", extra="hf")
    for name, tensor in (("logits", logits), ("bitmask", bitmask)):
        if not _validate.is_tensor(tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor, or numpy arrays both")
        if tensor.dim() not in (1, 2):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected one or two dimensions")
    if not logits.is_floating_point():
        raise TypeError(f"logits has dtype {logits.dtype}, expected a floating point type")
    if bitmask.dtype != library.int32:
        raise TypeError(f"bitmask has dtype {bitmask.dtype}, expected torch.int32")
    if logits.device != bitmask.device:
        raise ValueError(f"logits is on {logits.device}, bitmask on {bitmask.device}, expected one device")
    rows, mask = (tensor if tensor.dim() == 2 else tensor[None] for tensor in (logits, bitmask))
    if indices is None and rows.shape[0] != mask.shape[0]:
        raise ValueError(f"logits has {rows.shape[0]} rows, bitmask has {mask.shape[0]}; give indices")
    limit = mask.shape[1] * 32 if vocab_size is None else _validate.integer("vocab_size", vocab_size, 0, 2**31 - 1)
    chosen = _validate.row_indices("indices", indices, None, min(rows.shape[0], mask.shape[0]))
    width = rows.shape[1]
    if rows.shape[0] > 1 and width > 0 and (rows.stride(0) == 0 or (rows.stride(1) == 1 and rows.stride(0) < width)):
        raise ValueError(f"logits has strides {logits.stride()}: its rows share memory")
    is_recorded = logits.requires_grad and library.is_grad_enabled()
    if is_recorded or logits.device.type != "cpu" or logits.is_neg() or (width > 1 and rows.stride(1) != 1):
        from gentrie.kernels import reference

        reference.apply_token_bitmask(rows, mask, limit, library.from_numpy(chosen).to(logits.device))
        return
    mask = mask if mask.shape[1] < 2 or mask.stride(1) == 1 else mask.contiguous()
    _core.apply_bitmask(
        _validate.address("logits", rows),
        width,
        rows.stride(0),
        rows.element_size(),
        minus_infinity(rows.dtype),
        _validate.address("bitmask", mask),
        mask.shape[1],
        mask.stride(0),
        limit,
        chosen,
    )
    if not logits.is_inference():
        library.autograd.graph.increment_version(logits)


def _apply_to_array(
    logits: npt.NDArray[Any], bitmask: npt.NDArray[Any], vocab_size: int | None, indices: object
) -> None:
    for name, array in (("logits", logits), ("bitmask", bitmask)):
        if array.ndim not in (1, 2):
            raise ValueError(f"{name} has shape {array.shape}, expected one or two dimensions")
    pattern = _PATTERNS.get(logits.dtype.name)
    if pattern is None or not logits.dtype.isnative:
        raise TypeError(f"logits has dtype {logits.dtype}, expected one of {', '.join(_PATTERNS)}")
    if bitmask.dtype != np.int32:
        raise TypeError(f"bitmask has dtype {bitmask.dtype}, expected int32")
    rows, mask = np.atleast_2d(logits), np.ascontiguousarray(np.atleast_2d(bitmask))
    if indices is None and len(rows) != len(mask):
        raise ValueError(f"logits has {len(rows)} rows, bitmask has {len(mask)}; give indices")
    if not logits.flags.behaved:
        raise ValueError("logits is read-only or not aligned")
    if not _validate.has_rows_apart(rows):
        raise ValueError(f"logits has strides {logits.strides}, expected contiguous rows that share no memory")
    limit = mask.shape[1] * 32 if vocab_size is None else _validate.integer("vocab_size", vocab_size, 0, 2**31 - 1)
    chosen = _validate.row_indices("indices", indices, None, min(len(rows), len(mask)))
    step = rows.itemsize
    _core.apply_bitmask(
        rows.ctypes.data,
        rows.shape[1],
        rows.strides[0] // step,
        step,
        pattern,
        mask.ctypes.data,
        mask.shape[1],
        mask.strides[0] // 4,
        limit,
        chosen,
    )


_PATTERNS = {
    "float16": 0xFC00,
    "bfloat16": 0xFF80,
    "float32": 0xFF800000,
    "float64": 0xFFF0000000000000,
}
"""Bit patterns of -inf."""


@cache
def minus_infinity(dtype: torch.dtype) -> int:
    """Bit pattern of -inf in a floating point type.

    Raises
    ------
    TypeError
        For types that have no infinity or are not 2, 4 or 8 bytes wide.
    """
    pattern = _PATTERNS.get(str(dtype).removeprefix("torch."))
    if pattern is None:
        raise TypeError(f"dtype {dtype} is not one of {', '.join(_PATTERNS)}")
    return pattern
