"""Scores masked in place, beside one write of them and xgrammar's bitmasks."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import numpy as np
import torch

from gentrie.bench.gpu.catalogs import allowed_tokens, states_inside, title_trie
from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.gpu.peers import Peers, ratio
from gentrie.bench.gpu.timing import ROUNDS, Method, captured, compare
from gentrie.device import DeviceTrie
from gentrie.kernels.trie_mask import trie_mask

APPLY = "xgrammar: apply of bitmasks that are on the device"
COPY_AND_APPLY = "xgrammar: copy of bitmasks from the host, and apply"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    rows, vocab_size
        Of the scores.
    catalog, items
        A catalog of ``gentrie.datasets``, and how many of its titles; None: all.
    """

    rows: int = 256
    vocab_size: int = 131_072
    catalog: str = "toys"
    items: int | None = None


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Bfloat16 scores of rows at random places of titles; masking twice does what masking once does.

    Raises
    ------
    AssertionError
        A mask is wrong.
    """
    where = torch.device(device)
    trie = title_trie(sizes.catalog, sizes.vocab_size, sizes.items)
    resident = DeviceTrie(trie, where)
    places = states_inside(trie, sizes.rows)
    allowed = allowed_tokens(trie, places, sizes.vocab_size)
    scores = torch.randn(sizes.rows, sizes.vocab_size, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = scores.masked_fill(~allowed, -torch.inf).to(where)
    ours, written = scores.to(where), torch.empty_like(scores, device=where)
    states, eos = torch.tensor(places, device=where), torch.empty(0, dtype=torch.int64, device=where)

    def mask() -> None:
        trie_mask(ours, states, -1, eos, True, resident.descriptors, None, None, None)

    mask()
    assert torch.equal(ours, expected), "trie_mask differs from the tokens that the catalog allows"

    on_host = _bitmask(allowed)
    on_host = on_host.pin_memory() if where.type == "cuda" else on_host
    bitmask, theirs = on_host.to(where), scores.to(where)

    def xgrammar(copies: bool) -> Method:
        apply = import_module("xgrammar").apply_token_bitmask_inplace

        def run() -> None:
            if copies:
                bitmask.copy_(on_host, non_blocking=True)
            apply(theirs, bitmask)

        run()
        assert torch.equal(theirs, expected), "its scores differ"
        return run

    peers = Peers(where)
    peers.add(APPLY, "us", lambda: xgrammar(False), capture=True)
    peers.add(COPY_AND_APPLY, "us", lambda: xgrammar(True), capture=True)
    methods: dict[str, Method] = {"mask": mask, "fill": lambda: written.fill_(-torch.inf)}
    taken = compare(
        {**{name: captured(method, where) for name, method in methods.items()}, **peers.methods}, where, rounds=rounds
    )
    shape = f"[{sizes.rows}, {sizes.vocab_size}] bfloat16"
    note = "its bitmasks are filled beforehand: their filling on the host would come on top"
    return [
        ratio(f"trie_mask on {shape} over fill_(-inf)", taken, "mask", "fill", goal=1.2),
        ratio(f"trie_mask over {COPY_AND_APPLY}", taken, "mask", COPY_AND_APPLY, goal=1, note=note),
        GpuFigure.of(f"trie_mask on {shape}", "us", taken["mask"], scale=1e6),
        GpuFigure.of(f"fill_(-inf) on {shape}", "us", taken["fill"], scale=1e6),
        *peers.figures(taken, "us", 1e6),
    ]


def _bitmask(allowed: torch.Tensor) -> torch.Tensor:
    """int32 [rows, ceil(width / 32)] of bool [rows, width], as xgrammar lays it out: the lowest bit first."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32))
    return torch.from_numpy(np.packbits(padded.numpy(), axis=1, bitorder="little").view(np.int32))
