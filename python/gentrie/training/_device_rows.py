"""Which rows a loss scores, over which tokens: worked out on the device, from a trie that lies there.

:mod:`gentrie.training._rows` on the host makes lists as long as they have to be; here all labels stay in their places,
so that no size depends on a value and nothing waits. What does not count gets a node without tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch

from gentrie import _validate
from gentrie.training._rows import FREE_TEXT, LabelRows, Narrow, OnInvalid, Scope, Wide
from gentrie.trie import TokenTrie


class ResidentRows:
    """A trie's valid tokens on a device, decoded: 4 bytes an edge and 8 a node, beside the trie's own arrays.

    Kernels of the losses read the tokens of a row many at a time and more than once, which they do best from a plain
    list. Labels that may not be are found on the device and raised at a later call; :meth:`raise_seen` says how.

    Attributes
    ----------
    indptr, tokens
        int64 [nodes + 2] and int32 [edges]: node k has the tokens ``tokens[indptr[k]:indptr[k + 1]]``, ascending, and
        the one behind the last node has none.
    """

    def __init__(self, trie: TokenTrie | None, device: torch.device) -> None:
        indptr, tokens = np.zeros(1, dtype=np.int64), np.zeros(0, dtype=np.int32)
        self._descriptors: torch.Tensor | None = None
        if trie is not None:
            from gentrie.device.trie import DeviceTrie

            tokens, indptr = trie.next_tokens_batch(np.arange(trie._core.header()["num_nodes"]))
            resident = DeviceTrie(trie, device)
            # Not the object itself, which keeps the trie by whose end these rows are let go.
            self._tables, self._descriptors = resident.tables, resident.descriptors
        self.num_nodes = len(indptr) - 1
        self._is_async = device.type == "cuda"
        self.indptr = torch.from_numpy(np.append(indptr, indptr[-1])).to(device)
        self.tokens = torch.from_numpy(tokens).to(device)
        self._faults = torch.zeros(len(_Fault._fields), dtype=torch.int64, device=device)
        self._seen = torch.zeros(len(_Fault._fields), dtype=torch.int64, pin_memory=self._is_async)
        self._copied: Any = None  # the event behind the last copy

    @classmethod
    def of(cls, trie: TokenTrie | None, device: torch.device) -> ResidentRows:
        """Made at the first call for a trie and a device, which waits, and kept as long as the trie."""
        if trie is None:
            return _without_trie(device)
        by_device = _RESIDENT.setdefault(trie._core, {})
        if device not in by_device:
            by_device[device] = cls(trie, device)
        return by_device[device]

    def look_up(
        self, labels: torch.Tensor, states: torch.Tensor | None, ignore_index: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Nodes and states of labels int64 [B, T], as :func:`gentrie.kernels.label_nodes.label_nodes` gives them."""
        from gentrie.kernels.label_nodes import FREE, IGNORED, INVALID, label_nodes

        if self._descriptors is not None:
            nodes, found = label_nodes(labels, states, ignore_index, width, self._descriptors)
            return nodes, found
        free = torch.where((labels < 0) | (labels >= width), INVALID, FREE)
        return torch.where(labels == ignore_index, IGNORED, free), torch.full_like(labels, FREE)

    def note(self, wrong: torch.Tensor, labels: torch.Tensor, states: torch.Tensor) -> None:
        """Keep the first label that is ``wrong`` [N] and has not been raised, and send it on its way to the host."""
        if wrong.numel():
            first = wrong.long().argmax(0, keepdim=True)
            fault = [wrong.any(0, keepdim=True).long(), first]
            fault += [of.reshape(-1).index_select(0, first) for of in (labels, states)]
            new = torch.cat([*fault, torch.full_like(first, labels.shape[-1])])
            self._faults.copy_(torch.where(self._faults[:1] > 0, self._faults, new))
        self._seen.copy_(self._faults, non_blocking=True)
        if self._is_async and not torch.cuda.is_current_stream_capturing():
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def raise_seen(self) -> None:
        """Raise ValueError for what an earlier call found, if the host has heard of it and no graph is captured."""
        if self._is_async and torch.cuda.is_current_stream_capturing():
            return
        if self._copied is not None and not self._copied.query():
            return
        fault = _Fault(*self._seen.tolist())
        if not fault.is_there:
            return
        self._faults.zero_()
        self._seen.zero_()
        row, column = divmod(fault.position, fault.length)
        raise ValueError(
            f"at an earlier call labels.reshape(-1, {fault.length})[{row}][{column}]={fault.label} was not a valid "
            f"token at state {fault.state}" + (": the labels before it have left the trie" if fault.state == -1 else "")
        )


class _Fault(NamedTuple):
    """A label that may not be, its place in the flattened labels, its state, and the labels' last dimension."""

    is_there: int
    position: int
    label: int
    state: int
    length: int


_RESIDENT: WeakKeyDictionary[Any, dict[torch.device, ResidentRows]] = WeakKeyDictionary()


@cache
def _without_trie(device: torch.device) -> ResidentRows:
    return ResidentRows(None, device)


class DeviceRows(NamedTuple):
    """What an objective asks of labels, as in :class:`~gentrie.training._rows.LabelRows`: int64 [N] on the device."""

    row: torch.Tensor
    label: torch.Tensor
    num_valid: torch.Tensor


@dataclass(frozen=True)
class DeviceScope(Scope):
    """All labels of a loss in their places, which for objectives are labels in items (``wide``).

    Attributes
    ----------
    node
        int64 [N], of ``resident``: the last, which has no tokens, where nothing is scored; -1 where all tokens are
        valid, -2 in free text.
    counts
        bool [N], whether a label counts.
    wrong
        bool [N], which labels are errors.
    resident
        The tokens of each node.
    """

    node: torch.Tensor
    counts: torch.Tensor
    wrong: torch.Tensor
    resident: ResidentRows

    @classmethod
    def at(
        cls,
        resident: ResidentRows,
        objective: Any,
        labels: torch.Tensor,
        states: object,
        *,
        ignore_index: int,
        width: int,
        on_invalid: OnInvalid,
    ) -> DeviceScope:
        """Look every label up, without waiting for the device; see :meth:`LabelRows.of` for the arguments.

        Raises
        ------
        ValueError
            For a label that an earlier call found to be outside [0, width), or not valid at its state.
        """
        from gentrie.kernels.label_nodes import FORCED, FREE, INVALID

        resident.raise_seen()
        labels = labels.to(resident.indptr.device, torch.int64, non_blocking=True)
        table = labels.reshape(-1, max(1, labels.shape[-1])).contiguous()
        given = None if states is None else _given_states(states, labels).reshape(table.shape).contiguous()
        nodes, found = resident.look_up(table, given, ignore_index, width)
        label, nodes = table.reshape(-1), nodes.reshape(-1)
        wrong = nodes == INVALID
        if on_invalid == "ignore":
            wrong &= (label < 0) | (label >= width)
        resident.note(wrong, table, found)
        counts, is_free, at_node = nodes >= FORCED, nodes == FREE, nodes >= 0
        counts |= is_free
        node = nodes.clamp(min=0)
        num_valid = torch.where(at_node, resident.indptr[node + 1] - resident.indptr[node], nodes == FORCED)
        row = torch.arange(label.numel(), device=label.device)
        restricted = objective.restricted(DeviceRows(row, label, num_valid))
        if not isinstance(restricted, torch.Tensor):  # of numpy: without a look at the labels, the same for all
            restricted = torch.full_like(counts, bool(restricted.all()))
        node = torch.where(restricted & at_node & (num_valid > 1), nodes, resident.num_nodes)
        node = torch.where(counts & ~restricted, -1, node)
        node = torch.where(is_free, FREE_TEXT, node)
        safe = torch.where(node < resident.num_nodes, label, 0)
        nothing = row[:0]
        numbers = np.zeros(0, dtype=np.int64)
        return cls(
            rows=LabelRows.free(tuple(labels.shape), numbers, numbers),
            narrow=Narrow(nothing, nothing, nothing, nothing, nothing, nothing, *(numbers,) * 4),
            wide=Wide(row, safe),
            free=Wide(nothing, nothing),
            row=row,
            node=node,
            counts=counts,
            wrong=wrong,
            resident=resident,
        )

    @property
    def is_scored(self) -> torch.Tensor:
        """bool [N]."""
        return self.node < self.resident.num_nodes

    @property
    def in_item(self) -> torch.Tensor:
        """bool [N], of the scored ones."""
        return self.is_scored & (self.node != FREE_TEXT)

    def refused(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` (one, or one a label), nan where a label is an error, and no gradient from there."""
        wrong = self.wrong.reshape(values.shape) if values.dim() else self.wrong.any()
        return torch.where(wrong, torch.nan, values)


def _given_states(states: object, labels: torch.Tensor) -> torch.Tensor:
    if not isinstance(states, torch.Tensor):
        states = torch.from_numpy(_validate.int64_array("states", states))
    if states.is_floating_point() or states.is_complex() or states.dtype == torch.bool:
        raise TypeError(f"states has dtype {states.dtype}, expected integers")
    if states.shape != labels.shape:
        raise ValueError(f"states has shape {tuple(states.shape)}, labels has {tuple(labels.shape)}")
    return states.to(labels.device, torch.int64, non_blocking=True)
