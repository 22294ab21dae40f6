"""What a logits processor does to scores on a device: reads histories and masks there, and tells the host later."""

from __future__ import annotations

from typing import Any

import torch

from gentrie.device.bank import FilterBank
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.history import HistoryRules
from gentrie.item_filter import ItemFilter
from gentrie.kernels.trie_mask import trie_mask
from gentrie.kernels.trie_walk import trie_walk

_OFF_TRIE = -1


class DeviceMasker:
    """:class:`gentrie.generation.TrieLogitsProcessor` on one device, without waiting for it.

    What is wrong with a call is found on the device and raised at a later one, or by :meth:`check`; ``unique`` is not
    supported, and rows are not counted in a catalog's statistics.

    Parameters
    ----------
    rules
        The processor's arguments, checked; ``unique`` must be False.
    device
        Where scores are.
    """

    def __init__(self, rules: HistoryRules, device: torch.device) -> None:
        trie = rules.trie
        self._rules = rules
        self._trie = DeviceTrie(trie, device)
        self._filters: FilterBank | None = None
        numbers = [-1] * len(rules.filters)
        if any(rules.filters):
            self._filters = FilterBank(device, capacity=len(rules.filters))
            numbers = [
                -1 if core is None else self._filters.add(DeviceFilter(ItemFilter(core, trie, ""), device))
                for core in rules.filters
            ]
        self._filter_index = torch.tensor(numbers, device=device)
        eos = sorted(set(rules.eos_token_ids))
        if rules.begin_token_id < 0 and not eos and trie.end_token_id is not None:
            eos = [trie.end_token_id]
        self._eos = torch.tensor(eos, dtype=torch.int64, device=device)
        self._after = torch.from_numpy(rules.after).to(device) if len(rules.after) else None
        lengths = rules.prompt_lengths
        self._starts = None if lengths is None else torch.from_numpy(lengths).to(device)
        self._longest_start = 0 if lengths is None else int(lengths.max())
        self._faults = torch.zeros(2, dtype=torch.bool, device=device)
        self._seen = torch.zeros(2, dtype=torch.bool, pin_memory=device.type == "cuda")
        self._copied: Any = None  # the event behind the last copy

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [batch, vocabulary] with -inf wherever a token may not follow ``input_ids`` [batch, length]."""
        is_capturing = scores.is_cuda and torch.cuda.is_current_stream_capturing()
        if not is_capturing and (self._copied is None or self._copied.query()):
            self._raise_seen()
        rows, length = input_ids.shape
        self._check_rows("item_filter", len(self._filter_index), rows)
        self._check_rows("prompt_length", 0 if self._starts is None else len(self._starts), rows)
        if self._longest_start > length:
            raise ValueError(f"prompt_length={self._longest_start} is outside [0, {length}], the length of input_ids")
        masked = scores.clone()
        if not rows:
            return masked
        ids = input_ids.long()
        filters = None if self._filters is None else self._filters.descriptors
        index = self._filter_index.repeat_interleave(rows // len(self._filter_index), output_size=rows)
        tries = (self._trie.descriptors, None, filters, None if filters is None else index)
        states = trie_walk(ids, None, self._response_starts(ids), self._rules.begin_token_id, self._eos, *tries)
        trie_mask(masked, states, self._rules.begin_token_id, self._eos, self._rules.on_dead != "mask", *tries)
        self._note(states, masked)
        if scores.is_cuda and not is_capturing:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()
        return masked

    def check(self) -> None:
        """Wait for the device and raise what was wrong with the calls so far.

        Raises
        ------
        ValueError
            If at a call every row had left the trie, or a row could not go on and no token says how to end it.
        """
        if self._copied is not None:
            self._copied.synchronize()
        self._raise_seen()

    def _response_starts(self, ids: torch.Tensor) -> torch.Tensor | None:
        """Where each response begins; -1 where ``after`` is missing."""
        if self._after is None:
            starts = self._starts
            return starts if starts is None else starts.repeat_interleave(len(ids) // len(starts), output_size=len(ids))
        rows, length = ids.shape
        width = len(self._after)
        if length < width:
            return torch.full((rows,), -1, device=ids.device)
        is_here = (ids.unfold(1, width, 1) == self._after).all(-1)
        behind = torch.arange(width, length + 1, device=ids.device)
        return torch.where(is_here, behind, -1).amax(1)

    def _note(self, states: torch.Tensor, masked: torch.Tensor) -> None:
        """Keep what the host has to hear of, and send it on its way."""
        if self._rules.on_dead == "mask":
            return
        self._faults[0] |= (states == _OFF_TRIE).all()
        if not len(self._eos):
            self._faults[1] |= masked.isneginf().all(1).any()
        self._seen.copy_(self._faults, non_blocking=True)

    def _raise_seen(self) -> None:
        all_dead, is_closed = self._seen.tolist()
        if not (all_dead or is_closed):
            return
        self._faults.zero_()
        self._seen.zero_()
        if all_dead:
            raise ValueError(
                "at an earlier call every row of input_ids had left the trie. Check where items begin (begin_token_id, "
                "prompt_length, after) and that prompt and catalog were made with the same tokenizer and context"
            )
        raise ValueError(
            "at an earlier call a row could not go on and no token says how to end it: give eos_token_id, or stop at "
            f"max_new_tokens={self._rules.trie.max_depth}"
        )

    @staticmethod
    def _check_rows(name: str, count: int, rows: int) -> None:
        if count > rows or (count and rows % count):
            raise ValueError(f"{name} has {count} entries, input_ids has {rows} rows")
