"""Every operation through torch's dispatcher with the kernels behind it; run by tests in processes of their own.

Tensors on the CPU say that they are on CUDA, and every operation's CPU implementation is the one for CUDA. What torch
asks of an operation alone, not of the function that launches its kernel, shows here. Kernels run in Triton's
interpreter or, with that off and ``GENTRIE_KERNELS=sm_90``, compiled. Prints the names of the operations and, in a line
of their own, of the compiled kernels that were run.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_INTERPRET", "1")

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path += [str(folder) for folder in (Path(__file__).parents[1], Path(__file__).parents[1] / "core")]

import torch
from device_path import pretend_cuda
from launched_kernels import modules
from ptx import triton_driver
from test_plain import Recorder, lost, served
from torch._library.custom_ops import CustomOpDef

from gentrie.kernels import _operations
from gentrie.kernels.trie_constrain import launch_trie_constrain


class OwnMemory(Recorder):
    """Refuses results that share memory with each other or with an argument."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        results = super().__torch_dispatch__(function, types, arguments, named)
        if function.namespace == "gentrie":
            returned = results if isinstance(results, tuple | list) else [results]
            taken = {address(argument) for argument in arguments if isinstance(argument, torch.Tensor)} - {0}
            for at in filter(None, map(address, (each for each in returned if each is not None))):
                assert at not in taken, f"results of {function} share memory"
                taken.add(at)
        return results


def address(tensor: torch.Tensor) -> int:
    """Of its memory; 0 without any."""
    return tensor.untyped_storage().data_ptr() if tensor.numel() else 0


def launch_everywhere() -> None:
    """From here on each operation launches its kernel."""
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, CustomOpDef) and "cuda" in value._backend_fns:
                value.register_kernel("cpu")(value._backend_fns["cuda"])
    library = torch.library.Library("gentrie", "IMPL")
    library.impl("trie_constrain", launch_trie_constrain, "CPU", allow_override=True)
    globals()["_library"] = library  # its implementations live as long as it does
    _operations.on_device = lambda tensor: nullcontext()
    _operations.usable = lambda: True
    pretend_cuda()


if __name__ == "__main__":
    expected = [*served("cpu"), *lost("cpu")]
    if "GENTRIE_KERNELS" in os.environ:
        triton_driver.install(os.environ["GENTRIE_KERNELS"])
    launch_everywhere()
    with OwnMemory() as recorder:
        found = [*served("cpu"), *lost("cpu")]
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted)
    print(" ".join(sorted(recorder.names)))
    print(" ".join(sorted(triton_driver.LAUNCHED)))
