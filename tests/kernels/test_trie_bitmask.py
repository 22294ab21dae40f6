"""trie_bitmask: the kernel and the operation against matchers on the host and against the obvious loop."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import cases, filter_of, make_resident, states_of, tokens_met, with_closed
from hypothesis import given
from hypothesis import strategies as st
from strategies import BEGIN, EOS, OTHER_EOS, examples

from gentrie import ItemFilter, TokenTrie, TrieMatcher, allocate_token_bitmask, get_bitmask_shape
from gentrie.device import DeviceFilter, DeviceTrie, FilterBank, TrieBank, fill_bitmask
from gentrie.kernels import reference
from gentrie.kernels._lookups import NoTrie, TorchLookups
from gentrie.kernels.trie_bitmask import launch_trie_bitmask, trie_bitmask
from gentrie.kernels.trie_mask import trie_mask

POISON = 0x5A5A5A5A


def poisoned_mask(rows: int, words: int, row_step: int = 1, word_step: int = 1) -> torch.Tensor:
    return torch.full((rows * row_step, words * word_step + 1), POISON, dtype=torch.int32)[
        ::row_step, : words * word_step : word_step
    ]


def by_loop(
    words: int,
    state: int,
    trie: TokenTrie | None,
    item_filter: ItemFilter | None,
    begin: int,
    eos: list[int],
    dead_may_end: bool,
) -> list[int]:
    """One row by definition, as Python's ints."""
    if state == -2:
        used_up = trie is None or (item_filter is not None and not item_filter.num_sequences)
        allowed = [t for t in range(32 * words) if t != begin or not used_up]
    else:
        allowed = [] if trie is None or state < 0 else (item_filter or trie).next_tokens_batch([state])[0].tolist()
        if not allowed:
            ended = state == -3 or (state >= 0 and trie is not None and trie.is_leaf(state))
            allowed = eos if ended or dead_may_end else []
    row = [0] * words
    for token in allowed:
        row[token // 32] |= 1 << token % 32
    return [word - 2**32 if word >= 2**31 else word for word in row]


@examples(8)
@given(st.data())
def test_bits_are_those_of_the_tokens_that_may_follow(device: str, data: st.DataObject):
    case = data.draw(cases(needs_eos=True))
    item_filter = with_closed(data.draw, case.trie, filter_of(case))
    other = TokenTrie.from_sequences([[4, 5], [4, 4]], vocab_size=6)
    resident = make_resident([(case.trie, item_filter), (other, None)], device)
    pairs = [(case.trie, item_filter), (other, None), (None, None)]
    rows_of_tries, rows_of_filters = [*resident.trie_rows, resident.tries.capacity - 1], [*resident.filter_rows, -1]
    chosen = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=5))
    states = [data.draw(st.sampled_from([-3, -2, -1, *states_of(pairs[i][0] or other)])) for i in chosen]
    words = get_bitmask_shape(1, case.trie.vocab_size)[1] + data.draw(st.sampled_from([0, 1, 200]))
    eos = data.draw(st.sampled_from([[], [EOS], [EOS, OTHER_EOS], [32 * words - 1]]))
    begin = data.draw(st.sampled_from([-1, BEGIN, 31]))
    dead_may_end = data.draw(st.booleans())
    expected = torch.tensor(
        [by_loop(words, state, *pairs[i], begin, eos, dead_may_end) for state, i in zip(states, chosen, strict=True)],
        dtype=torch.int32,
    )
    steps = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 1, 2]))
    given_to = torch.tensor(states, device=device), begin, torch.tensor(eos, dtype=torch.int64, device=device)
    arguments = (
        *given_to,
        dead_may_end,
        resident.tries.descriptors,
        torch.tensor([rows_of_tries[i] for i in chosen], device=device),
        resident.filters.descriptors,
        torch.tensor([rows_of_filters[i] for i in chosen], device=device),
    )
    for run in (launch_trie_bitmask, trie_bitmask):
        whole = torch.full((len(chosen) * steps[0], words * steps[1] + 1), POISON, dtype=torch.int32, device=device)
        untouched = torch.ones_like(whole, dtype=torch.bool)
        untouched[:: steps[0], : words * steps[1] : steps[1]] = False
        mask = whole[:: steps[0], : words * steps[1] : steps[1]]
        run(mask, *arguments)
        assert torch.equal(mask.cpu(), expected)
        assert (whole[untouched] == POISON).all()
    plain = torch.full_like(expected, POISON).to(device)
    for i, (trie, allowed) in enumerate(pairs):
        rows = torch.tensor([row for row, at in enumerate(chosen) if at == i], dtype=torch.int64, device=device)
        lookups = NoTrie() if trie is None else TorchLookups(resident.tries[resident.trie_rows[i]].tables)
        filters = None if allowed is None else resident.filters[resident.filter_rows[i]].tables
        reference.trie_bitmask(plain, rows, given_to[0][rows], begin, given_to[2], dead_may_end, lookups, filters)
    assert torch.equal(plain.cpu(), expected)


@examples(60)
@given(st.data())
def test_equals_the_matcher(place: str, data: st.DataObject):
    """Histories as a matcher takes them, refused tokens left out; a response that has ended is -3."""
    case = data.draw(cases(needs_eos=True))
    matcher = TrieMatcher(case.trie, **case.arguments | {"unique": False})
    masks, states = [], []
    words = get_bitmask_shape(1, case.trie.vocab_size)[1] + data.draw(st.integers(0, 1))
    for token in [None, *data.draw(tokens_met(case))]:
        if token is None or matcher.accept_token(token):
            masks.append(torch.full((1, words), POISON, dtype=torch.int32))
            matcher.fill_next_token_bitmask(masks[-1])
            states.append(-3 if matcher.is_terminated() and not case.is_triggered else matcher.state)
    tries, filters = DeviceTrie(case.trie, place), filter_of(case)
    eos = list(case.rules.eos) or [case.trie.end_token_id]
    mask = torch.full((len(states), words), POISON, dtype=torch.int32, device=place)
    fill_bitmask(
        mask,
        torch.tensor(states, device=place),
        tries,
        filters=None if filters is None else DeviceFilter(filters, place),
        begin_token_id=case.rules.begin,
        eos_token_ids=torch.tensor(eos, device=place),
    )
    assert torch.equal(mask.cpu(), torch.cat(masks))


@pytest.mark.parametrize(
    "num_children", [0, 1, *(pytest.param(count, marks=pytest.mark.slow) for count in (1_000, 100_000))]
)
def test_rows_of_any_number_of_children(device: str, num_children: int):
    vocab_size = 100_500 if num_children > 1_000 else 9_000
    tokens = np.sort(np.random.default_rng(0).permutation(np.arange(4, vocab_size))[: max(num_children, 2)])
    trie = TokenTrie.from_sequences(tokens[:, None] * [1, 0] + [0, 7], vocab_size=vocab_size)
    state = 0 if num_children > 1 else trie.advance(0, int(tokens[0]))
    if num_children == 0:
        state = trie.advance(state, 7)
    assert len(trie.next_tokens(state)) == num_children
    words = get_bitmask_shape(1, vocab_size)[1] + 1
    mask = torch.full((1, words), POISON, dtype=torch.int32, device=device)
    arguments = torch.tensor([state], device=device), -1, torch.tensor([EOS], device=device), True
    resident = DeviceTrie(trie, device)  # the descriptor is of its memory
    launch_trie_bitmask(mask, *arguments, resident.descriptors, None, None, None)
    assert mask[0].tolist() == by_loop(words, state, trie, None, -1, [EOS], True)


def test_wide_nodes_with_a_filter(device: str):
    tokens = np.arange(4, 4_004, 4)
    trie = TokenTrie.from_sequences(tokens[:, None] * [1, 0] + [0, 7], vocab_size=4_010)
    item_filter = ItemFilter.from_item_ids(trie, range(0, 1_000, 3)).deny([3, 999])
    mask = torch.full((1, 126), POISON, dtype=torch.int32, device=device)
    tries, filters = DeviceTrie(trie, device), DeviceFilter(item_filter, device)
    arguments = torch.zeros(1, dtype=torch.int64, device=device), -1, torch.tensor([EOS], device=device), True
    launch_trie_bitmask(mask, *arguments, tries.descriptors, None, filters.descriptors, None)
    assert mask[0].tolist() == by_loop(126, 0, trie, item_filter, -1, [EOS], True)
    assert sum(word.bit_count() for word in (mask[0].long() & 0xFFFFFFFF).tolist()) == 332


def test_offsets_beyond_32_bits(device: str):
    """A row that begins beyond 2^31 words, of which only the pages written exist."""
    trie = TokenTrie.from_sequences([[5, 6], [40, 7]], vocab_size=64)
    stride = 2**31 + 64
    try:
        whole = torch.empty(stride + 2, dtype=torch.int32, device=device)
    except (RuntimeError, MemoryError):
        pytest.skip("needs 8 GiB of address space")
    mask = torch.as_strided(whole, (2, 2), (stride, 1))
    arguments = torch.tensor([trie.walk([40]), 0], device=device), -1, torch.tensor([EOS], device=device), True
    resident = DeviceTrie(trie, device)  # the descriptor is of its memory
    launch_trie_bitmask(mask, *arguments, resident.descriptors, None, None, None)
    assert mask.tolist() == [[1 << 7, 0], [1 << 5, 1 << 8]]


def test_states_of_another_trie_are_off_the_trie(device: str):
    trie = TokenTrie.from_sequences([[5, 6, 7], [8, 9]], vocab_size=12)
    resident = DeviceTrie(trie, device)
    states = torch.tensor([trie.walk([5]) + (1 << 40), 3, 5, 1 << 39, 2**63 - 1, -(2**63), -9], device=device)
    mask = torch.full((len(states), 1), POISON, dtype=torch.int32, device=device)
    eos = torch.tensor([EOS], device=device)
    launch_trie_bitmask(mask, states, -1, eos, True, resident.descriptors, None, None, None)
    assert mask.tolist() == [[1 << EOS]] * len(states)


@pytest.mark.parametrize("layout", ["contiguous", "columns"])
def test_applied_it_masks_as_trie_mask_does(place: str, layout: str):
    trie = TokenTrie.from_sequences([[5, 6], [5, 63], [40, 7]], vocab_size=65)
    resident, eos = DeviceTrie(trie, place), torch.tensor([EOS], device=place)
    states = torch.tensor([0, trie.walk([5]), trie.walk([40, 7]), -1, -2, -3], device=place)
    mask = poisoned_mask(len(states), 3, 2, 2 if layout == "columns" else 1).to(place)
    fill_bitmask(mask, states, resident, eos_token_ids=eos)
    logits = torch.randn(len(states), 65, device=place)
    expected = logits.clone()
    trie_mask(expected, states, -1, eos, True, resident.descriptors, None, None, None)
    reference.apply_token_bitmask(logits, mask, 65, torch.arange(len(states), device=place))
    assert torch.equal(logits, expected)


def test_xgrammar_applies_it():
    xgrammar = pytest.importorskip("xgrammar", reason="xgrammar is not installed")
    for vocab_size in range(60, 70):
        trie = TokenTrie.from_sequences([[5, 6], [5, vocab_size - 1], [40, 7]], vocab_size=vocab_size)
        states = torch.tensor([0, trie.walk([5]), trie.walk([40, 7]), -1, -2, -3])
        mask, resident = xgrammar.allocate_token_bitmask(len(states), vocab_size), DeviceTrie(trie, "cpu")
        fill_bitmask(mask, states, resident, eos_token_ids=torch.tensor([EOS]))
        logits = torch.randn(len(states), vocab_size)
        expected = logits.clone()
        xgrammar.apply_token_bitmask_inplace(logits, mask)
        trie_mask(expected, states, -1, torch.tensor([EOS]), True, resident.descriptors, None, None, None)
        assert torch.equal(logits, expected)


class Served:
    """Two tries and a filter in banks, five rows, and what a bitmask takes."""

    def __init__(self, device: str) -> None:
        self.old = TokenTrie.from_sequences([[5, 6, 7], [5, 6, 40], [5, 9], [10]], vocab_size=64)
        self.new = TokenTrie.from_sequences([[5, 6, 11], [12, 13]], vocab_size=64)
        self.bank, self.filters = TrieBank(device, capacity=3), FilterBank(device, capacity=2)
        self.slot = self.bank.add(DeviceTrie(self.old, device))
        self.filters.add(DeviceFilter(ItemFilter.from_item_ids(self.old, [0, 2]), device))
        self.states = torch.tensor([0, self.old.walk([5, 6]), self.old.walk([10]), -2, -1], device=device)
        self.trie_index = torch.full((5,), self.slot, device=device)
        self.filter_index = torch.tensor([-1, 0, -1, 0, -1], device=device)
        self.eos = torch.tensor([EOS], device=device)
        self.mask = torch.full((5, 2), POISON, dtype=torch.int32, device=device)

    def operation(self) -> tuple[Any, ...]:
        tries = self.bank.descriptors, self.trie_index, self.filters.descriptors, self.filter_index
        return self.mask.clone(), self.states, BEGIN, self.eos, True, *tries

    def fill(self) -> None:
        named = {"trie_index": self.trie_index, "filters": self.filters, "filter_index": self.filter_index}
        fill_bitmask(self.mask, self.states, self.bank, **named, begin_token_id=BEGIN, eos_token_ids=self.eos)


@pytest.fixture
def served(place: str) -> Served:
    return Served(place)


def test_keeps_the_rules_of_torch(served: Served):
    torch.library.opcheck(trie_bitmask, served.operation())


def test_compiles_as_one_graph(served: Served):
    def step(mask: torch.Tensor, states: torch.Tensor, *rest: Any) -> torch.Tensor:
        trie_bitmask(mask, states + 0, *rest)
        return mask.clone()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*served.operation()), step(*served.operation()))


def test_refusals(served: Served):
    mask, states, bank = served.mask, served.states, served.bank
    for arguments, options, kind, message in (
        ((mask.long(), states, bank), {}, TypeError, "bitmask has dtype torch.int64, expected torch.int32"),
        ((mask[0], states, bank), {}, ValueError, r"bitmask has shape \(2,\), expected \[batch, words\]"),
        ((mask[:, :1], states, bank), {}, ValueError, "bitmask covers 32 tokens, fewer than vocab_size=64"),
        ((mask, states[:4], bank), {}, ValueError, r"states has shape \(4,\), expected \[5\]"),
        ((mask, states.int(), bank), {}, TypeError, "states has dtype torch.int32, expected torch.int64"),
        ((mask, [0], bank), {}, TypeError, "states is a list"),
        ((mask, states, served.old), {}, TypeError, "tries is a TokenTrie, expected a DeviceTrie or a TrieBank"),
        ((mask, states, bank), {"filters": served.old}, TypeError, "filters is a TokenTrie"),
        ((mask, states, bank), {"filter_index": states}, ValueError, "filter_index is given without filters"),
        ((mask, states, bank), {"trie_index": states[:1]}, ValueError, r"trie_index has shape \(1,\), expected \[5\]"),
        ((mask, states, bank), {"begin_token_id": 64}, ValueError, "begin_token_id=64"),
        ((mask, states, bank), {"eos_token_ids": states.float()}, TypeError, "eos_token_ids has dtype"),
        ((mask, states, bank), {"on_dead": "error"}, ValueError, "on_dead='error' is not one of"),
        ((mask.to("meta"), states, bank), {}, ValueError, "bitmask is on meta"),
    ):
        with pytest.raises(kind, match=message):
            fill_bitmask(*arguments, **options)
    assert (mask == POISON).all()


@pytest.mark.gpu
def test_captured_graphs_see_new_states_and_a_swapped_catalog():
    served = Served("cuda")
    served.fill()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        served.fill()

    def check(tries: list[TokenTrie], filtered: list[int]) -> None:
        graph.replay()
        torch.cuda.synchronize()
        for row, (trie, state) in enumerate(zip(tries, served.states.tolist(), strict=True)):
            item_filter = ItemFilter.from_item_ids(trie, [0, 2]) if row in filtered else None
            assert served.mask[row].tolist() == by_loop(2, state, trie, item_filter, BEGIN, [EOS], True)

    old, new = served.old, served.new
    check([old] * 5, [1, 3])
    served.states.copy_(torch.tensor([old.walk([5]), 0, -3, -1, old.walk([5, 9])]))
    check([old] * 5, [1, 3])
    former = served.bank.swap(served.slot, DeviceTrie(new, "cuda"))
    served.trie_index[0] = former
    served.filter_index.fill_(-1)
    served.states.copy_(torch.tensor([old.walk([5]), new.walk([5, 6]), 0, -2, new.walk([12])]))
    check([old, new, new, new, new], [])


@pytest.mark.gpu
def test_does_not_wait_for_the_host_and_repeats_its_bits():
    served = Served("cuda")
    served.fill()
    first = served.mask.clone()
    served.mask.fill_(POISON)
    torch.cuda.set_sync_debug_mode("error")
    try:
        served.fill()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(served.mask, first)


def test_bank_rows_and_filters_are_those_of_single_tries(place: str):
    served = Served(place)
    served.fill()
    whole = served.mask.cpu()
    for row, (state, at) in enumerate(product(served.states.tolist(), [served.slot])):
        item_filter = ItemFilter.from_item_ids(served.old, [0, 2]) if served.filter_index[row] == 0 else None
        mask = allocate_token_bitmask(1, 64).to(place)
        fill_bitmask(
            mask,
            torch.tensor([state], device=place),
            served.bank[at],
            filters=None if item_filter is None else DeviceFilter(item_filter, place),
            begin_token_id=BEGIN,
            eos_token_ids=served.eos,
        )
        assert torch.equal(mask[0].cpu(), whole[row])
