"""Labels to nodes, as kernel and as plain torch, against a walk through the trie token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from gentrie import TokenTrie
from gentrie.device import DeviceTrie
from gentrie.kernels.label_nodes import FORCED, FREE, IGNORED, INVALID, label_nodes, launch_label_nodes
from gentrie.kernels.tables import make_descriptors

VOCAB, WIDTH, GARBAGE = 12, 14, (1 << 40) + 10**6
Case = tuple[TokenTrie, torch.Tensor, torch.Tensor | None, int]


def expected(
    trie: TokenTrie, labels: list[int], given: list[int] | None, ignore_index: int
) -> tuple[list[int], list[int]]:
    """Nodes and states of one row, by the trie's own methods."""
    nodes, states = [], []
    state, has_begun = FREE, False
    for place, label in enumerate(labels):
        if given is not None:
            state = given[place]
        elif not has_begun and label != ignore_index and label >= 0:
            state, has_begun = trie.root, True
        tokens = trie.next_tokens(state).tolist() if state >= 0 and state != GARBAGE else []
        is_valid = label != ignore_index and label in tokens
        if label == ignore_index:
            node = IGNORED
        elif not 0 <= label < WIDTH or (state != FREE and not is_valid):
            node = INVALID
        elif state == FREE:
            node = FREE
        else:
            node = FORCED if state >> 40 else state
        nodes.append(node)
        states.append(state)
        if state >= 0:
            state = trie.advance(state, label) if is_valid else -1
            if state >= 0 and not len(trie.next_tokens(state)):
                state = FREE
    return nodes, states


@st.composite
def label_cases(draw: st.DrawFn) -> Case:
    """Rows that follow the catalog for a while, with free text, ignored and impossible labels among them."""
    body = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=6)
    rows = draw(st.lists(body, min_size=1, max_size=8))
    trie = TokenTrie.from_sequences([[*row, 1] for row in rows], vocab_size=VOCAB)
    ignore_index = draw(st.sampled_from([-100, -1, 3]))
    count, length = draw(st.integers(1, 3)), draw(st.integers(0, 9))
    odd = st.sampled_from([ignore_index, ignore_index, -7, 0, 5, VOCAB, WIDTH, 1 << 40])
    labels = []
    for _ in range(count):
        text = [ignore_index] * draw(st.integers(0, 2)) + [*draw(st.sampled_from(rows)), 1]
        text += draw(st.lists(st.integers(0, WIDTH - 1), max_size=2)) + [ignore_index] * length
        text = text[:length]
        if text and draw(st.booleans()):
            text[draw(st.integers(0, length - 1))] = draw(odd)
        labels.append(text)
    table = torch.tensor(labels, dtype=torch.int64).reshape(count, length)
    states = None
    if draw(st.booleans()):
        states = trie.token_states(torch.where(table == ignore_index, -1, table)).contiguous()
        if length:
            states[0, draw(st.integers(0, length - 1))] = draw(st.sampled_from([-2, -1, 0, GARBAGE]))
    return trie, table, states, ignore_index


@examples(20)
@given(label_cases())
def test_nodes_and_states(device: str, case: Case) -> None:
    trie, labels, states, ignore_index = case
    given_rows = [None] * len(labels) if states is None else states.tolist()
    rows = [expected(trie, *row, ignore_index) for row in zip(labels.tolist(), given_rows, strict=True)]
    wanted = [torch.tensor(part, dtype=torch.int64).reshape(labels.shape) for part in zip(*rows, strict=True)]
    resident = DeviceTrie(trie, device)
    without_core = replace(resident.tables, lookups=None)  # plain torch, as on a GPU without Triton
    descriptors = make_descriptors([without_core], torch.device(device))
    on = (labels.to(device), None if states is None else states.to(device), ignore_index, WIDTH)
    for operation, trie_row in (
        (launch_label_nodes, resident.descriptors),
        (label_nodes, descriptors),
        (label_nodes, resident.descriptors),
    ):
        if states is not None and GARBAGE in states and trie_row is resident.descriptors and operation is label_nodes:
            continue  # the core on the CPU refuses it
        for ours, theirs in zip(operation(*on, trie_row), wanted, strict=True):
            assert torch.equal(ours.cpu(), theirs)


def test_no_trie_leaves_nothing_valid(device: str) -> None:
    empty = torch.zeros(1, 32, dtype=torch.int64, device=device)
    labels = torch.tensor([[-100, 2, 3]], device=device)
    for operation in (launch_label_nodes, label_nodes):
        nodes, states = operation(labels, None, -100, WIDTH, empty)
        assert nodes.tolist() == [[IGNORED, INVALID, INVALID]]
        assert states.tolist() == [[FREE, 0, -1]]


def test_operation(place: str) -> None:
    trie = TokenTrie.from_sequences([[2, 3, 4], [2, 5]], vocab_size=VOCAB)
    resident = DeviceTrie(trie, place)
    labels = torch.tensor([[-100, 2, 3, 4, 9], [2, 5, -100, 0, 0]], device=place)
    torch.library.opcheck(label_nodes, (labels, None, -100, WIDTH, resident.descriptors))
    states = trie.token_states(torch.where(labels == -100, -1, labels))
    torch.library.opcheck(label_nodes, (labels, states, -100, WIDTH, resident.descriptors))


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    """A replay sees other labels, and nothing waits."""
    trie = TokenTrie.from_sequences([[2, 3, 4], [2, 5]], vocab_size=VOCAB)
    resident = DeviceTrie(trie, "cuda")
    labels = torch.tensor([[2, 3, 4]], device="cuda")
    label_nodes(labels, None, -100, WIDTH, resident.descriptors)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        nodes, _ = label_nodes(labels, None, -100, WIDTH, resident.descriptors)
    for row in ([2, 5, 7], [2, 4, 4], [-100, 2, 3]):
        labels.copy_(torch.tensor([row]))
        torch.cuda.set_sync_debug_mode("error")
        try:
            graph.replay()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert nodes.tolist() == [expected(trie, row, None, -100)[0]]
