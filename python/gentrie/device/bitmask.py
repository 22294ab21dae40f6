"""Token bitmasks in XGrammar's layout, filled on the device; :mod:`gentrie.bitmask` has the rest of their verbs."""

from __future__ import annotations

from typing import Literal

import torch

from gentrie import _validate
from gentrie.device.bank import FilterBank, TrieBank
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.kernels.trie_bitmask import trie_bitmask


def fill_bitmask(
    bitmask: torch.Tensor,
    states: torch.Tensor,
    tries: DeviceTrie | TrieBank,
    *,
    trie_index: torch.Tensor | None = None,
    filters: DeviceFilter | FilterBank | None = None,
    filter_index: torch.Tensor | None = None,
    begin_token_id: int | None = None,
    eos_token_ids: torch.Tensor | None = None,
    on_dead: Literal["eos", "mask"] = "eos",
) -> None:
    """Write the tokens that may follow each state to a bitmask, as :meth:`TrieMatcher.fill_next_token_bitmask` does.

    Bit t % 32 of ``bitmask[i, t // 32]`` says whether token t may follow ``states[i]``. All bits of a row in free text
    (-2) are set. Nothing waits for the device, and a captured CUDA graph sees changed states and a swapped catalog.
    Every word is written once, without atomics: repeated runs give equal bits.

    Parameters
    ----------
    bitmask
        int32 [batch, words] on the tries' device, any strides, 32 words at least their vocab_size; overwritten.
    states
        int64 [batch], as ``trie_walk`` and ``beam_step`` give them. What is no state of the row's trie has left it.
    tries
        The catalog, or a bank of them.
    trie_index
        int64 or int32 [batch]: each row's number in the bank; None: the first. Other numbers: off the trie.
    filters, filter_index
        The filter of all rows, or a bank and each row's number in it; None: the first. Other numbers: no filter.
    begin_token_id
        Its bit is cleared in rows of free text whose filter leaves no item.
    eos_token_ids
        int64 [E] on the device, distinct: allowed behind a complete sequence. None: nothing is.
    on_dead
        What rows that have left the trie, or that a filter has emptied, may go on with: ``"eos"``, those tokens, or
        ``"mask"``, nothing.

    Raises
    ------
    ValueError, TypeError
        For another dtype, shape or device, a bitmask narrower than a vocabulary, or an index without its bank.
    """
    if not isinstance(tries, (DeviceTrie, TrieBank)):
        raise TypeError(f"tries is a {type(tries).__name__}, expected a DeviceTrie or a TrieBank")
    if filters is not None and not isinstance(filters, (DeviceFilter, FilterBank)):
        raise TypeError(f"filters is a {type(filters).__name__}, expected a DeviceFilter or a FilterBank")
    if filters is None and filter_index is not None:
        raise ValueError("filter_index is given without filters")
    device = tries.descriptors.device
    _check("bitmask", bitmask, device, (torch.int32,), 2)
    _check("states", states, device, (torch.int64,), 1, len(bitmask))
    for name, index in (("trie_index", trie_index), ("filter_index", filter_index)):
        if index is not None:
            _check(name, index, device, (torch.int64, torch.int32), 1, len(bitmask))
    if filters is not None and filters.device != tries.device:
        raise ValueError(f"filters is on {filters.device}, expected {tries.device}")
    width = 32 * bitmask.shape[1]
    vocab_size = _vocab_size(tries)
    if width < vocab_size:
        raise ValueError(f"bitmask covers {width} tokens, fewer than vocab_size={vocab_size}")
    begin = -1 if begin_token_id is None else _validate.integer("begin_token_id", begin_token_id, 0, width - 1)
    if eos_token_ids is None:
        eos_token_ids = torch.empty(0, dtype=torch.int64, device=device)
    _check("eos_token_ids", eos_token_ids, device, (torch.int64,), 1)
    trie_bitmask(
        bitmask,
        states.contiguous(),
        begin,
        eos_token_ids.contiguous(),
        _validate.choice("on_dead", on_dead, ("eos", "mask")) == "eos",
        tries.descriptors,
        None if trie_index is None else trie_index.contiguous(),
        None if filters is None else filters.descriptors,
        None if filter_index is None else filter_index.contiguous(),
    )


def _vocab_size(tries: DeviceTrie | TrieBank) -> int:
    """The greatest of the tries."""
    resident = [tries] if isinstance(tries, DeviceTrie) else tries.entries
    return max((entry.trie.vocab_size for entry in resident), default=0)


def _check(
    name: str,
    tensor: object,
    device: torch.device,
    dtypes: tuple[torch.dtype, ...],
    num_dims: int,
    length: int | None = None,
) -> None:
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} is a {type(tensor).__name__}, expected a torch.Tensor")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} has dtype {tensor.dtype}, expected {' or '.join(map(str, dtypes))}")
    if tensor.dim() != num_dims or (length is not None and len(tensor) != length):
        expected = "[batch, words]" if num_dims == 2 else f"[{'tokens' if length is None else length}]"
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, expected {device}")
