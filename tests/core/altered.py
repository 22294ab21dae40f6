"""A trie file taken apart, and an altered one put together with checksums that fit: what somebody might send us."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

COUNTS = (
    "num_nodes",
    "num_sequences",
    "num_items",
    "num_run_tokens",
    "run_token_bits",
    "run_offset_bits",
    "max_depth",
    "max_branching",
    "vocab_size",
    "end_token_id",
)
_DTYPES = {f"{kind}{8 * size}": np.dtype(f"<{kind.lower()}{size}") for kind in "IU" for size in (1, 2, 4, 8)}


class AlteredFile:
    """Counts and arrays of a file, to be changed and written; ``checksums`` and ``fingerprint`` replace true ones."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        meta = header.pop("__metadata__")
        self.counts = {name: int(meta[f"gentrie.{name}"]) for name in COUNTS}
        self.metadata = {key: value for key, value in meta.items() if not key.startswith("gentrie.")}
        self.arrays: dict[str, npt.NDArray[np.generic]] = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            array = np.frombuffer(data[8 + length + begin : 8 + length + end], _DTYPES[entry["dtype"]])
            self.arrays[name] = array[: int(meta[f"gentrie.length.{name}"])].copy()
        self.checksums: dict[str, int] = {}
        self.fingerprint: str | None = None

    def set(self, name: str, values: Iterable[int], dtype: str | None = None) -> None:
        numbers = [value & (2**64 - 1) for value in values]
        self.arrays[name] = np.array(numbers, np.uint64).astype(dtype or self.arrays[name].dtype)

    def write(self, path: Path) -> Path:
        xxhash = pytest.importorskip("xxhash")
        meta = self.metadata | {"gentrie.format_version": "3", "gentrie.version": "0.1.0"}
        meta |= {f"gentrie.{name}": str(count) for name, count in self.counts.items()}
        names = {dtype: name for name, dtype in _DTYPES.items()}
        body, tensors = b"", ""
        words = [
            self.counts[name] for name in ("vocab_size", "end_token_id", "num_nodes", "num_sequences", "num_items")
        ]
        for name, array in self.arrays.items():
            data = array.tobytes()
            data += bytes(-len(data) % 64)
            checksum = self.checksums.get(name, xxhash.xxh64_intdigest(data))
            meta |= {f"gentrie.length.{name}": str(array.size), f"gentrie.xxh64.{name}": f"{checksum:016x}"}
            words += [array.size, checksum]
            shape, offsets = len(data) // array.itemsize, f"[{len(body)},{len(body) + len(data)}]"
            tensors += f',"{name}":{{"dtype":"{names[array.dtype]}","shape":[{shape}],"data_offsets":{offsets}}}'
            body += data
        whole = np.array([word & (2**64 - 1) for word in words], "<u8").tobytes()
        meta["gentrie.fingerprint"] = self.fingerprint or xxhash.xxh64_hexdigest(whole)
        entries = sorted((key.encode(), value.encode()) for key, value in meta.items())
        text = b"".join(part + b"\0" for entry in entries for part in entry)
        meta["gentrie.header_xxh64"] = xxhash.xxh64_hexdigest(text)
        pairs = ",".join(f"{json.dumps(key)}:{json.dumps(meta[key])}" for key in sorted(meta))
        header = f'{{"__metadata__":{{{pairs}}}{tensors}}}'.encode()
        header += b" " * (-(len(header) + 8) % 64)
        path.write_bytes(len(header).to_bytes(8, "little") + header + body)
        return path
