"""Kernels compiled before the first request: for given shapes, into a folder that later processes take them from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from gentrie import _validate
from gentrie.kernels._launch import on_device
from gentrie.trie import TokenTrie
from gentrie.warmup._steps import Shapes, Step, serving, training
from gentrie.warmup._toolchain import ahead_of_time, check_toolchain

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_CACHE_DIR = "TRITON_CACHE_DIR"


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
    ``trie_constrain``, ``trie_walk``, ``trie_mask`` and ``trie_bitmask`` (with ``on_dead="eos"``, the default), with
    and without a filter; and ``beam_step`` as :class:`DeviceBeamStepper` calls it: for one trie, with logits of the
    vocabulary or of the catalog's tokens alone, and for a bank; without a filter, with one and with a bank; banks as
    they are by default.
    A later process that has ``TRITON_CACHE_DIR=cache_dir`` in its environment, the same versions of gentrie and Triton,
    the same kind of GPU and arguments of the same types compiles nothing. Triton tells sizes and strides apart by
    whether they are 1, multiples of 16, or neither, so that other batches of the same kind are served too. What this
    process has launched before is not compiled again, nor written: call it first.

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
    _validate.trie("trie", trie)
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
        steps = list(serving(trie, shapes, place))
        if features is not None:
            steps += training(trie, shapes, features, place)
        _run(steps, place, progress)
    return sorted(CompiledKernel(path.stem, path) for path in _machine_code(folder) - before)


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
