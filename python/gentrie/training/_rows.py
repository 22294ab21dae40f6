"""Which rows a loss scores, over which tokens: worked out once on the CPU, from the trie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _validate
from gentrie.item_filter import ItemFilter
from gentrie.trie import TokenTrie

Int64Array = npt.NDArray[np.int64]
OnInvalid = Literal["error", "ignore"]

FREE_TEXT = -2


@dataclass(frozen=True)
class FilteredTrie:
    """A trie, and which of its items there are; None: all of them."""

    trie: TokenTrie
    item_filter: ItemFilter | None = None

    def next_tokens_batch(self, states: Int64Array) -> tuple[npt.NDArray[np.int32], Int64Array]:
        """As :meth:`TokenTrie.next_tokens_batch`, of the items there are."""
        return (self.trie if self.item_filter is None else self.item_filter).next_tokens_batch(states)

    def first_choice(self) -> tuple[int, npt.NDArray[np.int32]]:
        """Return the first state from the root on at which not one token is valid alone, and the tokens valid there."""
        state = self.trie.root
        while True:
            tokens, _ = self.next_tokens_batch(np.array([state]))
            if len(tokens) != 1:
                return state, tokens
            state = self.trie.advance(state, int(tokens[0]))


@dataclass(frozen=True)
class LabelRows:
    """The n labels that count, with the valid tokens at each.

    Attributes
    ----------
    shape
        Of the labels that were given.
    row
        int64 [n], the place of each label in the flattened labels, ascending.
    label
        int64 [n], its token.
    node
        int64 [n], the number of its state in ``indptr``; -1 in free text.
    place
        int64 [n], where among its state's tokens the label stands; -1 in free text.
    num_valid
        int64 [n], how many tokens are valid; 0 in free text, where all are.
    states
        int64 [m], the distinct states, ascending.
    tokens, indptr
        int32 and int64 [m + 1]: the tokens valid at ``states[i]`` are ``tokens[indptr[i]:indptr[i + 1]]``, ascending.
    num_invalid
        Labels dropped because the trie does not allow them.
    """

    shape: tuple[int, ...]
    row: Int64Array
    label: Int64Array
    node: Int64Array
    place: Int64Array
    num_valid: Int64Array
    states: Int64Array
    tokens: npt.NDArray[np.int32]
    indptr: Int64Array
    num_invalid: int

    @cached_property
    def is_free(self) -> npt.NDArray[np.bool_]:
        return self.node < 0

    @classmethod
    def of(
        cls,
        catalog: FilteredTrie | None,
        labels: torch.Tensor,
        states: object,
        *,
        ignore_index: int,
        width: int,
        on_invalid: OnInvalid,
    ) -> LabelRows:
        """Look every label up.

        Parameters
        ----------
        catalog
            None makes every label free text.
        labels
            Integers [...].
        states
            int64 [...], the state each label is chosen from; None: each row's item starts at its first label.
        ignore_index
            The label that does not count.
        width
            Of the logits; labels lie below it.
        on_invalid
            Whether a label that trie and filter do not allow is an error, or dropped and counted.

        Raises
        ------
        ValueError
            Naming row and token: a label outside [0, width), or one that is not valid at its state.
        """
        given = _validate.int64_array("labels", labels)
        flat = given.reshape(-1)
        row = np.flatnonzero(flat != ignore_index)
        label = flat[row]
        for i in np.flatnonzero((label < 0) | (label >= width))[:1]:
            raise ValueError(f"labels{at(row[i], given.shape)}={label[i]} is outside [0, {width})")
        if catalog is None:
            return cls.free(given.shape, row, label)
        state = _states(catalog.trie, given, states, ignore_index)[row]
        distinct, number = np.unique(state, return_inverse=True)
        first = int(np.searchsorted(distinct, 0))  # -2 and -1 come before
        node = number - first
        distinct = distinct[first:]
        tokens, indptr = catalog.next_tokens_batch(distinct)
        in_item, free = node >= 0, state == FREE_TEXT
        node = np.where(in_item, node, -1)
        place, valid = _places(tokens, indptr, node, label, catalog.trie.vocab_size)
        kept = valid | free
        if on_invalid == "error":
            for i in np.flatnonzero(~kept)[:1]:
                raise ValueError(
                    f"labels{at(row[i], given.shape)}={label[i]} is not a valid token at state {state[i]}"
                    + (": the labels before it have left the trie" if state[i] == -1 else "")
                    + (" of what item_filter leaves" if catalog.item_filter and state[i] >= 0 else "")
                )
        num_valid = np.zeros(len(row), dtype=np.int64)
        num_valid[in_item] = np.diff(indptr)[node[in_item]]
        picked = slice(None) if kept.all() else kept
        return cls(
            given.shape,
            row[picked],
            label[picked],
            node[picked],
            place[picked],
            num_valid[picked],
            distinct,
            tokens,
            indptr,
            int(len(kept) - kept.sum()),
        )

    @classmethod
    def free(cls, shape: tuple[int, ...], row: Int64Array, label: Int64Array) -> LabelRows:
        """Labels that are all free text."""
        outside = np.full(len(row), -1, dtype=np.int64)
        nothing = np.zeros(0, dtype=np.int64)
        return cls(
            shape,
            row,
            label,
            outside,
            outside,
            np.zeros_like(outside),
            nothing,
            nothing.astype(np.int32),
            np.zeros(1, dtype=np.int64),
            0,
        )


def _states(trie: TokenTrie, labels: Int64Array, states: object, ignore_index: int) -> Int64Array:
    if states is None:
        tokens = np.where(labels == ignore_index, -1, labels)
        found: Int64Array = trie.token_states(tokens)
        return found.reshape(-1)
    given = _validate.int64_array("states", states)
    if given.shape != labels.shape:
        raise ValueError(f"states has shape {given.shape}, labels has {labels.shape}")
    for i in np.flatnonzero(given.reshape(-1) < FREE_TEXT)[:1]:
        raise ValueError(f"states{at(i, given.shape)}={given.flat[i]} is no state")
    return given.reshape(-1)


def _places(
    tokens: npt.NDArray[np.int32], indptr: Int64Array, node: Int64Array, label: Int64Array, vocab_size: int
) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
    """Where each label stands among its node's tokens, and whether it is one of them."""
    owner = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    key = owner * vocab_size + tokens  # ascending: nodes one after the other, tokens ascending inside
    wanted = node * vocab_size + label
    at = np.searchsorted(key, wanted)
    valid = (node >= 0) & (label < vocab_size)
    valid[valid] = key.take(at[valid], mode="clip") == wanted[valid] if len(key) else False
    return np.where(valid, at - indptr[node], -1), valid


def at(position: int, shape: Sequence[int]) -> str:
    """A place of a flattened array as indices, ``[1][0]``."""
    return "".join(f"[{i}]" for i in np.unravel_index(int(position), shape))


@dataclass(frozen=True)
class Narrow:
    """Rows scored over the two or more tokens that are valid there, grouped by node, widest nodes first.

    Attributes
    ----------
    row, label
        int64 [n], the place in the flattened labels, and the token.
    start, count
        int64 [n], the row's tokens are ``tokens[start:start + count]``.
    place
        int64 [n], where among them the label stands.
    tokens
        int64 [...], the valid tokens of the nodes, in the order of the rows.
    counts
        ``count`` on the CPU.
    node_rows, node_start, node_count
        On the CPU, for each distinct node in the order of the rows: how many rows are at it, and its range in
        ``tokens``.
    """

    row: torch.Tensor
    label: torch.Tensor
    start: torch.Tensor
    count: torch.Tensor
    place: torch.Tensor
    tokens: torch.Tensor
    counts: Int64Array
    node_rows: Int64Array
    node_start: Int64Array
    node_count: Int64Array

    def __len__(self) -> int:
        return len(self.counts)


@dataclass(frozen=True)
class Wide:
    """Rows scored over the whole vocabulary: int64 [n] places in the flattened labels, and tokens."""

    row: torch.Tensor
    label: torch.Tensor

    def __len__(self) -> int:
        return self.row.numel()


@dataclass(frozen=True)
class Scope:
    """The rows of a loss by what they are scored over, on the device; rows with one valid token are left out.

    The scores of a loss are vectors over ``narrow``, then ``wide`` (labels in items), then ``free`` (free text).

    Attributes
    ----------
    rows
        All labels that count.
    row
        int64 [n], the place of each scored label in the flattened labels, in that order.
    """

    rows: LabelRows
    narrow: Narrow
    wide: Wide
    free: Wide
    row: torch.Tensor

    def __len__(self) -> int:
        return self.row.numel()

    @property
    def num_item_rows(self) -> int:
        """Scored labels that are in items: the first so many."""
        return len(self.narrow) + len(self.wide)

    @property
    def num_labels_given(self) -> int:
        return math.prod(self.rows.shape)

    @classmethod
    def of(cls, rows: LabelRows, restricted: npt.NDArray[np.bool_], device: torch.device) -> Scope:
        """``restricted`` [n]: whether a row is scored over its valid tokens; free text never is."""
        restricted = restricted & ~rows.is_free
        narrow = np.flatnonzero(restricted & (rows.num_valid > 1))
        by_width = np.lexsort((rows.node[narrow], -rows.num_valid[narrow]))
        narrow = narrow[by_width]
        wide = np.flatnonzero(~restricted & ~rows.is_free)
        free = np.flatnonzero(rows.is_free)
        node = rows.node[narrow]
        first = np.flatnonzero(np.diff(node, prepend=-1))
        nodes = node[first]
        node_rows, node_count = np.diff(first, append=len(node)), np.diff(rows.indptr)[nodes]
        node_start = np.cumsum(node_count) - node_count
        # The tokens of these nodes only, in the order of the rows.
        shift = np.repeat(rows.indptr[nodes] - node_start, node_count)
        order = np.concatenate([narrow, wide, free])
        row, label, start, count, place, tokens = _to_device(
            device,
            rows.row[order],
            rows.label[order],
            np.repeat(node_start, node_rows),
            rows.num_valid[narrow],
            rows.place[narrow],
            rows.tokens[np.arange(len(shift)) + shift],
        )
        ends = np.cumsum([len(narrow), len(wide), len(free)]).tolist()
        parts = [slice(0, ends[0]), slice(ends[0], ends[1]), slice(ends[1], ends[2])]
        return cls(
            rows,
            Narrow(
                row[parts[0]],
                label[parts[0]],
                start,
                count,
                place,
                tokens,
                rows.num_valid[narrow],
                node_rows,
                node_start,
                node_count,
            ),
            Wide(row[parts[1]], label[parts[1]]),
            Wide(row[parts[2]], label[parts[2]]),
            row,
        )


def _to_device(device: torch.device, *arrays: npt.NDArray[Any]) -> list[torch.Tensor]:
    """Arrays as int64 tensors, by one transfer, for which nothing waits."""
    whole = torch.from_numpy(np.concatenate([array.astype(np.int64, copy=False) for array in arrays]))
    if device.type == "cuda":
        whole = whole.pin_memory()
    return list(torch.split(whole.to(device, non_blocking=True), [len(array) for array in arrays]))
