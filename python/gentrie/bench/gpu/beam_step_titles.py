"""A step of a beam search over titles in a large vocabulary, under the trie scope."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gentrie.bench.gpu._steps import Step
from gentrie.bench.gpu.catalogs import states_inside, title_trie
from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.gpu.timing import ROUNDS, captured, compare
from gentrie.device import DeviceTrie


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    catalog, items
        A catalog of ``gentrie.datasets``, and how many of its titles; None: all.
    vocab_size
        Columns of the scores.
    prompts, beams
        Of the batch.
    depths
        Tokens before the step; after none every beam is at the root, the widest node.
    """

    catalog: str = "toys"
    items: int | None = None
    vocab_size: int = 131_072
    prompts: int = 4
    beams: int = 10
    depths: tuple[int, ...] = (0, 1, 3)


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Steps in CUDA graphs, on bfloat16 scores.

    Raises
    ------
    AssertionError
        A step is wrong.
    """
    where = torch.device(device)
    trie = title_trie(sizes.catalog, sizes.vocab_size, sizes.items)
    resident = DeviceTrie(trie, where)
    steps = {}
    for depth in sizes.depths:
        states = states_inside(trie, sizes.prompts * sizes.beams, depth)
        step = Step.random(resident, states, sizes.beams, over_vocab=False, dtype=torch.bfloat16)
        step.check()
        steps[depth] = step
    taken = compare({str(depth): captured(step.run, where) for depth, step in steps.items()}, where, rounds=rounds)
    note = f"{trie.num_sequences:,} titles, V={sizes.vocab_size:,}, trie scope, at most {trie.max_branching:,} children"
    shape = f"{sizes.prompts} x {sizes.beams} beams"
    return [
        GpuFigure.of(f"beam_step after {depth} tokens of titles, {shape}", "us", found, scale=1e6, goal=15, note=note)
        for depth, found in taken.items()
    ]
