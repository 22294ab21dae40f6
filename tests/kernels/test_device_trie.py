"""DeviceTrie and the banks: the arrays as they are, what they take, and rows that stay where they are."""

from __future__ import annotations

import gc
from itertools import pairwise

import numpy as np
import pytest
import torch
from device_cases import cases, filter_of, states_of, with_closed
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceFilter, DeviceTrie, FilterBank, TrieBank, max_nbytes
from gentrie.kernels._lookups import TorchLookups
from gentrie.kernels.tables import tables_of
from gentrie.kernels.trie_walk import trie_walk

EOS = torch.tensor([1])


def trie_of(rows: list[list[int]]) -> TokenTrie:
    return TokenTrie.from_sequences(rows, vocab_size=40)


@pytest.mark.parametrize("items", [False, True])
def test_arrays_are_those_of_the_trie(place: str, items: bool):
    trie = TokenTrie.from_sequences(np.random.default_rng(0).integers(0, 999, (300, 5)), vocab_size=1000)
    resident = DeviceTrie(trie, place, items=items)
    host = {name: array for name, array in trie._core.arrays().items() if items or not name.startswith("item_")}
    assert resident.arrays.keys() == host.keys()
    for name, array in host.items():
        assert resident.arrays[name].cpu().numpy().tobytes() == array.tobytes()
    assert resident.nbytes_by_array == DeviceTrie.estimate_nbytes(trie, items=items)
    assert resident.nbytes == sum(resident.nbytes_by_array.values())
    assert all(size % 64 == 0 and 0 <= size - host[name].nbytes < 64 for name, size in resident.nbytes_by_array.items())


@examples(30)
@given(st.data())
def test_lookups_in_torch_are_those_of_the_core(data: st.DataObject):
    case = data.draw(cases())
    item_filter = with_closed(data.draw, case.trie, filter_of(case))
    resident = DeviceTrie(case.trie, "cpu")
    allowed = None if item_filter is None else DeviceFilter(item_filter, "cpu").tables
    known = states_of(case.trie)
    states = torch.tensor([-3, -2, -1, *known])
    ours, core = TorchLookups(resident.tables), resident.tables.lookups
    assert core is not None
    for lookups in (ours, core):
        tokens, indptr = lookups.next_tokens(states, allowed)
        expected = (item_filter or case.trie).next_tokens_batch([-1, -2, -1, *known])
        assert tokens.tolist() == expected[0].tolist()
        assert indptr.tolist() == expected[1].tolist()
        left = [0, 0, 0, *((item_filter or ItemFilter.all_items(case.trie)).num_sequences_below_batch(known).tolist())]
        assert lookups.num_left(states, allowed).tolist() == left
    token = torch.randint(0, case.trie.vocab_size, states.shape, generator=torch.Generator().manual_seed(0))
    following, indptr = case.trie.next_tokens_batch(known)
    for row, (begin, end) in enumerate(pairwise(indptr.tolist())):
        if begin < end and row % 2:
            token[3 + row] = int(following[end - 1])
    assert torch.equal(ours.advance(states, token), core.advance(states, token))
    invalid = torch.tensor([max(known) + (1 << 40), len(known) + case.trie.num_sequences + 1000])
    assert ours.advance(invalid, torch.tensor([4, 4])).tolist() == [-1, -1]


def test_rows_are_added_and_removed_without_touching_others(place: str):
    bank = TrieBank(place, capacity=3)
    tries = [trie_of([[5, 6], [7, 8]]), trie_of([[5, 9], [7, 7]])]
    address = bank.descriptors.data_ptr()
    rows = [bank.add(DeviceTrie(trie, place)) for trie in tries]
    assert (rows, len(bank), bank.capacity) == ([0, 1], 2, 3)

    def walk(row: int) -> int:
        history = torch.tensor([[0, 5]], device=place)
        index = torch.tensor([row], device=place)
        return trie_walk(history, None, None, 0, EOS.to(place), bank.descriptors, index, None, None).item()

    before = [walk(row) for row in range(3)]
    assert before == [tries[0].walk([5]), tries[1].walk([5]), -1]
    assert [walk(-1), walk(3)] == [-1, -1]
    bank.remove(0)
    assert [walk(row) for row in range(3)] == [-1, before[1], -1]
    wide = trie_of([[token, 6] for token in range(4, 30)])
    assert bank.add(DeviceTrie(wide, place)) == 0
    former = bank.swap(1, DeviceTrie(tries[0], place))
    assert former == 2
    assert [walk(0), walk(1), walk(2)] == [wide.walk([5]), tries[0].walk([5]), before[1]]
    assert bank[former].trie is tries[1]
    assert bank.descriptors.data_ptr() == address
    assert bank.nbytes == sum(bank[row].nbytes for row in range(3)) + bank.descriptors.nbytes


def test_a_removed_trie_is_let_go():
    bank = TrieBank("cpu", capacity=1)
    bank.add(DeviceTrie(trie_of([[5, 6]]), "cpu"))
    descriptors = bank.descriptors.clone()
    assert tables_of(descriptors) != [None]
    bank.remove(0)
    gc.collect()
    with pytest.raises(ValueError, match=r"descriptors\[0\] describes a trie that no longer exists"):
        tables_of(descriptors)
    assert tables_of(bank.descriptors) == [None]


def test_filters_without_a_bitmap():
    trie = trie_of([[5, 6], [7, 8], [9, 9]])
    every = ItemFilter.all_items(trie)
    closed = DeviceFilter(every.deny([1]), "cpu")
    assert closed.tables.leaf_words is None
    assert closed.nbytes == 4
    assert DeviceFilter(ItemFilter.from_item_ids(trie, [1]), "cpu").nbytes == 8
    bank = FilterBank("cpu", capacity=1)
    assert bank.add(closed) == 0
    assert bank.nbytes == closed.nbytes + bank.descriptors.nbytes


def test_refusals():
    trie = trie_of([[5, 6], [7, 8]])
    bank = TrieBank("cpu", capacity=1, max_branching=2)
    wide = DeviceTrie(trie_of([[4], [5], [6]]), "cpu")
    with pytest.raises(ValueError, match="branches 3 ways, more than max_branching=2"):
        bank.add(wide)
    assert len(bank) == 0
    bank.add(DeviceTrie(trie, "cpu"))
    with pytest.raises(ValueError, match="all 1 rows are taken"):
        bank.add(DeviceTrie(trie, "cpu"))
    with pytest.raises(ValueError, match="all 1 rows are taken"):
        bank.swap(0, DeviceTrie(trie, "cpu"))
    with pytest.raises(ValueError, match=r"row=1 is outside \[0, 0\]"):
        bank.remove(1)
    bank.remove(0)
    with pytest.raises(ValueError, match="row=0 is empty"):
        bank.remove(0)
    with pytest.raises(ValueError, match="the entry is on cpu, the bank on meta"):
        TrieBank("meta").add(DeviceTrie(trie, "cpu"))
    with pytest.raises(TypeError, match="trie is a list, expected a TokenTrie"):
        DeviceTrie([[5, 6]], "cpu")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="item_filter is a list, expected an ItemFilter"):
        DeviceFilter([1], "cpu")  # type: ignore[arg-type]


@examples(60)
@given(st.data())
def test_no_trie_takes_more_than_was_estimated_before_its_build(data: st.DataObject):
    trie = data.draw(cases()).trie
    most = max_nbytes(trie.num_items, trie.max_depth, trie.vocab_size, items=True)
    taken = DeviceTrie.estimate_nbytes(trie, items=True)
    assert most.keys() == taken.keys()
    assert all(taken[name] <= most[name] for name in taken)


def test_the_estimate_of_a_catalog_without_shared_beginnings_is_near():
    rows = np.random.default_rng(0).integers(0, 30_000, (20_000, 12))
    rows[:, 0] = np.arange(20_000)
    trie = TokenTrie.from_sequences(rows, vocab_size=30_000)
    most, taken = max_nbytes(20_000, 12, 30_000), DeviceTrie.estimate_nbytes(trie)
    assert sum(taken.values()) <= sum(most.values()) < 2 * sum(taken.values())
    for arguments, message in (((0, 1, 1), "num_items=0"), ((1, 0, 1), "max_length=0"), ((1, 1, 0), "vocab_size=0")):
        with pytest.raises(ValueError, match=message):
            max_nbytes(*arguments)


def test_a_trie_goes_to_a_device(place: str):
    trie = trie_of([[5, 6], [7]])
    resident = DeviceTrie(trie, place, items=True)
    assert isinstance(resident, DeviceTrie)
    assert (resident.trie is trie, resident.device.type, "item_ids" in resident.arrays) == (True, place, True)
    assert "item_ids" not in DeviceTrie(trie, place).arrays
