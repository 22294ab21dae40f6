"""Lookups in a trie in plain torch, on any device: what kernels are tested against, and the fallback without Triton."""

from __future__ import annotations

import torch

from gentrie.kernels.tables import FilterTables, TrieTables

OFF_TRIE = -1
_REMAINING_SHIFT = 40
_TARGET_MASK = (1 << _REMAINING_SHIFT) - 1
_LOW_32 = 0xFFFFFFFF


class TorchLookups:
    """``Lookups`` over a trie's tensors."""

    def __init__(self, tables: TrieTables) -> None:
        self._tables = tables

    def advance(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """States int64 [N] after one token each; states that are not of this trie lead off it."""
        before = self._checked(states)
        after = torch.where(before < 0, before, OFF_TRIE)
        in_run = (before >> _REMAINING_SHIFT > 0) & (before >= 0)
        is_next = self._next_run_tokens(before[in_run]) == tokens[in_run]
        after[in_run] = torch.where(is_next, before[in_run] - (1 << _REMAINING_SHIFT), OFF_TRIE)
        rows, edges, edge_tokens = self._edges(before)
        taken = edge_tokens == tokens[rows]
        after[rows[taken]] = self._follow(before[rows[taken]], edges[taken])
        return after

    def next_tokens(self, states: torch.Tensor, allowed: FilterTables | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Valid next tokens of states int64 [N], and indptr [N + 1]."""
        before = self._checked(states)
        in_run = torch.nonzero((before >> _REMAINING_SHIFT > 0) & (before >= 0)).squeeze(1)
        rows, edges, tokens = self._edges(before)
        if allowed is not None:
            begin, end = self._leaves_of_edges(before[rows], edges)
            keep = num_allowed(allowed, begin, end) > 0
            rows, tokens = rows[keep], tokens[keep]
            in_run = in_run[self.num_left(before[in_run], allowed) > 0]
        rows = torch.cat([rows, in_run])
        tokens = torch.cat([tokens, self._next_run_tokens(before[in_run])])
        order = torch.argsort(rows, stable=True)
        counts = torch.bincount(rows, minlength=len(states))
        return tokens[order], torch.nn.functional.pad(counts.cumsum(0), (1, 0))

    def num_left(self, states: torch.Tensor, allowed: FilterTables | None) -> torch.Tensor:
        """Sequences int64 [N] that the filter leaves below each state."""
        tables, before = self._tables, self._checked(states)
        target = (before & _TARGET_MASK).clamp(max=tables.num_nodes + tables.num_leaves - 1)
        node = target.clamp(max=tables.num_nodes - 1)
        at_node = target < tables.num_nodes
        begin = torch.where(at_node, _u32(tables.leaf_begin, node), target - tables.num_nodes)
        end = begin + torch.where(at_node, self._leaves_below_node(node), 1)
        left = end - begin if allowed is None else num_allowed(allowed, begin, end)
        return torch.where(before < 0, 0, left)

    def _checked(self, states: torch.Tensor) -> torch.Tensor:
        tables = self._tables
        target = states & _TARGET_MASK
        is_target = (states >= 0) & (target < tables.num_nodes + tables.num_leaves)
        length = self._run_lengths(torch.where(is_target, target, 0))
        is_state = is_target & (states >> _REMAINING_SHIFT <= length)
        return torch.where((states < 0) | is_state, states, OFF_TRIE)

    def _run_begins(self, targets: torch.Tensor) -> torch.Tensor:
        tables = self._tables
        begins: torch.Tensor = tables.run_blocks[targets >> 6]
        return begins + _packed(tables.run_offsets, tables.run_offset_bits, targets)

    def _run_lengths(self, targets: torch.Tensor) -> torch.Tensor:
        return self._run_begins(targets + 1) - self._run_begins(targets)

    def _next_run_tokens(self, states: torch.Tensor) -> torch.Tensor:
        tables = self._tables
        position = self._run_begins((states & _TARGET_MASK) + 1) - (states >> _REMAINING_SHIFT)
        tokens: torch.Tensor = tables.vocabulary[_packed(tables.run_tokens, tables.run_token_bits, position)]
        return tokens.long()

    def _edges(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(row, edge, token)`` of every edge of the states that are nodes."""
        tables = self._tables
        at_node = (states >= 0) & (states < tables.num_nodes)
        node = torch.where(at_node, states, 0)
        begin = _u32(tables.edge_indptr, node)
        counts = torch.where(at_node, _u32(tables.edge_indptr, node + 1) - begin, 0)
        rows = torch.repeat_interleave(torch.arange(len(states), device=states.device), counts)
        first = counts.cumsum(0) - counts
        edges = begin[rows] + torch.arange(len(rows), device=states.device) - first[rows]
        mask = (1 << 8 * tables.edge_token_bytes) - 1
        return rows, edges, tables.vocabulary[tables.edge_tokens[edges].long() & mask].long()

    def _follow(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        tables = self._tables
        child = 1 + _rank(tables.edge_to_node, edges)
        leaf = self._leaf_at(nodes, edges)
        target = torch.where(_test(tables.edge_to_node, edges), child, tables.num_nodes + leaf)
        return target | self._run_lengths(target) << _REMAINING_SHIFT

    def _leaf_at(self, nodes: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        """As ``TrieView::leaf_at``: a node's own leaves come first, one for each edge that leads to no node."""
        tables = self._tables
        begin = _u32(tables.edge_indptr, nodes)
        to_nodes = _rank(tables.edge_to_node, edges) - _rank(tables.edge_to_node, begin)
        return (_u32(tables.leaf_begin, nodes) + (edges - begin) - to_nodes) & _LOW_32

    def _leaves_below_node(self, nodes: torch.Tensor) -> torch.Tensor:
        prefix = self._tables.leaf_prefix
        return (_u32(prefix, nodes + 1) - _u32(prefix, nodes) + 1) & _LOW_32

    def _leaves_of_edges(self, nodes: torch.Tensor, edges: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tables = self._tables
        child = 1 + _rank(tables.edge_to_node, edges)
        to_node = _test(tables.edge_to_node, edges)
        node = torch.where(to_node, child, 0)
        begin = torch.where(to_node, _u32(tables.leaf_begin, node), self._leaf_at(nodes, edges))
        return begin, begin + torch.where(to_node, self._leaves_below_node(node), 1)


class NoTrie:
    """``Lookups`` of rows that name no trie."""

    def advance(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Off the trie, but for negative states."""
        return torch.where(states < 0, states, OFF_TRIE)

    def next_tokens(self, states: torch.Tensor, allowed: FilterTables | None) -> tuple[torch.Tensor, torch.Tensor]:
        """None."""
        return states[:0], torch.zeros(len(states) + 1, dtype=torch.int64, device=states.device)

    def num_left(self, states: torch.Tensor, allowed: FilterTables | None) -> torch.Tensor:
        """None."""
        return torch.zeros_like(states)


def num_allowed(allowed: FilterTables, begin: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
    """Leaves in [begin, end) that the filter leaves."""
    return _allowed_before(allowed, end) - _allowed_before(allowed, begin)


def _allowed_before(allowed: FilterTables, leaf: torch.Tensor) -> torch.Tensor:
    before = leaf if allowed.leaf_words is None else _rank(allowed.leaf_words, leaf)
    return before - torch.searchsorted(allowed.closed_leaves.long() & _LOW_32, leaf)


def _u32(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return values[index].long() & _LOW_32


def _packed(words: torch.Tensor, bits: int, index: torch.Tensor) -> torch.Tensor:
    bit = index * bits
    window = (words[bit >> 5].long() & _LOW_32) | (words[(bit >> 5) + 1].long() << 32)
    return (window >> (bit & 31)) & ((1 << bits) - 1)


def _test(words: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return (words[index >> 5] >> (index & 31)) & 1 == 1


def _rank(words: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    word = words[index >> 5]
    bits = torch.arange(32, device=word.device)
    ones = (word.unsqueeze(-1) >> bits) & 1
    return ((word >> 32) & _LOW_32) + (ones * (bits < (index & 31).unsqueeze(-1))).sum(-1)
