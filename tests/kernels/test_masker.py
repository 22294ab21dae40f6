"""DeviceMasker against the processor on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import as_batch, cases, tokens_met
from hypothesis import given
from hypothesis import strategies as st
from strategies import EOS, OUTSIDER, examples
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from gentrie import TokenTrie
from gentrie.device import masker as module
from gentrie.device.masker import DeviceMasker
from gentrie.generation import TrieLogitsProcessor
from gentrie.kernels.trie_constrain import launch_trie_constrain


@pytest.fixture(scope="module", params=["operation", "kernel"])
def anyhow(request: pytest.FixtureRequest, device: str) -> Iterator[str]:
    """A device; on the CPU the operation there, or the kernel in the interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "kernel":
            patch.setattr(module, "trie_constrain", launch_trie_constrain)
        yield device


@examples(10)
@given(st.data())
def test_masks_as_the_processor_does(anyhow: str, data: st.DataObject):
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
    masker = DeviceMasker(processor._rules, torch.device(anyhow))
    masked = masker(ids.to(anyhow), scores.to(anyhow))
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=r"every row|a row could not"):
            masker.check()
    else:
        assert torch.equal(masked.cpu(), expected)
        masker.check()


def test_faults_are_raised_at_a_later_call(anyhow: str):
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10, end_token_id=9)
    masker = DeviceMasker(TrieLogitsProcessor(trie, prompt_length=1)._rules, torch.device(anyhow))
    scores = torch.zeros(2, 10, device=anyhow)
    sound, dead = torch.tensor([[3, 5], [3, 4]], device=anyhow), torch.tensor([[3, 4], [3, 4]], device=anyhow)
    masker(sound, scores)
    masked = masker(dead, scores)
    assert torch.nonzero(masked == 0).tolist() == [[0, 9], [1, 9]]
    if anyhow == "cuda":
        torch.cuda.synchronize()
    with pytest.raises(ValueError, match="every row of input_ids had left the trie"):
        masker(sound, scores)
    masker(sound, scores)
    masker.check()


@pytest.mark.parametrize("on_dead", ["eos", "mask"])
def test_scores_that_are_not_numbers_are_raised_at_a_later_call(anyhow: str, on_dead: Any):
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10, end_token_id=9)
    processor = TrieLogitsProcessor(trie, prompt_length=1, on_dead=on_dead)
    masker = DeviceMasker(processor._rules, torch.device(anyhow))
    ids = torch.tensor([[3, 5], [3, 4]], device=anyhow)
    elsewhere, within = torch.zeros(2, 10, device=anyhow), torch.zeros(2, 10, device=anyhow)
    elsewhere[0, 7], elsewhere[1], within[0, 6] = torch.nan, torch.nan, torch.nan
    masker(ids, elsewhere)
    masker.check()
    masked = masker(ids, within)
    assert masked[0].isfinite().nonzero().flatten().tolist() == [6]  # what is written until then is in the catalog
    with pytest.raises(ValueError, match="at an earlier call the score of a token that the catalog allows was not a"):
        masker.check()
    masker(ids, elsewhere)
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


class Calls(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        self.names.append(function.overloadpacket.__name__)
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize(
    "arguments", [{"prompt_length": 1}, {"prompt_length": [1, 2], "item_filter": [[0], None]}, {"after": [3]}]
)
def test_a_step_is_one_operation_and_a_copy(arguments: dict[str, Any]):
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10, end_token_id=9)
    masker = DeviceMasker(TrieLogitsProcessor(trie, **arguments)._rules, torch.device("cpu"))
    ids, scores = torch.tensor([[3, 5], [3, 7]]), torch.zeros(2, 12)
    with pytest.MonkeyPatch.context() as patch, Calls() as calls:
        patch.setattr(module, "trie_constrain", lambda history, logits, *rest: torch.empty_like(logits))
        masker(ids, scores)
    assert calls.names == ["empty_like", "copy_"]


@pytest.mark.gpu
def test_a_step_launches_one_kernel():
    """And copies its faults; nothing else runs on the device."""
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10, end_token_id=9)
    ids, scores = torch.tensor([[3, 5], [3, 7]], device="cuda"), torch.randn(2, 12, device="cuda")
    for arguments in ({"prompt_length": 1, "item_filter": [[0], None]}, {"after": [3]}):
        processor = TrieLogitsProcessor(trie, **arguments)
        processor(ids, scores)
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            for _ in range(5):
                processor(ids, scores)
            torch.cuda.synchronize()
        names = [event.name for event in profiled.events() if event.device_type.name == "CUDA"]
        assert names.count("trie_constrain_kernel") == 5
        assert all("Memcpy" in name for name in names if name != "trie_constrain_kernel")
        assert len(names) <= 10
