"""DeviceMasker against the processor on the CPU."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from device_cases import as_batch, cases, tokens_met
from hypothesis import given
from hypothesis import strategies as st
from strategies import EOS, OUTSIDER, examples

from gentrie import TokenTrie
from gentrie.device.masker import DeviceMasker
from gentrie.generation import TrieLogitsProcessor


@examples(60)
@given(st.data())
def test_masks_as_the_processor_does(place: str, data: st.DataObject):
    case = data.draw(cases(needs_eos=True))
    count = data.draw(st.sampled_from([1, 2, 4]))
    rows = [data.draw(tokens_met(case)) for _ in range(count)]
    longest = max(map(len, rows))
    ids = as_batch([[OUTSIDER] * (longest - len(row)) + row for row in rows], OUTSIDER, longest)
    arguments = case.arguments | {"unique": False, "on_dead": data.draw(st.sampled_from(["mask", "eos"]))}
    if not case.is_triggered:
        starts = [longest - len(row) for row in rows]
        arguments["prompt_length"] = starts
        if data.draw(st.booleans()):
            ids = torch.cat([torch.full((count, 1), OUTSIDER), ids], 1)
            arguments["prompt_length"], arguments["after"] = None, [OUTSIDER]
    if data.draw(st.booleans()) and arguments["item_filter"] is not None:
        arguments["item_filter"] = [None, arguments["item_filter"]][: min(count, 2)]
    processor = TrieLogitsProcessor(case.trie, **arguments)
    scores = torch.from_numpy(np.random.default_rng(0).normal(size=(count, case.trie.vocab_size + 3))).float()
    scores[:, data.draw(st.lists(st.integers(0, case.trie.vocab_size - 1), max_size=3))] = -torch.inf
    try:
        expected = processor(ids, scores)
    except ValueError as error:
        expected = str(error)
    masker = DeviceMasker(processor._rules, torch.device(place))
    masked = masker(ids.to(place), scores.to(place))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=r"every row|a row could not"):
            masker.check()
    else:
        assert torch.equal(masked.cpu(), expected)
        masker.check()


def test_faults_are_raised_at_a_later_call(place: str):
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10, end_token_id=9)
    masker = DeviceMasker(TrieLogitsProcessor(trie, prompt_length=1)._rules, torch.device(place))
    scores = torch.zeros(2, 10, device=place)
    sound, dead = torch.tensor([[3, 5], [3, 4]], device=place), torch.tensor([[3, 4], [3, 4]], device=place)
    masker(sound, scores)
    masked = masker(dead, scores)
    assert torch.nonzero(masked == 0).tolist() == [[0, 9], [1, 9]]
    if place == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="every row of input_ids had left the trie"):
        masker(sound, scores)
    masker(sound, scores)
    masker.check()


def test_refusals(place: str):
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10)
    scores = torch.zeros(3, 10, device=place)
    ids = torch.tensor([[EOS, 5]] * 3, device=place)
    for arguments, message in (
        ({"prompt_length": 3}, r"prompt_length=3 is outside \[0, 2\], the length of input_ids"),
        ({"prompt_length": [1, 1]}, "prompt_length has 2 entries, input_ids has 3 rows"),
        ({"prompt_length": 1, "item_filter": [[0], [1]]}, "item_filter has 2 entries, input_ids has 3 rows"),
    ):
        masker = DeviceMasker(TrieLogitsProcessor(trie, eos_token_id=EOS, **arguments)._rules, torch.device(place))
        with pytest.raises(ValueError, match=message):
            masker(ids, scores)
    masker = DeviceMasker(TrieLogitsProcessor(trie, prompt_length=1)._rules, torch.device(place))
    masker(torch.tensor([[3, 5]], device=place), scores[:1])
    masker(torch.tensor([[3, 5, 6]], device=place), scores[:1])
    with pytest.raises(ValueError, match="a row could not go on and no token says how to end it"):
        masker.check()


@pytest.mark.gpu
def test_the_processor_does_not_wait_for_the_gpu():
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10, end_token_id=9)
    processor = TrieLogitsProcessor(trie, prompt_length=1, item_filter=[[0], None])
    ids, scores = torch.tensor([[3, 5], [3, 7]], device="cuda"), torch.randn(2, 12, device="cuda")
    first = processor(ids, scores)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = processor(ids, scores)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    processor.check()
    assert torch.equal(first, again)
    assert torch.equal(
        first.cpu(), TrieLogitsProcessor(trie, prompt_length=1, item_filter=[[0], None])(ids.cpu(), scores.cpu())
    )
