"""Searches that find their kernels compiled: ``python warm_searches.py CATALOG BEAMS [cuda]``; run by a test.

Every kind of trie and filter that ``DeviceBeamStepper`` takes, for 3 prompts and float32 logits 130 wide. Without
``cuda`` kernels are compiled for sm_90 and not started. Prints how many times ``beam_step`` was launched.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceBeamStepper, DeviceFilter, DeviceTrie, FilterBank, TrieBank
from gentrie.kernels.beam_step import beam_step, launch_beam_step
from gentrie.warmup._toolchain import ahead_of_time


def search_all(trie: TokenTrie, beam_width: int, device: str) -> None:
    resident, allowed = DeviceTrie(trie, device), DeviceFilter(ItemFilter.all_items(trie), device)
    tries, filters = TrieBank(device), FilterBank(device)
    tries.add(resident)
    filters.add(allowed)
    for owner, width in ((resident, 130), (resident, len(trie.vocabulary)), (tries, 130)):
        for chosen in (None, allowed, filters):
            stepper = DeviceBeamStepper(
                owner,
                num_prompts=3,
                beam_width=beam_width,
                trie_index=[0] * 3 if owner is tries else None,
                filters=chosen,
                filter_index=[0] * 3 if chosen is filters else None,
            )
            stepper.step(torch.zeros(3, width, device=device))
            for _ in range(stepper.max_length - 1):
                stepper.step(torch.zeros(3 * beam_width, width, device=device))


if __name__ == "__main__":
    catalog, beam_width, *device = sys.argv[1:]
    launches = 0

    def launch_only(*arguments: Any) -> tuple[torch.Tensor, ...]:
        """What was not computed leads nowhere."""
        global launches
        launches += 1
        scores, *chosen = launch_beam_step(*arguments)
        return scores.fill_(-torch.inf), *(part.fill_(-1) for part in chosen)

    trie = TokenTrie.load(catalog)
    if device:
        search_all(trie, int(beam_width), "cuda")
    else:
        beam_step.register_kernel("cpu")(launch_only)
        with ahead_of_time("sm_90"):
            search_all(trie, int(beam_width), "cpu")
        sys.stdout.write(f"{launches} launches\n")
