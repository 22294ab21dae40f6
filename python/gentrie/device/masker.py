"""What a logits processor does to scores on a device: reads histories and masks there, and tells the host later."""

from __future__ import annotations

from itertools import cycle

import torch

from gentrie.device.bank import FilterBank
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.history import NOT_A_NUMBER, HistoryRules
from gentrie.item_filter import ItemFilter
from gentrie.kernels.trie_constrain import trie_constrain

_CALLS_AT_ONCE = 16  # on different streams


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
        self._num_filters = len(numbers)
        self._filter_index = None if self._filters is None else torch.tensor(numbers, device=device)
        eos = sorted(set(rules.eos_token_ids))
        if rules.begin_token_id < 0 and not eos and trie.end_token_id is not None:
            eos = [trie.end_token_id]
        self._eos = torch.tensor(eos, dtype=torch.int64, device=device)
        self._after = torch.from_numpy(rules.after).to(device) if len(rules.after) else None
        lengths = rules.prompt_lengths
        self._starts = None if lengths is None else torch.from_numpy(lengths).to(device)
        self._num_starts = 0 if lengths is None else len(lengths)
        self._longest_start = 0 if lengths is None else int(lengths.max())
        self._may_end = rules.on_dead != "mask"  # and only then something can be wrong with a history
        self._faults = torch.zeros(3, dtype=torch.int32, device=device)
        self._arrivals = cycle(torch.zeros(_CALLS_AT_ONCE, 2, dtype=torch.int64, device=device).unbind())
        self._copy = torch.zeros(3, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._seen = self._copy.numpy()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [batch, vocabulary] with -inf wherever a token may not follow ``input_ids`` [batch, length]."""
        if self._is_wrong() and not (scores.is_cuda and torch.cuda.is_current_stream_capturing()):
            self._raise_seen()
        rows, length = input_ids.shape
        self._check_rows("item_filter", self._num_filters, rows)
        self._check_rows("prompt_length", self._num_starts, rows)
        if self._longest_start > length:
            raise ValueError(f"prompt_length={self._longest_start} is outside [0, {length}], the length of input_ids")
        masked: torch.Tensor = trie_constrain(
            input_ids if input_ids.dtype == torch.int64 else input_ids.long(),
            scores,
            self._starts,
            self._after,
            self._rules.begin_token_id,
            self._eos,
            self._may_end,
            self._faults,
            next(self._arrivals),
            self._trie.descriptors,
            None,
            None if self._filters is None else self._filters.descriptors,
            self._filter_index,
        )
        self._copy.copy_(self._faults, non_blocking=True)  # read at a later call, whenever it has arrived
        return masked

    def check(self) -> None:
        """Wait for the device and raise what was wrong with the calls so far.

        Raises
        ------
        ValueError
            If at a call every row had left the trie, a row could not go on and no token says how to end it, or the
            score of a token that the catalog allows was not a number.
        """
        self._wait()
        self._raise_seen()

    def _is_wrong(self) -> bool:
        return bool(self._seen[2] or (self._may_end and (self._seen[0] or self._seen[1])))

    def _wait(self) -> None:
        """Have all that was found so far in ``_seen``."""
        if self._faults.is_cuda:
            torch.cuda.synchronize(self._faults.device)
        self._copy.copy_(self._faults)

    def _raise_seen(self) -> None:
        if not self._is_wrong():
            return
        self._wait()  # calls under way are not to bring up the same again
        all_dead, _, has_nan = self._seen.tolist()
        self._faults.zero_()
        self._copy.zero_()
        if has_nan:
            raise ValueError(f"at an earlier call {NOT_A_NUMBER}")
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
