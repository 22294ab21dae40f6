"""Tries on a device, for kernels that never wait for the host, and searches over them. Needs torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gentrie._optional import require

require("torch", extra="hf")

from gentrie.device._beam_history import FoundItems  # noqa: E402
from gentrie.device.bank import FilterBank, TrieBank  # noqa: E402
from gentrie.device.beam_stepper import DeviceBeamStepper  # noqa: E402
from gentrie.device.bitmask import fill_bitmask  # noqa: E402
from gentrie.device.estimate import max_nbytes  # noqa: E402
from gentrie.device.trie import DeviceFilter, DeviceTrie  # noqa: E402

if TYPE_CHECKING:
    from gentrie.device.beam_search import device_beam_search

__all__ = [
    "DeviceBeamStepper",
    "DeviceFilter",
    "DeviceTrie",
    "FilterBank",
    "FoundItems",
    "TrieBank",
    "device_beam_search",
    "fill_bitmask",
    "max_nbytes",
]


def __getattr__(name: str) -> Any:
    """``device_beam_search``, which alone needs transformers."""
    if name != "device_beam_search":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require("transformers", extra="hf")
    from gentrie.device.beam_search import device_beam_search

    return device_beam_search
