"""Tries on a device, for kernels that never wait for the host. Needs torch."""

from gentrie._optional import require

require("torch", extra="hf")

from gentrie.device._beam_history import FoundItems  # noqa: E402
from gentrie.device.bank import FilterBank, TrieBank  # noqa: E402
from gentrie.device.beam_stepper import DeviceBeamStepper  # noqa: E402
from gentrie.device.trie import DeviceFilter, DeviceTrie  # noqa: E402

__all__ = ["DeviceBeamStepper", "DeviceFilter", "DeviceTrie", "FilterBank", "FoundItems", "TrieBank"]
