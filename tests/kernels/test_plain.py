"""Without Triton or a C compiler: every operation in plain torch, on any device's tensors, with one warning."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_cases import cases, filter_of, states_of, with_closed
from hypothesis import given
from hypothesis import strategies as st
from launched_kernels import modules
from strategies import BEGIN, EOS, OTHER_EOS, examples
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gentrie import TokenTrie, training
from gentrie.device import DeviceFilter, DeviceTrie, fill_bitmask
from gentrie.generation import TrieLogitsProcessor
from gentrie.kernels import _launch
from gentrie.kernels._operations import or_torch
from gentrie.kernels.beam_step import _beam_step, beam_step
from gentrie.kernels.bear_loss import bear_loss
from gentrie.kernels.label_log_probs import label_log_probs
from gentrie.kernels.label_nodes import label_nodes
from gentrie.kernels.tables import make_descriptors
from gentrie.kernels.topb_threshold import topb_threshold
from gentrie.kernels.trie_bitmask import _trie_bitmask, trie_bitmask
from gentrie.kernels.trie_constrain import trie_constrain
from gentrie.kernels.trie_linear import trie_linear
from gentrie.kernels.trie_mask import _trie_mask, trie_mask
from gentrie.kernels.trie_walk import _trie_walk, trie_walk


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where the package is missing."""
    monkeypatch.setattr(_launch, "HAS_TRITON", False)
    _launch.usable.cache_clear()
    yield
    _launch.usable.cache_clear()


@examples(40)
@given(st.data())
def test_tries_without_the_core(data: st.DataObject):
    """On a GPU there is no core to ask: the same arrays, read by torch, against the operations on the CPU."""
    case = data.draw(cases(needs_eos=True))
    item_filter = with_closed(data.draw, case.trie, filter_of(case))
    resident = DeviceTrie(case.trie, "cpu")
    tables = replace(resident.tables, lookups=None, key=resident.tables.key + 2**40)
    allowed = None if item_filter is None else DeviceFilter(item_filter, "cpu")
    filters = (None if allowed is None else allowed.descriptors), None
    ours, core = (make_descriptors([tables], resident.device), None, *filters), (resident.descriptors, None, *filters)
    known = states_of(case.trie)
    states = torch.tensor(data.draw(st.lists(st.sampled_from([-3, -2, -1, *known]), min_size=1, max_size=6)))
    eos = torch.tensor(data.draw(st.sampled_from([[], [EOS], [EOS, OTHER_EOS]])), dtype=torch.int64)
    begin, may_end = data.draw(st.sampled_from([-1, BEGIN])), data.draw(st.booleans())

    tokens = st.integers(0, case.trie.vocab_size - 1) | st.sampled_from(case.rules.oracle.sequences).map(lambda s: s[0])
    history = torch.tensor(data.draw(st.lists(st.lists(tokens, min_size=4, max_size=4), min_size=1, max_size=4)))
    starts = data.draw(st.sampled_from([None, torch.tensor([1])]))
    walk = history, None, starts, BEGIN, eos
    assert torch.equal(_trie_walk(*walk, *ours), trie_walk(*walk, *core))

    logits = torch.randn(len(states), case.trie.vocab_size + 1)
    masked, expected = logits.clone(), logits.clone()
    _trie_mask(masked, states, begin, eos, may_end, *ours)
    trie_mask(expected, states, begin, eos, may_end, *core)
    assert torch.equal(masked, expected)

    bits = torch.zeros(len(states), logits.shape[1] // 32 + 1, dtype=torch.int32)
    alike = bits + 1
    _trie_bitmask(bits, states, begin, eos, may_end, *ours)
    trie_bitmask(alike, states, begin, eos, may_end, *core)
    assert torch.equal(bits, alike)

    beams = logits, states, torch.zeros(len(states)), len(states), 3, data.draw(st.booleans()), None, False, 0
    for found, wanted in zip(_beam_step(*beams, *ours), beam_step(*beams, *core), strict=True):
        assert torch.equal(found, wanted)


def test_operations_fall_back_with_one_warning(no_triton: None):
    def launch(*arguments: Any) -> None:
        raise AssertionError("nothing can be launched")

    plain = or_torch(launch, lambda first, second: first + second)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [plain(torch.tensor(1), i).item() for i in range(3)] == [1, 2, 3]
        assert not _launch.usable()
    assert [str(warning.message) for warning in caught] == [
        "gentrie uses plain torch on the GPU, which is slow: the package triton is not installed"
    ]


@pytest.mark.parametrize(
    ("compiler", "header", "message"),
    [
        (None, True, r"no C compiler was found, which Triton needs \(gcc or clang\)"),
        ("here", False, r"Python\.h, which Triton needs, is not in "),
        ("here", True, None),
    ],
)
def test_what_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str | None, header: bool, message: str | None
):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(_launch, "HAS_TRITON", True)
    monkeypatch.setattr(_launch.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(_launch.sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    if header:
        (tmp_path / "Python.h").touch()
    _launch.usable.cache_clear()
    try:
        if message is None:
            assert _launch.usable()
        else:
            with pytest.warns(RuntimeWarning, match=message):
                assert not _launch.usable()
    finally:
        _launch.usable.cache_clear()


def test_the_compiler_that_is_asked_for_has_to_be_there(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_launch, "HAS_TRITON", True)
    monkeypatch.setenv("CC", "/nowhere/cc")
    _launch.usable.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match=r"no C compiler was found, which Triton needs \(/nowhere/cc\)"):
            assert not _launch.usable()
    finally:
        _launch.usable.cache_clear()


def test_every_module_imports_without_triton():
    code = """
import importlib.util, pkgutil, sys
sys.modules["triton"] = None
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import gentrie.device, gentrie.kernels
for module in pkgutil.iter_modules(gentrie.kernels.__path__):
    importlib.import_module("gentrie.kernels." + module.name)
    print(module.name)
"""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=kept, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {f"gentrie.kernels.{name}" for name in done.stdout.split()} == {module.__name__ for module in modules()}


TRIE = TokenTrie.from_sequences([[5, 6, 7], [5, 6, 8], [5, 9], [10]], vocab_size=40, end_token_id=EOS)


def served(device: str) -> list[torch.Tensor]:
    """What the public parts on tries give for tensors of one device."""
    ids = torch.tensor([[3, 5, 6], [3, 5, 9], [3, 10, EOS], [3, 4, 4]], device=device)
    logits = torch.randn(4, 41, generator=torch.Generator().manual_seed(0)).to(device)
    resident = DeviceTrie(TRIE, device)
    masked = TrieLogitsProcessor(TRIE, prompt_length=1, item_filter=[0, 2])(ids, logits)
    eos = torch.tensor([EOS], device=device)
    tries = resident.descriptors, None, None, None
    closed = logits.clone()
    states = trie_walk(ids, None, torch.tensor([1], device=device), -1, eos, *tries)
    mask = torch.zeros(4, 2, dtype=torch.int32, device=device)
    fill_bitmask(mask, states, resident, eos_token_ids=eos)
    trie_mask(closed, states, -1, eos, True, *tries)
    nodes = label_nodes(ids, None, 3, 40, resident.descriptors)
    report = torch.zeros(3, dtype=torch.int32, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    start = torch.tensor([1], device=device)
    constrained = trie_constrain(ids, logits, start, None, -1, eos, True, *report, *tries)
    return [
        masked,
        closed,
        constrained,
        *report,
        states,
        mask,
        *nodes,
        *beam_step(logits, states, logits[:, 0], 2, 3, True, None, False, 0, *tries),
    ]


def lost(device: str) -> list[torch.Tensor]:
    """The same of the losses, with gradients."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 40, generator=generator).to(device).requires_grad_()
    hidden = torch.randn(3, 8, generator=generator).to(device).requires_grad_()
    weight = torch.randn(40, 8, generator=generator).to(device).requires_grad_()
    labels = torch.tensor([5, 6, 9], device=device)
    csr = {
        "indptr": torch.tensor([0, 2, 3, 5], device=device),
        "tokens": torch.tensor([5, 10, 6, 6, 9], device=device),
    }
    values = trie_linear(hidden, weight, torch.arange(4, device=device), csr["indptr"], csr["tokens"], 5, softcap=3.0)
    log_probs, thresholds = label_log_probs(logits, labels, beam_width=2, **csr)
    title = torch.tensor([[5, 6, 7, EOS], [10, EOS, -100, -100]], device=device)
    scores = torch.randn(2, 4, 40, generator=generator).to(device).requires_grad_()
    losses = bear_loss(logits, labels, beam_width=2, **csr).losses
    whole = training.bear_loss(scores, title, trie=TRIE, beam_width=2)
    how = csr["indptr"], csr["tokens"], None, None, None, 2, 1.0, 1.0, "regularized", "positive"
    compiled = torch.ops.gentrie.bear_loss(logits.detach(), labels, None, *how)  # as under torch.compile
    scaled = torch.ops.gentrie.scale_rows(logits.detach(), None, losses.detach())
    total = losses.sum() + log_probs.sum() + values.square().sum() + whole
    found = [*topb_threshold(logits, 3), log_probs, thresholds, losses, values, whole, *compiled, scaled]
    return [*found, *torch.autograd.grad(total, (logits, hidden, weight, scores))]


class Recorder(TorchDispatchMode):
    """Which operations of ours are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        if function.namespace == "gentrie":
            self.names.add(function.name().partition(".")[0])
        return function(*arguments, **(named or {}))


def test_no_operation_is_left_out():
    """What is compared below between devices calls every operation that there is."""
    with Recorder() as recorder:
        served("cpu")
        lost("cpu")
    values = [value for module in modules() for value in vars(module).values()]
    defined = {value._qualname for value in values if isinstance(value, CustomOpDef)}
    defined |= {value._schema.name for value in values if isinstance(value, OpOverload)}
    assert recorder.names == defined


@pytest.mark.gpu
def test_cuda_tensors_fall_back(no_triton: None, monkeypatch: pytest.MonkeyPatch):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        for run in (served, lost):
            for found, expected in zip(run("cuda"), run("cpu"), strict=True):
                assert found.is_cuda
                torch.testing.assert_close(found.cpu(), expected)
    assert sum("uses plain torch on the GPU" in str(warning.message) for warning in caught) == 1


def test_losses_in_plain_torch_by_definition():
    """What the fallback of the losses computes, on the CPU, against softmax over each row's tokens."""
    found = lost("cpu")
    logits = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    rows = [logits[0, [5, 10]], logits[1, [6]], logits[2, [6, 9]]]
    wanted = [row.log_softmax(0)[place] for row, place in zip(rows, [0, 0, 1], strict=True)]
    torch.testing.assert_close(found[0], logits.topk(3).values[:, 2])
    torch.testing.assert_close(found[1], logits.logsumexp(1))
    torch.testing.assert_close(found[2], torch.stack(wanted))
    torch.testing.assert_close(
        found[3], torch.stack([row.log_softmax(0).topk(min(2, len(row))).values[-1] for row in rows])
    )
    assert all(np.isfinite(each.detach().numpy()).all() for each in found)
