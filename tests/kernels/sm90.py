"""Compiles kernels for Hopper without a GPU: ``python sm90.py``, in a process without TRITON_INTERPRET.

Each case is a kernel, the types of its arguments (None: not given) and its constants. Prints one line of JSON a case:
name, spilled bytes a thread, shared memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gentrie.kernels.trie_walk import trie_walk_kernel

TRIE = {"descriptors": "*i64", "num_tries": "i32", "trie_index": "*i32"}
FILTERS = {"filters": "*i64", "num_filters": "i32", "filter_index": "*i32"}
NO_FILTERS = {"filters": None, "num_filters": "i32", "filter_index": None}
LOGITS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}

Case = tuple[str, Any, dict[str, str | None], dict[str, int], int]


def cases() -> Iterator[Case]:
    for mode, starts in (("triggered", None), ("whole", "*i64")):
        for filters, given in (("", NO_FILTERS), ("_filtered", FILTERS)):
            types = {
                "history": "*i64",
                "history_stride": "i64",
                "token_stride": "i64",
                "max_length": "i32",
                "lengths": "*i64",
                "starts": starts,
                "starts_stride": "i32",
                "begin_token": "i32",
                "eos": "*i64",
                "num_eos": "i32",
                "states": "*i64",
            }
            constants = {"BLOCK": 512, "LANES": 128, "EOS": 2}
            yield f"trie_walk_{mode}{filters}", trie_walk_kernel, types | TRIE | given, constants, 4


def compile_case(case: Case) -> dict[str, Any]:
    name, kernel, types, constants, num_warps = case
    absent = {key: None for key, kind in types.items() if kind is None}
    signature = {key: types.get(key) or "constexpr" for key in kernel.arg_names}
    source = ASTSource(kernel, signature, {**absent, **constants})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    return {"name": name, "shared": compiled.metadata.shared, "cubin": len(compiled.asm["cubin"]), **_usage(compiled)}


def _usage(compiled: Any) -> dict[str, int]:
    """Registers and local memory, from the assembler's own report."""
    with tempfile.NamedTemporaryFile(suffix=".ptx", mode="w") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", file.name, "-o", "/dev/null"]
        report = subprocess.run(command, capture_output=True, text=True).stderr
    found = re.search(r"Used (\d+) registers", report), re.search(r"(\d+) bytes spill stores", report)
    return {key: int(match[1]) for key, match in zip(("registers", "spilled"), found, strict=True) if match}


if __name__ == "__main__":
    for each in cases():
        print(json.dumps(compile_case(each)), flush=True)
