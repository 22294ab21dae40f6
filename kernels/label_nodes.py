# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, allow-incomplete-defs
"""Labels to the nodes of the trie that they are chosen at, without the host: what losses ask before they score."""

from __future__ import annotations

import torch

from gentrie.kernels._lookups import NoTrie, TorchLookups
from gentrie.kernels._operations import or_torch
from gentrie.kernels._trie import (
    advance,
    checked,
    descriptor_row,
    is_leaf,
    remaining_of,
    target_of,
)
from gentrie.kernels._triton import tl, triton
from gentrie.kernels.tables import tables_of

FREE, FORCED, IGNORED, INVALID = -2, -3, -4, -5
"""Nodes that are none: free text, one valid token inside a run, a label that does not count, one that may not be."""

_FREE, _FORCED = tl.constexpr(FREE), tl.constexpr(FORCED)
_IGNORED, _INVALID = tl.constexpr(IGNORED), tl.constexpr(INVALID)
_REMAINING_SHIFT, _TARGET_MASK = 40, (1 << 40) - 1


@triton.jit
def label_nodes_kernel(
    labels,
    given,
    length,
    ignore_index,
    width,
    descriptors,
    nodes,
    states,
    HAS_STATES: tl.constexpr,
    LANES: tl.constexpr,
):
    """One row a program. All tensors are int64 [rows, length], contiguous; LANES edges are compared at once."""
    row = tl.program_id(0).to(tl.int64)
    trie = descriptor_row(descriptors, None, row, 1)
    state = tl.full([], _FREE, tl.int64)
    has_begun = state >= 0
    for step in range(0, length):
        at = row * length + step
        label = tl.load(labels + at)
        counts = label != ignore_index
        if HAS_STATES:
            state = tl.load(given + at)
        else:
            begins = counts & (label >= 0) & (has_begun == 0)
            state = tl.where(begins, 0, state).to(tl.int64)
            has_begun = has_begun | begins
        tl.store(states + at, state)
        state = checked(trie, state)
        after = state
        if state >= 0:
            after = advance(trie, state, tl.where(counts, label, -1), LANES)
        node = tl.where(remaining_of(state) > 0, _FORCED, target_of(state))
        node = tl.where((state < 0) | (after < 0), _INVALID, node)
        node = tl.where(state == _FREE, _FREE, node)
        node = tl.where((label < 0) | (label >= width), _INVALID, node)
        tl.store(nodes + at, tl.where(counts, node, _IGNORED).to(tl.int64))
        state = tl.where(is_leaf(trie, after), _FREE, after).to(tl.int64)


def launch_label_nodes(
    labels: torch.Tensor, given: torch.Tensor | None, ignore_index: int, width: int, descriptors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`label_nodes` by the kernel."""
    nodes, states = torch.empty_like(labels), torch.empty_like(labels)
    # Where states are given labels do not depend on those before them: a program for each.
    num_rows = labels.shape[0] if given is None else labels.numel()
    if labels.numel():
        label_nodes_kernel[(num_rows,)](
            labels,
            given,
            labels.numel() // num_rows,
            ignore_index,
            width,
            descriptors,
            nodes,
            states,
            HAS_STATES=given is not None,
            LANES=128,
            num_warps=4,
        )
    return nodes, states


def _label_nodes(
    labels: torch.Tensor, given: torch.Tensor | None, ignore_index: int, width: int, descriptors: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each label is chosen, and whether it may be.

    Parameters
    ----------
    labels
        int64 [B, T], contiguous.
    given
        int64 [B, T], contiguous: the state each label is chosen from; -2: free text. None: each row's item starts at
        the root, at its first label, and behind the item is free text.
    ignore_index
        The label that does not count.
    width
        Labels lie below it.
    descriptors
        int64 [1, WIDTH], of the trie.

    Returns
    -------
    nodes
        int64 [B, T], the node, or -2: free text; -3: inside a run, where one token is valid; -4: does not count;
        -5: negative, not below ``width``, or not valid at its state.
    states
        int64 [B, T], ``given``, or the states found: -1 from the first label on that an item's history has made
        impossible.

    Raises
    ------
    ValueError
        On the CPU, for a given state that is none of this trie; on a device its node is -5.
    """
    (tables,) = tables_of(descriptors)
    lookups = NoTrie() if tables is None else tables.lookups or TorchLookups(tables)
    num_nodes = 0 if tables is None else tables.num_nodes
    nodes, states = torch.empty_like(labels), torch.empty_like(labels)
    state = torch.full_like(labels[:, 0], FREE) if labels.shape[1] else labels[:, :0]
    has_begun = torch.zeros_like(state, dtype=torch.bool)
    for step in range(labels.shape[1]):
        label = labels[:, step]
        counts = label != ignore_index
        if given is None:
            begins = counts & (label >= 0) & ~has_begun
            state, has_begun = torch.where(begins, 0, state), has_begun | begins
        else:
            state = given[:, step]
        after = lookups.advance(state, torch.where(counts, label, -1))
        node = torch.where(state >> _REMAINING_SHIFT > 0, FORCED, state & _TARGET_MASK)
        node = torch.where((state < 0) | (after < 0), INVALID, node)
        node = torch.where(state == FREE, FREE, node)
        node = torch.where((label < 0) | (label >= width), INVALID, node)
        nodes[:, step], states[:, step] = torch.where(counts, node, IGNORED), state
        is_complete = (after >> _REMAINING_SHIFT == 0) & (after & _TARGET_MASK >= num_nodes)
        state = torch.where((after >= 0) & is_complete, FREE, after)
    return nodes, states


label_nodes = torch.library.custom_op(
    "gentrie::label_nodes",
    _label_nodes,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor labels, Tensor? given, int ignore_index, int width, Tensor descriptors) -> (Tensor, Tensor)",
)


@label_nodes.register_fake
def _(labels, *arguments):
    return torch.empty_like(labels), torch.empty_like(labels)


label_nodes.register_kernel("cuda")(or_torch(launch_label_nodes, _label_nodes))
