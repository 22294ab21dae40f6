"""Tries on a device, for kernels that never wait for the host. Needs torch."""

from gentrie.device.bank import FilterBank, TrieBank
from gentrie.device.trie import DeviceFilter, DeviceTrie

__all__ = ["DeviceFilter", "DeviceTrie", "FilterBank", "TrieBank"]
