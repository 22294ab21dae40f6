"""Compiles every kernel of the losses for sm_90, as its launcher would launch it; run by a test in its own process.

A process that has Triton's interpreter on cannot compile. No device is needed: the launchers get tensors on the CPU,
and instead of a launch their arguments make a signature.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from launched_kernels import launched, modules
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}
OPTIONS = ("num_warps", "num_stages")


class Compiles:
    """In the place of a kernel: ``kernel[grid](...)`` compiles it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return self.compile

    def compile(self, *arguments: Any, **named: Any) -> None:
        options = {name: named.pop(name) for name in OPTIONS if name in named}
        values = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
        signature, constants, attributes = {}, {}, {}
        for place, name in enumerate(self.kernel.arg_names):
            value = values[name]
            if isinstance(value, torch.Tensor):
                signature[name] = "*" + TYPES[value.dtype]
            elif type(value) is float:
                signature[name] = "fp32"
            elif type(value) is int and value != 1 and name not in named:
                signature[name] = "i32" if abs(value) < 2**31 else "i64"
            else:
                signature[name] = "constexpr"
                constants[(place,)] = value
            if isinstance(value, torch.Tensor) or (type(value) is int and name not in named and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        print(self.kernel.__name__, len(compiled.asm["cubin"]))


MODULES = modules()


def replace_kernels() -> None:
    for module in MODULES:
        for name in launched() & vars(module).keys():
            setattr(module, name, Compiles(getattr(module, name)))


def function(name: str) -> Any:
    """A function or class of ``gentrie.kernels``, in whichever module it is."""
    return next(getattr(module, name) for module in MODULES if hasattr(module, name))


def rows() -> None:
    """With valid tokens, which takes the branches of whole rows too."""
    logits, vector = torch.empty(4, 131072, dtype=torch.bfloat16), torch.empty(4)
    labels, tau = torch.zeros(4, dtype=torch.int64), torch.ones(())
    csr = (torch.zeros(5, dtype=torch.int64), torch.zeros(8, dtype=torch.int32), labels, tau)
    function("launch_topb_threshold")(logits, 10, None, *csr, vector, vector)
    function("launch_log_prob_gradient")(logits, labels, labels, *csr, vector, vector, logits)
    results = function("BearLosses")(vector, vector, vector)
    function("launch_bear_loss")(
        logits, labels, labels, *csr, vector, 10, 0.5, 2.0, "regularized", "positive", logits, results
    )
    function("launch_scale_rows")(logits, labels, vector)


def ragged() -> None:
    values, vector = torch.empty(64, dtype=torch.float64), torch.empty(4, dtype=torch.float64)
    labels, indptr = torch.zeros(4, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)
    function("launch_topb_threshold")(values, 10, None, indptr, None, None, None, vector, vector)
    function("launch_log_prob_gradient")(
        values, labels, None, indptr, None, None, None, vector, vector, torch.empty_like(values)
    )


def linear(dtype: torch.dtype, softcap: float | None) -> None:
    hidden, weight = torch.empty(4, 3072, dtype=dtype), torch.empty(128, 3072, dtype=dtype)
    groups, tokens, values = torch.tensor([0, 4]), torch.arange(16, dtype=torch.int32), torch.empty(64)
    shared = (groups, groups * 4, tokens)
    bias = None if softcap is None else torch.empty(128, dtype=dtype)
    function("launch_trie_linear")(hidden, weight, bias, None, *shared, softcap, 1.0, values)
    function("launch_hidden_gradient")(values, values, weight, None, *shared, softcap, 1.0, hidden)
    function("head_gradient")(
        values, values, hidden, weight, groups[1:], *shared, softcap, 1.0, torch.empty(0 if bias is None else 128)
    )


def labels(states: torch.Tensor | None) -> None:
    """Walked from the first label on, or from the states given."""
    descriptors = torch.zeros(1, 32, dtype=torch.int64)
    function("launch_label_nodes")(torch.zeros(4, 16, dtype=torch.int64), states, -100, 131072, descriptors)


if __name__ == "__main__":
    replace_kernels()
    labels(None)
    labels(torch.zeros(4, 16, dtype=torch.int64))
    rows()
    ragged()
    linear(torch.bfloat16, None)
    linear(torch.float32, 30.0)
