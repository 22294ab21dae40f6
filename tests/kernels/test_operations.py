"""The operations as torch sees them: schemas, fakes, compilation, CUDA graphs; and modules without Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from launched_kernels import launched, modules
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceFilter, DeviceTrie, TrieBank
from gentrie.kernels.beam_step import beam_step
from gentrie.kernels.trie_constrain import trie_constrain
from gentrie.kernels.trie_mask import trie_mask
from gentrie.kernels.trie_walk import trie_walk

BEGIN, EOS = 0, 1
ROWS = [[5, 6, 7], [5, 6, 8], [5, 9], [10]]
OTHER_ROWS = [[5, 6, 11], [12, 13]]
WIDTH = 33
HISTORIES = torch.tensor([[3, BEGIN, 5, 6], [3, 3, BEGIN, 5], [3, BEGIN, 10, 3], [3, BEGIN, 10, EOS], [2, 2, 2, BEGIN]])


def trie_of(rows: list[list[int]]) -> TokenTrie:
    return TokenTrie.from_sequences(rows, vocab_size=32)


class Inputs:
    """Arguments of each operation for one trie with a filter."""

    def __init__(self, device: str) -> None:
        self.trie = trie_of(ROWS)
        self.resident = DeviceTrie(self.trie, device)
        self.filter = DeviceFilter(ItemFilter.from_item_ids(self.trie, [0, 2]), device)
        self.eos = torch.tensor([EOS], device=device)
        self.states = torch.tensor([self.trie.walk([5, 6]), self.trie.walk([5]), -2, -1, 0], device=device)
        self.logits = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)).to(device)
        self.tries = (self.resident.descriptors, None, self.filter.descriptors, None)

    def walk(self) -> tuple[Any, ...]:
        return HISTORIES.to(self.resident.device), None, None, BEGIN, self.eos, *self.tries

    def constrain(self) -> tuple[Any, ...]:
        faults, arrivals = torch.zeros(3, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
        device = self.resident.device
        how = None, None, BEGIN, self.eos, True, faults.to(device), arrivals.to(device)
        return HISTORIES.to(device), self.logits, *how, *self.tries

    def mask(self) -> tuple[Any, ...]:
        return self.logits.clone(), self.states, BEGIN, self.eos, True, *self.tries

    def beam(self) -> tuple[Any, ...]:
        scores = torch.arange(5, device=self.logits.device) * -0.5
        return self.logits, self.states, scores, 5, 3, True, None, False, 0, *self.tries


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def inputs(request: pytest.FixtureRequest) -> Inputs:
    return Inputs(request.param)


@pytest.mark.parametrize("operation", ["walk", "constrain", "mask", "beam"])
def test_operations_keep_the_rules_of_torch(inputs: Inputs, operation: str):
    function = {"walk": trie_walk, "constrain": trie_constrain, "mask": trie_mask, "beam": beam_step}[operation]
    torch.library.opcheck(function, getattr(inputs, operation)())


def test_operations_compile_as_one_graph(inputs: Inputs):
    def step(walk: Any, mask: Any, constrain: Any, beam: Any) -> Any:
        states = trie_walk(*walk)
        trie_mask(mask[0], states, *mask[2:])
        constrained = trie_constrain(*constrain)
        return states, mask[0], constrained, constrain[7] + 1, beam_step(beam[0] + 1, states, *beam[2:])

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    eager = step(inputs.walk(), inputs.mask(), inputs.constrain(), inputs.beam())
    traced = compiled(inputs.walk(), inputs.mask(), inputs.constrain(), inputs.beam())
    torch.testing.assert_close(traced, eager, rtol=0, atol=0)
    assert eager[0].tolist() == [inputs.trie.walk([5, 6]), inputs.trie.walk([5]), -2, -2, 0]


@pytest.mark.gpu
def test_captured_graphs_see_new_states_and_a_swapped_catalog():
    """Rows of the former catalog finish on it, new ones start on the new one, in one captured graph."""
    old, new = trie_of(ROWS), trie_of(OTHER_ROWS)
    bank = TrieBank("cuda", capacity=2, max_branching=8)
    slot = bank.add(DeviceTrie(old, "cuda"))
    eos = torch.tensor([EOS], device="cuda")
    history = HISTORIES.to("cuda")
    rows = torch.full((len(history),), slot, device="cuda")
    scores = torch.zeros(len(history), device="cuda")
    logits = torch.randn(len(history), WIDTH, device="cuda")
    masked = torch.empty_like(logits)
    faults = torch.zeros(3, dtype=torch.int32, device="cuda")
    report = faults, torch.zeros(1, dtype=torch.int64, device="cuda")

    def step() -> tuple[torch.Tensor, ...]:
        states = trie_walk(history, None, None, BEGIN, eos, bank.descriptors, rows, None, None)
        masked.copy_(logits)
        tries = bank.descriptors, rows, None, None
        trie_mask(masked, states, BEGIN, eos, True, *tries)
        constrained = trie_constrain(history, logits, None, None, BEGIN, eos, True, *report, *tries)
        return states, *beam_step(logits, states, scores, 1, 4, False, None, False, 8, *tries), constrained

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    def check(tries: list[TokenTrie], histories: torch.Tensor) -> None:
        history.copy_(histories)
        graph.replay()
        torch.cuda.synchronize()
        for row, trie in enumerate(tries):
            resident = DeviceTrie(trie, "cpu")
            ids = histories[row : row + 1]
            state = trie_walk(ids, None, None, BEGIN, eos.cpu(), resident.descriptors, None, None, None)
            assert captured[0][row].item() == state.item()
            expected = logits[row : row + 1].cpu()
            best = beam_step(
                expected, state, torch.zeros(1), 1, 4, False, None, False, 8, resident.descriptors, None, None, None
            )
            trie_mask(expected, state, BEGIN, eos.cpu(), True, resident.descriptors, None, None, None)
            assert torch.equal(masked[row : row + 1].cpu(), expected)
            assert torch.equal(captured[5][row : row + 1].cpu(), expected)
            assert captured[3][row].tolist() == best[2][0].tolist()
            assert captured[4][row].tolist() == best[3][0].tolist()

    check([old] * 5, HISTORIES)
    changed = torch.tensor([[3, 3, BEGIN, 5], [3, BEGIN, 5, 6], [2, 2, 2, BEGIN], [BEGIN, 5, 6, 8], [3, BEGIN, 5, 9]])
    check([old] * 5, changed)
    former = bank.swap(slot, DeviceTrie(new, "cuda"))
    rows[:2] = former
    check([old, old, new, new, new], changed)
    bank.remove(former)
    rows[:2] = slot
    check([new] * 5, changed)


@pytest.mark.gpu
def test_operations_do_not_wait_for_the_host():
    inputs = Inputs("cuda")
    operations = trie_walk, trie_mask, trie_constrain, beam_step
    arguments = inputs.walk(), inputs.mask(), inputs.constrain(), inputs.beam()
    for operation, given in zip(operations, arguments, strict=True):
        operation(*given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for operation, given in zip(operations, arguments, strict=True):
            operation(*given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_python(code: list[str], **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *code], capture_output=True, text=True, env={**clean, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_operations_with_kernels_behind_them(tmp_path: Path):
    """As on a GPU: through the dispatcher, which refuses what the launching functions may return."""
    pytest.importorskip("triton")
    values = [value for module in modules() for value in vars(module).values()]
    defined = {value._qualname for value in values if isinstance(value, CustomOpDef)}
    defined |= {value._schema.name for value in values if isinstance(value, OpOverload)}
    script = str(Path(__file__).with_name("registered_path.py"))
    assert set(run_python([script]).split()) == defined
    compiled = {"GENTRIE_KERNELS": "sm_90", "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    operations, kernels = run_python([script], **compiled).splitlines()
    assert set(operations.split()) == defined
    assert set(kernels.split()) == launched()


def test_without_triton_everything_imports_and_the_cpu_works():
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else found(name, *rest)
import torch
from gentrie import TokenTrie
from gentrie.device import DeviceTrie
from gentrie.kernels import beam_step, trie_constrain, trie_mask, trie_walk
trie = DeviceTrie(TokenTrie.from_sequences([[5, 6], [7]], vocab_size=9), "cpu")
eos = torch.tensor([1])
states = trie_walk.trie_walk(torch.tensor([[0, 5]]), None, None, 0, eos, trie.descriptors, None, None, None)
logits = torch.zeros(1, 9)
trie_mask.trie_mask(logits, states, 0, eos, True, trie.descriptors, None, None, None)
assert logits.isneginf().sum() == 8 and logits[0, 6] == 0
assert not torch.cuda.is_initialized()
print("done")
"""
    assert run_python(["-c", code]).strip() == "done"
