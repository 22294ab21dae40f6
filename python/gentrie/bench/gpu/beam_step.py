"""A step of a beam search over ids, beside STATIC's, and over catalogs of different sizes (STATIC's setting)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import torch

from gentrie.bench.gpu._static import StaticIndex, StaticStep
from gentrie.bench.gpu._steps import Step
from gentrie.bench.gpu.catalogs import random_ids
from gentrie.bench.gpu.figures import GpuFigure
from gentrie.bench.gpu.peers import Peers, ratio
from gentrie.bench.gpu.timing import ROUNDS, captured, compare
from gentrie.device import DeviceTrie
from gentrie.trie import TokenTrie

STATIC = "STATIC, torch.compile(mode='reduce-overhead')"
STATIC_IN_GRAPH = "STATIC, torch.compile, in our CUDA graph"


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes
    ----------
    prompts, beams
        Of the batch.
    length, num_codes
        Tokens of an id, and of the vocabulary.
    items
        Sizes of catalogs, ascending; the last one is that of the step beside STATIC's.
    depths
        Tokens before the step, at least 1: after the first, nodes are widest, later they are ever narrower.
    """

    prompts: int = 2
    beams: int = 70
    length: int = 8
    num_codes: int = 2048
    items: tuple[int, ...] = (10_000, 100_000, 1_000_000, 20_000_000)
    depths: tuple[int, ...] = (1, 2, 4)


QUICK = Sizes(items=(10_000, 1_000_000))


def measure(sizes: Sizes, *, device: str = "cuda", rounds: int = ROUNDS) -> list[GpuFigure]:
    """Steps in CUDA graphs, over the whole vocabulary as STATIC's are, on float32 scores.

    Raises
    ------
    AssertionError
        A step is wrong.
    """
    where = torch.device(device)
    steps: dict[int, dict[int, Step]] = {depth: {} for depth in sizes.depths}
    for count in sizes.items:
        ids = random_ids(count, sizes.length, sizes.num_codes)
        resident = DeviceTrie(TokenTrie.from_sequences(ids, vocab_size=sizes.num_codes), where)
        rows = [ids[at % count].tolist() for at in range(sizes.prompts * sizes.beams)]
        for depth, by_items in steps.items():
            states = [resident.trie.walk(row[:depth]) for row in rows]
            step = Step.random(resident, states, sizes.beams, over_vocab=True, dtype=torch.float32)
            step.check()
            by_items[count] = step
    # From here on the ids and rows are those of the last and largest catalog.
    index = cache(lambda: StaticIndex.build(ids, sizes.num_codes, where))
    figures = []
    for depth, by_items in steps.items():
        figures += _after(depth, by_items, index, [row[:depth] for row in rows], where, rounds)
    return figures


def _after(
    depth: int,
    steps: Mapping[int, Step],
    index: Callable[[], StaticIndex],
    prefixes: list[list[int]],
    device: torch.device,
    rounds: int,
) -> list[GpuFigure]:
    """All figures of the step after ``depth`` tokens."""
    smallest, largest = min(steps), max(steps)
    step = steps[largest]
    where = f"after {depth} tokens, {len(prefixes) // step.num_beams} x {step.num_beams} beams"

    def static(mode: str) -> Callable[[], object]:
        inputs = (step.logits, index().states_after(prefixes), step.scores)
        compiled = torch.compile(StaticStep(index(), depth, step.num_beams), mode=mode)
        torch.testing.assert_close(compiled(*inputs)[0].cpu(), step.best_scores(), rtol=1e-5, atol=1e-5)
        return lambda: compiled(*inputs)

    names = {items: f"beam_step {where}, {items:,} ids" for items in steps}
    methods = {names[items]: captured(steps[items].run, device) for items in steps}
    peers = Peers(device)
    in_graph, on_its_own = f"{STATIC_IN_GRAPH}, {where}", f"{STATIC}, {where}"
    peers.add(in_graph, "us", lambda: static("default"), capture=True)
    peers.add(on_its_own, "us", lambda: static("reduce-overhead"))
    one_word = torch.zeros(1, device=device)
    floor = f"floor: a CUDA graph that writes one word, beside {where}"
    taken = compare({**methods, **peers.methods, floor: captured(one_word.zero_, device)}, device, rounds=rounds)
    figures = [GpuFigure.of(names[largest], "us", taken[names[largest]], scale=1e6, goal=10)]
    for peer, label, goal in ((on_its_own, STATIC, 2), (in_graph, STATIC_IN_GRAPH, None)):
        name = f"beam_step {where}: times as fast as {label}"
        figures.append(ratio(name, taken, peer, names[largest], goal=goal, at_least=True))
    figures += peers.figures(taken, "us", 1e6)
    worst = max(steps, key=lambda items: taken[names[items]].median)
    name = f"beam_step {where}: slowest of {smallest:,} to {largest:,} ids over {smallest:,}"
    figures.append(ratio(name, taken, names[worst], names[smallest], goal=1.5, note=f"slowest: {worst:,}"))
    figures += [GpuFigure.of(names[items], "us", taken[names[items]], scale=1e6) for items in steps if items != largest]
    return [*figures, GpuFigure.of(floor, "us", taken[floor], scale=1e6)]
