"""Whole beam searches without a model, over the vocabulary: what a search costs an engine beside its own calls.

Every step gets the same logits, made before. STATIC's plain-torch loop (arXiv 2602.22647), where ``static_decoding`` is
importable, runs in turns with ours; the floor is one ``log_softmax`` of the same rows a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch
from _figures import Figure, main
from _static import StaticIndex, is_importable

from gentrie import TokenTrie
from gentrie.bench.harness import Spread, compare
from gentrie.search import BeamStepper

# name, ids, levels, codes; then for each search: prompts, beams, and how many times STATIC's loop it should reach.
CASES = (
    ("3.7k ids of 3 x 256", 3_700, 3, 256, ((1, 10, 3.0), (1, 50, 3.0), (16, 10, 3.0), (8, 50, 3.0))),
    ("1M ids of 8 x 2048", 1_000_000, 8, 2048, ((1, 10, 2.0), (8, 50, 2.0))),
)
CALLS = 20


def ours(trie: TokenTrie, logits: torch.Tensor, prompts: int, beams: int) -> Callable[[], None]:
    def search() -> None:
        stepper = BeamStepper(trie, beam_width=beams, scope="vocab", length_penalty=0.0)
        for prompt in range(prompts):
            stepper.add_request(prompt)
        while len(rows := stepper.rows()):
            stepper.step(logits[: int(rows.logit_counts.sum())])
        found = [stepper.pop_result(prompt).scores for prompt in range(prompts)]
        if min(map(len, found)) < beams:
            raise RuntimeError(f"{min(map(len, found))} of {beams} items were found")

    return search


def static_loop(index: StaticIndex, logits: torch.Tensor, levels: int, prompts: int, beams: int) -> Callable[[], None]:
    from static_decoding.decoding_pt import sparse_transition_torch

    vocab_size = logits.shape[1]
    tables = [torch.from_numpy(np.ascontiguousarray(table)) for table in (index.packed, index.indptr)]
    masks = [torch.from_numpy(table) for table in (index.start_mask, index.dense_mask, index.dense_states)]

    def model(tokens: torch.Tensor) -> torch.Tensor:
        return logits[: len(tokens), None]

    def search() -> None:
        sparse_transition_torch(
            model, prompts, beams, beams, 0, levels, vocab_size, index.max_branches, *tables, *masks,
            torch.device("cpu"),
        )  # fmt: skip

    return search


def measure(options: argparse.Namespace) -> list[Figure]:
    figures = []
    for name, count, levels, codes, searches in CASES:
        generator = np.random.default_rng(0)
        ids = np.unique(generator.integers(0, codes, (count, levels), dtype=np.int32), axis=0)
        trie = TokenTrie.from_sequences(ids, vocab_size=codes)
        index = StaticIndex.build(ids, codes) if is_importable() else None
        for prompts, beams, goal in searches:
            # Where few beams ask, runs are read ahead: more rows of logits in fewer steps.
            logits = torch.from_numpy(generator.normal(size=(prompts * beams + 1024, codes)).astype(np.float32))
            rows = [logits[: prompts * (beams if step else 1)] for step in range(levels)]
            functions = {"ours": ours(trie, logits, prompts, beams)}
            functions["floor"] = lambda rows=rows: [step.log_softmax(-1) for step in rows]
            if index is not None:
                functions["STATIC"] = static_loop(index, logits, levels, prompts, beams)
            taken = compare({key: repeated(function) for key, function in functions.items()}, rounds=options.rounds)
            case = f"search without a model, {name}, {prompts} x {beams} beams"
            figures.append(Figure.of(case, "ms", taken["ours"], scale=1e3 / CALLS))
            figures.append(Figure.of(f"{case}: log_softmax alone", "ms", taken["floor"], scale=1e3 / CALLS))
            if index is not None:
                ratios = [a / b for a, b in zip(taken["STATIC"].rounds, taken["ours"].rounds, strict=True)]
                figures.append(
                    Figure.of(f"{case}: STATIC over ours", "times", Spread.of(ratios), goal=goal, at_least=True)
                )
    return figures


def repeated(function: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(CALLS):
            function()

    return run


if __name__ == "__main__":
    main(measure, __doc__ or "")
