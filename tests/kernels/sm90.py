"""Compiles kernels for Hopper without a GPU: ``python sm90.py``, in a process without TRITON_INTERPRET.

Each case is a kernel, the types of its arguments (None: not given) and its constants. Prints one line of JSON a case:
name, kernel, bytes of shared memory, bytes of machine code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gentrie.kernels.beam_reduce import beam_reduce_kernel
from gentrie.kernels.beam_step import beam_select_kernel, row_parts_kernel
from gentrie.kernels.trie_bitmask import trie_bitmask_kernel
from gentrie.kernels.trie_constrain import trie_constrain_kernel
from gentrie.kernels.trie_mask import trie_mask_kernel
from gentrie.kernels.trie_walk import trie_walk_kernel

TRIE = {"descriptors": "*i64", "num_tries": "i32", "trie_index": "*i32"}
FILTERS = {"filters": "*i64", "num_filters": "i32", "filter_index": "*i32"}
NO_FILTERS = {"filters": None, "num_filters": "i32", "filter_index": None}
LOGITS = {"bf16": "*bf16", "fp16": "*fp16", "fp32": "*fp32"}

Case = tuple[str, Any, dict[str, str | None], dict[str, int], int]


def cases() -> Iterator[Case]:
    for mode, starts, given in (("triggered", None, NO_FILTERS), ("whole", "*i64", FILTERS)):
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
        yield f"trie_walk_{mode}", trie_walk_kernel, types | TRIE | given, constants, 4
        types = dict.fromkeys(("num_words", "num_blocks", "begin_token", "num_eos", "num_eos_dead"), "i32")
        types |= {"bitmask": "*i32", "row_stride": "i64", "word_stride": "i32", "states": "*i64", "eos": "*i64"}
        constants = {"WORDS": 128, "LANES": 256}
        yield f"trie_bitmask_{mode}", trie_bitmask_kernel, types | TRIE | given, constants, 4
    for name, kind in LOGITS.items():
        yield from logits_cases(name, {"logits": kind, "row_stride": "i64", "token_stride": "i32", "width": "i32"})
    lists = {"kept_scores": "*fp32", "kept_codes": "*i64", "num_kept": "*i32"}
    lists |= {"out_scores": "*fp32", "out_codes": "*i64", "num_out": "*i32", "best_scores": "*fp32"}
    lists |= {name: "*i64" for name in ("states", "parents", "tokens", "next_states")}
    lists |= {"beam_scores": "*fp32", "part_max": "*fp32", "part_sum": "*fp32"}
    lists |= dict.fromkeys(("num_entries", "num_groups", "num_beams", "num_tiles", "num_parts", "beam_width"), "i32")
    for entries, kept, first, last in ((128, 128, 1, 1), (64, 16, 1, 0), (32, 512, 0, 1)):
        constants = {
            "ENTRIES": entries,
            "KEPT": kept,
            "PARTS": 1,
            "CHUNK": min(kept, 32),
            "FEW": entries * kept // 16,
        }
        constants |= {"IS_FIRST": first, "IS_LAST": last}
        yield (
            f"beam_reduce_{entries}x{kept}",
            beam_reduce_kernel,
            lists | TRIE,
            constants,
            min(16, entries * kept // 512),
        )


def logits_cases(name: str, logits: dict[str, str | None]) -> Iterator[Case]:
    """Kernels that read logits of one type."""
    mask = dict.fromkeys(("num_blocks", "begin_token", "num_eos", "num_eos_dead"), "i32")
    mask |= {"states": "*i64", "eos": "*i64", "highest": "fp32", "last_resort": "fp32"}
    given = FILTERS if name == "bf16" else NO_FILTERS
    constants = {"BLOCK": 4096, "LANES": 128}
    yield f"trie_mask_{name}", trie_mask_kernel, logits | mask | TRIE | given, constants, 4
    for how in ("triggered", "starts", "after"):
        types: dict[str, str | None] = dict.fromkeys(("num_starts", "num_after", "num_eos", "num_eos_dead"), "i32")
        types |= dict.fromkeys(("max_length", "begin_token", "column_stride", "filter_rows"), "i32")
        types |= {"history": "*i64", "history_stride": "i64", "token_stride": "i64", "eos": "*i64"}
        types |= {"starts": "*i64" if how == "starts" else None, "after": "*i64" if how == "after" else None}
        types |= {
            "masked": logits["logits"],
            "highest": "fp32",
            "last_resort": "fp32",
            "faults": "*i32",
            "arrivals": "*i64",
        }
        types |= {key: kind for key, kind in logits.items() if key != "token_stride"}
        constants = {"TOKENS": 512, "LANES": 128, "EOS": 2, "BLOCK": 4096, "LISTED": 256}
        yield f"trie_constrain_{how}_{name}", trie_constrain_kernel, types | TRIE | given, constants, 4
    parts: dict[str, str | None] = {"num_parts": "i32", "part_max": "*fp32", "part_sum": "*fp32"}
    yield f"row_parts_{name}", row_parts_kernel, logits | parts, {"COLUMNS": 8192}, 8
    select: dict[str, str | None] = dict.fromkeys(("num_beams", "num_tiles", "beam_width"), "i32")
    select |= {
        "states": "*i64",
        "beam_scores": "*fp32",
        "kept_scores": "*fp32",
        "kept_codes": "*i64",
        "num_kept": "*i32",
    }
    for over, part in (("trie", "*fp32"), ("vocab", None)):
        types = logits | select | TRIE | given | {"part_max": part, "part_sum": part}
        constants = {"TILE": 2048, "FEW": 256, "KEPT": 128, "NARROW": 0}
        yield f"beam_select_{over}_{name}", beam_select_kernel, types, constants, 8


def compile_case(case: Case) -> dict[str, Any]:
    name, kernel, types, constants, num_warps = case
    absent = {key: None for key, kind in types.items() if kind is None}
    signature = {key: types.get(key) or "constexpr" for key in kernel.arg_names}
    source = ASTSource(kernel, signature, {**absent, **constants})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps})
    return {
        "name": name,
        "kernel": kernel.__name__,
        "shared": compiled.metadata.shared,
        "cubin": len(compiled.asm["cubin"]),
    }


if __name__ == "__main__":
    for each in cases():
        print(json.dumps(compile_case(each)), flush=True)
