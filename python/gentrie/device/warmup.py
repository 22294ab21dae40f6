"""Kernels compiled before the first request: for given shapes, into a folder that later processes take them from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from gentrie import _validate
from gentrie.bitmask import get_bitmask_shape
from gentrie.device._toolchain import ahead_of_time, check_toolchain
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.item_filter import ItemFilter
from gentrie.kernels._launch import on_device
from gentrie.kernels.beam_step import launch_beam_step
from gentrie.kernels.trie_bitmask import launch_trie_bitmask
from gentrie.kernels.trie_constrain import launch_trie_constrain
from gentrie.kernels.trie_mask import launch_trie_mask
from gentrie.kernels.trie_walk import launch_trie_walk
from gentrie.trie import TokenTrie

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_LENGTHS = (16, 17)  # of histories: Triton compiles anew for multiples of 16
_CACHE_DIR = "TRITON_CACHE_DIR"

Step = tuple[str, Callable[[], object]]


class CompiledKernel(NamedTuple):
    """A kernel that was not in the folder before.

    Attributes
    ----------
    name
        Of the kernel; there is one for each kind of arguments.
    path
        Its machine code.
    """

    name: str
    path: Path


class Shapes(NamedTuple):
    """What kernels are compiled for; see :func:`warmup`."""

    num_prompts: int
    num_beams: int
    vocab_size: int
    dtype: torch.dtype
    begin_token_id: int
    num_eos: int
    over_vocab: bool


def warmup(
    trie: TokenTrie,
    cache_dir: str | os.PathLike[str],
    *,
    num_prompts: int = 1,
    num_beams: int = 10,
    dtype: torch.dtype = torch.bfloat16,
    vocab_size: int | None = None,
    begin_token_id: int | None = None,
    num_eos_tokens: int = 1,
    scope: str = "trie",
    hidden_size: int | None = None,
    device: torch.device | str = "cuda",
    arch: str | None = None,
    progress: bool = False,
) -> list[CompiledKernel]:
    """Compile the kernels of serving, and those of training on request, for given shapes.

    The operations run once on the device, with tensors as the processor and the searches hand them over:
    ``trie_constrain``, ``trie_walk``, ``trie_mask``, ``trie_bitmask`` (with ``on_dead="eos"``, the default) and
    ``beam_step``, with and without a filter. A later process that has ``TRITON_CACHE_DIR=cache_dir`` in its
    environment, the same versions of gentrie and Triton, the same kind of GPU and arguments of the same types compiles
    nothing. Triton tells sizes and strides apart by whether they are 1, multiples of 16, or neither, so that other
    batches of the same kind are served too. What this process has launched before is not compiled again, nor written:
    call it first.

    Parameters
    ----------
    trie
        The catalog that will be served, or one whose nodes are as wide.
    cache_dir
        Folder; made if it is missing.
    num_prompts, num_beams
        Prompts of a batch, and beams of each.
    dtype
        Of the logits: bfloat16, float16 or float32. ``generate`` hands float32 to processors, whatever the model's.
    vocab_size
        Columns of the logits; default the trie's.
    begin_token_id
        Where responses are triggered; None: whole responses.
    num_eos_tokens
        End-of-sequence tokens.
    scope
        ``"trie"`` or ``"vocab"``, over which scores of beams are normalised.
    hidden_size
        Compile the losses too, forward and backward, from logits and from hidden states of this many features.
    device
        The GPU.
    arch
        ``"sm_90"`` and the like: compile for such GPUs where there is none. Not for the losses. What Triton builds for
        the driver, by the C compiler, is left to the first launch.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    list[CompiledKernel]
        What was compiled, by name. Empty where the folder had everything.

    Raises
    ------
    ValueError, TypeError
        For values out of range.
    RuntimeError
        Where nothing can be compiled: no CUDA device, no Triton, no C compiler, or Triton's interpreter is on.
    OSError
        If the folder cannot be written.
    """
    if not isinstance(trie, TokenTrie):
        raise TypeError(f"trie is a {type(trie).__name__}, expected a TokenTrie")
    if dtype not in _DTYPES:
        raise ValueError(f"dtype={dtype} is not one of {', '.join(map(str, _DTYPES))}")
    shapes = Shapes(
        _validate.integer("num_prompts", num_prompts, 1, 2**20),
        _validate.integer("num_beams", num_beams, 1, 512),
        trie.vocab_size
        if vocab_size is None
        else _validate.integer("vocab_size", vocab_size, trie.vocab_size, 2**31 - 1),
        dtype,
        -1 if begin_token_id is None else _validate.integer("begin_token_id", begin_token_id, 0, trie.vocab_size - 1),
        _validate.integer("num_eos_tokens", num_eos_tokens, 0, trie.vocab_size),
        _validate.choice("scope", scope, ("trie", "vocab")) == "vocab",
    )
    if hidden_size is not None and arch is not None:
        raise ValueError(f"hidden_size={hidden_size}: the losses are compiled on a device, leave arch out")
    features = None if hidden_size is None else _validate.integer("hidden_size", hidden_size, 1, 2**20)
    check_toolchain(arch)
    folder = Path(cache_dir)
    with _cache_in(folder), ahead_of_time(arch):
        folder.mkdir(parents=True, exist_ok=True)
        before = _machine_code(folder)
        place = torch.device("cpu" if arch is not None else device)
        steps = list(_serving(trie, shapes, place))
        if features is not None:
            steps += _training(trie, shapes, features, place)
        _run(steps, place, progress)
    return sorted(CompiledKernel(path.stem, path) for path in _machine_code(folder) - before)


def _serving(trie: TokenTrie, shapes: Shapes, device: torch.device) -> Iterator[Step]:
    """Each operation as the processor and the searches call it."""
    resident, everything = DeviceTrie(trie, device), DeviceFilter(ItemFilter.all_items(trie), device)
    rows = shapes.num_prompts * shapes.num_beams
    eos = torch.arange(shapes.num_eos, device=device)
    states = torch.zeros(rows, dtype=torch.int64, device=device)
    logits = torch.zeros(rows, shapes.vocab_size, dtype=shapes.dtype, device=device)
    mask = torch.empty(get_bitmask_shape(rows, shapes.vocab_size), dtype=torch.int32, device=device)
    starts = states if shapes.begin_token_id < 0 else None
    control = shapes.begin_token_id, eos
    first = None if starts is None else starts[:1]  # one entry for all rows, as one filter
    report = torch.zeros(2, dtype=torch.int32, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    for filters in (None, everything.descriptors):
        tries = resident.descriptors, None, filters, None if filters is None else torch.zeros_like(states)
        each = None if tries[3] is None else tries[3][:1]
        for length in _LENGTHS:
            history = torch.zeros(rows, length, dtype=torch.int64, device=device)
            yield "trie_walk", _call(launch_trie_walk, history, None, starts, *control, *tries)
            step = (history, logits, first, None, *control, True, *report, *tries[:3], each)
            yield "trie_constrain", _call(launch_trie_constrain, *step)
        yield "trie_mask", _call(launch_trie_mask, logits, states, *control, True, *tries)
        yield "trie_bitmask", _call(launch_trie_bitmask, mask, states, *control, True, *tries)
        for beams in sorted({1, shapes.num_beams}):  # behind the prompts, and at every later step
            part = slice(shapes.num_prompts * beams)
            index = tries[3] if tries[3] is None else tries[3][part]
            scores = torch.zeros(shapes.num_prompts * beams, device=device)
            for width in sorted({shapes.num_beams, min(512, 2 * shapes.num_beams)}):  # twice where lengths differ
                how = beams, width, shapes.over_vocab, None, False, trie.max_branching
                yield "beam_step", _call(launch_beam_step, logits[part], states[part], scores, *how, *tries[:3], index)


def _training(trie: TokenTrie, shapes: Shapes, hidden_size: int, device: torch.device) -> Iterator[Step]:
    """The losses of a batch of titles, forward and backward."""
    from gentrie.training import bear_loss, linear_bear_loss

    labels = _titles(trie, shapes.num_prompts).to(device)
    named: dict[str, Any] = {
        "trie": trie,
        "beam_width": shapes.num_beams,
        "scope": "vocab" if shapes.over_vocab else "trie",
    }

    def tensor(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=shapes.dtype, device=device, requires_grad=True)

    def from_logits(form: Literal["regularized", "reweighted"]) -> None:
        bear_loss(tensor(*labels.shape, shapes.vocab_size), labels, form=form, **named).backward()

    def from_hidden() -> None:
        hidden, weight = tensor(*labels.shape, hidden_size), tensor(shapes.vocab_size, hidden_size)
        linear_bear_loss(hidden, weight, labels, **named).backward()

    for form in ("regularized", "reweighted"):
        yield f"bear_loss, {form}", _call(from_logits, form)
    yield "linear_bear_loss", from_hidden


def _titles(trie: TokenTrie, count: int) -> torch.Tensor:
    """Sequences as labels int64 [count, length], -100 behind their ends; the i-th takes the i-th branches."""
    rows = torch.full((count, trie.max_depth), -100)
    for row in range(count):
        state, depth = 0, 0
        while len(tokens := trie.next_tokens(state)):
            token = int(tokens[row % len(tokens)])
            rows[row, depth], state, depth = token, trie.advance(state, token), depth + 1
    return rows


def _call(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)


def _run(steps: Sequence[Step], device: torch.device, progress: bool) -> None:
    from tqdm import tqdm

    with tqdm(steps, desc="compile", unit="op", disable=not progress) as bar:
        for name, step in bar:
            bar.set_postfix_str(name)
            with on_device(torch.empty(0, device=device)):
                step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _machine_code(folder: Path) -> set[Path]:
    return set(folder.glob("*/*.cubin"))


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Has Triton read and write compiled kernels there."""
    former = os.environ.get(_CACHE_DIR)
    os.environ[_CACHE_DIR] = str(folder.absolute())
    try:
        yield
    finally:
        if former is None:
            del os.environ[_CACHE_DIR]
        else:
            os.environ[_CACHE_DIR] = former
