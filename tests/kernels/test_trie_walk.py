"""trie_walk: the kernel and the operation against the C++ reader of whole histories."""

from __future__ import annotations

from typing import Any

import torch
from device_cases import Case, as_batch, cases, filter_of, make_resident, poisoned, strided, tokens_met, with_closed
from hypothesis import given
from hypothesis import strategies as st
from strategies import EOS, examples

from gentrie import _core
from gentrie.history import HistoryRules
from gentrie.kernels.trie_walk import launch_trie_walk, trie_walk

Expected = tuple[_core.Verdict, list[int]]


def expected(case: Case, item_filter: Any, row: list[int], start: int | None) -> Expected:
    """What the processor allows behind one history."""
    arguments = {key: value for key, value in case.arguments.items() if key not in ("unique", "item_filter")}
    rules = HistoryRules(
        case.trie,
        **arguments,
        unique=False,
        item_filter=item_filter,
        prompt_length=None if start is None else [start],
        after=None,
        on_dead="mask",
    )
    ids = torch.tensor([row], dtype=torch.int64)
    lengths = None if start is None else rules.prompt_lengths
    allowed, _ = rules._read(rules._reader, ids, lengths)
    if allowed is None:
        return _core.Verdict.FREE, []
    return _core.Verdict(allowed.verdicts[0]), allowed.tokens(0).tolist()


def meant(case: Case, item_filter: Any, state: int) -> Expected:
    """What a state says of what may follow."""
    trie = case.trie
    root_is_open = item_filter is None or item_filter.num_sequences > 0
    if state == -2:
        return (_core.Verdict.FREE if root_is_open else _core.Verdict.FREE_NO_BEGIN), []
    if state == -1:
        return _core.Verdict.DEAD, []
    if state == -3 or trie.is_leaf(state):
        eos = case.rules.eos or ({trie.end_token_id} - {None} if not case.is_triggered else set())
        return _core.Verdict.FINISHED, sorted(eos)
    tokens = (item_filter or trie).next_tokens_batch([state])[0].tolist()
    return (_core.Verdict.ITEM if tokens else _core.Verdict.EMPTIED), tokens


@examples(12)
@given(st.data())
def test_walk_reads_histories_as_the_processor_does(device: str, data: st.DataObject):
    case = data.draw(cases(needs_eos=True))
    item_filter = with_closed(data.draw, case.trie, filter_of(case))
    rows = data.draw(st.lists(tokens_met(case), min_size=1, max_size=4))
    longest = max(map(len, rows)) + data.draw(st.integers(0, 2))
    starts = None if case.is_triggered else [data.draw(st.integers(0, len(row))) for row in rows]
    resident = make_resident([(case.trie, item_filter)], device)
    history = strided(data.draw, as_batch(rows, EOS, longest), 7).to(device)
    eos = sorted(case.rules.eos)
    arguments = (
        history,
        torch.tensor([len(row) for row in rows], device=device),
        None if starts is None else torch.tensor(starts, device=device),
        -1 if case.rules.begin is None else case.rules.begin,
        torch.tensor(eos, dtype=torch.int64, device=device),
        resident.tries.descriptors,
        torch.full((len(rows),), resident.trie_rows[0], device=device),
        resident.filters.descriptors,
        torch.full((len(rows),), resident.filter_rows[0], device=device),
    )
    with poisoned():
        states = launch_trie_walk(*arguments)
    assert torch.equal(states, trie_walk(*arguments))
    for index, (row, state) in enumerate(zip(rows, states.tolist(), strict=True)):
        want = expected(case, item_filter, row, None if starts is None else starts[index])
        verdict, tokens = meant(case, item_filter, state)
        assert verdict == want[0], (row, state)
        if verdict != _core.Verdict.EMPTIED:
            assert tokens == want[1], (row, state)
