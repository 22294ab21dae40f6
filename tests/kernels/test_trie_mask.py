"""trie_mask: the kernel and the operation against the processor's C++ and against plain torch."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from device_cases import cases, filter_of, make_resident, spoil, states_of, strided, with_closed
from hypothesis import given
from hypothesis import strategies as st
from strategies import BEGIN, EOS, OTHER_EOS, examples

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceTrie
from gentrie.kernels import reference
from gentrie.kernels._lookups import NoTrie, TorchLookups
from gentrie.kernels.trie_mask import launch_trie_mask, trie_mask

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def masked(
    logits: torch.Tensor,
    state: int,
    trie: TokenTrie | None,
    item_filter: ItemFilter | None,
    begin: int,
    eos: list[int],
    dead_may_end: bool,
) -> torch.Tensor:
    """One row by definition."""
    if state == -2:
        row = logits.clone()
        if begin >= 0 and (trie is None or (item_filter is not None and not item_filter.num_sequences)):
            row[begin] = -torch.inf
        return row
    tokens = [] if trie is None or state < 0 else (item_filter or trie).next_tokens_batch([state])[0].tolist()
    if not tokens:
        ended = state == -3 or (state >= 0 and trie is not None and trie.is_leaf(state))
        tokens = eos if ended or dead_may_end else []
    row = torch.full_like(logits, -torch.inf)
    kept = [-math.inf if math.isnan(score) else score for score in logits[tokens].tolist()]
    highest = 65504.0 if logits.dtype == torch.float16 else 2.0**20
    if kept and max(kept) <= -highest:
        kept = [-8192.0 if score == max(kept) else -math.inf for score in kept]
    row[tokens] = torch.tensor([min(score, highest) for score in kept], dtype=logits.dtype)
    return row


@pytest.mark.parametrize("dtype", DTYPES)
@examples(5)
@given(st.data())
def test_mask_leaves_what_may_follow(device: str, dtype: torch.dtype, data: st.DataObject):
    case = data.draw(cases(needs_eos=True))
    item_filter = with_closed(data.draw, case.trie, filter_of(case))
    other = TokenTrie.from_sequences([[4, 5], [4, 4]], vocab_size=6)
    resident = make_resident([(case.trie, item_filter), (other, None)], device)
    pairs = [(case.trie, item_filter), (other, None), (None, None)]
    rows_of_tries, rows_of_filters = [*resident.trie_rows, resident.tries.capacity - 1], [*resident.filter_rows, -1]
    chosen = data.draw(st.lists(st.sampled_from([0, 0, 0, 1, 2]), min_size=1, max_size=5))
    states = [data.draw(st.sampled_from([-3, -2, -1, *states_of(pairs[i][0] or other)])) for i in chosen]
    width = case.trie.vocab_size + 2 + data.draw(st.sampled_from([0, 1, 300]))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = torch.from_numpy(rng.normal(size=(len(chosen), width))).to(dtype)
    spoil(values, rng, data.draw(st.sampled_from([0, 0.5, 1])))
    eos = data.draw(st.sampled_from([[], [EOS], [EOS, OTHER_EOS]]))
    begin = data.draw(st.sampled_from([-1, BEGIN]))
    dead_may_end = data.draw(st.booleans())
    expected = torch.stack(
        [
            masked(row, state, *pairs[i], begin, eos, dead_may_end)
            for row, state, i in zip(values, states, chosen, strict=True)
        ]
    )
    logits = strided(data.draw, values, float("nan")).to(device)
    arguments = (
        torch.tensor(states, device=device),
        begin,
        torch.tensor(eos, dtype=torch.int64, device=device),
        dead_may_end,
        resident.tries.descriptors,
        torch.tensor([rows_of_tries[i] for i in chosen], device=device),
        resident.filters.descriptors,
        torch.tensor([rows_of_filters[i] for i in chosen], device=device),
    )
    kept, operated = logits.clone(), logits.clone()
    launch_trie_mask(logits, *arguments)
    exact = functools.partial(torch.testing.assert_close, expected=expected, rtol=0, atol=0, equal_nan=True)
    exact(logits.cpu())
    trie_mask(operated, *arguments)
    exact(operated.cpu())
    for i, (trie, allowed) in enumerate(pairs):
        rows = torch.tensor([row for row, at in enumerate(chosen) if at == i], dtype=torch.int64, device=device)
        lookups = NoTrie() if trie is None else TorchLookups(resident.tries[resident.trie_rows[i]].tables)
        filters = None if allowed is None else resident.filters[resident.filter_rows[i]].tables
        reference.trie_mask(kept, rows, arguments[0][rows], begin, arguments[2], dead_may_end, lookups, filters)
    exact(kept.cpu())


@pytest.mark.parametrize(
    "num_children", [0, 1, *(pytest.param(count, marks=pytest.mark.slow) for count in (1_000, 100_000))]
)
def test_rows_of_any_number_of_children(device: str, num_children: int):
    vocab_size = 131_072
    tokens = np.sort(np.random.default_rng(0).permutation(np.arange(4, vocab_size))[: max(num_children, 2)])
    trie = TokenTrie.from_sequences(tokens[:, None] * [1, 0] + [0, 7], vocab_size=vocab_size)
    state = 0 if num_children > 1 else trie.advance(0, int(tokens[0]))
    if num_children == 0:
        state = trie.advance(state, 7)
    assert len(trie.next_tokens(state)) == num_children
    resident = DeviceTrie(trie, device)
    logits = torch.randn(2, vocab_size + 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16).to(device)
    expected = masked(logits[0].cpu(), state, trie, None, -1, [EOS], True)
    eos = torch.tensor([EOS], device=device)
    untouched = logits[1].clone()
    launch_trie_mask(
        logits, torch.tensor([state, -2], device=device), -1, eos, True, resident.descriptors, None, None, None
    )
    assert torch.equal(logits[0].cpu(), expected)
    assert torch.equal(logits[1], untouched)


def test_states_of_another_trie_are_off_the_trie(device: str):
    trie = TokenTrie.from_sequences([[5, 6, 7], [8, 9]], vocab_size=12)
    resident = DeviceTrie(trie, device)
    run = trie.walk([5])
    states = torch.tensor([run + (1 << 40), 3, 5, 1 << 39, 2**63 - 1, -(2**63), -9], device=device)
    assert [trie.is_leaf(3 - 2), trie.num_sequences] == [True, 2]
    logits = torch.zeros(len(states), 12, device=device)
    eos = torch.tensor([EOS], device=device)
    launch_trie_mask(logits, states, -1, eos, True, resident.descriptors, None, None, None)
    expected = torch.full((len(states), 12), -torch.inf)
    expected[:, EOS] = 0
    assert torch.equal(logits.cpu(), expected)
    on_cpu = DeviceTrie(trie, "cpu")
    with pytest.raises(ValueError, match=r"states\[0\]=.* is not a state of this trie"):
        trie_mask(logits.cpu(), states.cpu(), -1, eos.cpu(), True, on_cpu.descriptors, None, None, None)
