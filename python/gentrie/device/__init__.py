"""Tries on a device, for kernels that never wait for the host. Needs torch."""

from gentrie._optional import require

require("torch", extra="hf")

from gentrie.device.bank import FilterBank, TrieBank  # noqa: E402
from gentrie.device.bitmask import fill_bitmask  # noqa: E402
from gentrie.device.estimate import max_nbytes  # noqa: E402
from gentrie.device.trie import DeviceFilter, DeviceTrie  # noqa: E402
from gentrie.device.warmup import CompiledKernel, warmup  # noqa: E402

__all__ = [
    "CompiledKernel",
    "DeviceFilter",
    "DeviceTrie",
    "FilterBank",
    "TrieBank",
    "fill_bitmask",
    "max_nbytes",
    "warmup",
]
