"""The GPU benchmarks with the kernels in Triton's interpreter; run by a test in its own process.

Tensors on the CPU say that they are on CUDA, and the operations' CPU implementations are those for CUDA. Prints how
many figures each benchmark gave.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys
from pathlib import Path
from typing import Any

import torch

sys.path += [str(Path(__file__).parents[1] / "kernels")]

from device_path import pretend_cuda
from gpu_check_sizes import TINY

from gentrie.bench.gpu import timing
from gentrie.bench.gpu.suite import SUITE
from gentrie.kernels import beam_step, trie_constrain, trie_mask


def counted(name: str, launch: Any, launches: dict[str, int]) -> Any:
    def count(*arguments: Any) -> Any:
        launches[name] = launches.get(name, 0) + 1
        return launch(*arguments)

    return count


if __name__ == "__main__":
    launches: dict[str, int] = {}
    for module in (beam_step, trie_mask):
        name = module.__name__.rpartition(".")[2]
        getattr(module, name).register_kernel("cpu")(counted(name, getattr(module, f"launch_{name}"), launches))
    launch = counted("trie_constrain", trie_constrain.launch_trie_constrain, launches)
    library = torch.library.Library("gentrie", "IMPL")
    library.impl("trie_constrain", launch, "CPU", allow_override=True)
    torch.cuda.is_current_stream_capturing = lambda: False
    timing.WARMUP = 0
    launches_of_losses = pretend_cuda()

    for name, sizes in TINY.items():
        figures = SUITE[name].measure(sizes, device="cpu", rounds=1)
        operations = [figure.median for figure in figures if figure.unit == "operations"]
        sys.stdout.write(f"{name} {len(figures)} {operations}\n")
    sys.stdout.write(" ".join(sorted({*launches, *launches_of_losses})) + "\n")
