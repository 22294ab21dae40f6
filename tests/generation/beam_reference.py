"""Beam search as one would write it, for comparison: every beam of every group is scored at every token."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from tiny_models import VOCAB_SIZE

from gentrie import TokenTrie
from gentrie.generation import BeamRows, BeamStepper
from gentrie.search.beam_rows import BeamItems

Path = tuple[int, ...]
TokenScore = Callable[[Path, int, list[int], float], float]


def lock_step(
    items: set[Path],
    logits: Callable[[Path], torch.Tensor],
    width: int,
    scope: str,
    length_penalty: float,
    *,
    groups: int = 1,
    diversity_penalty: float = 0.0,
    max_length: int | None = None,
    token_score: TokenScore | None = None,
) -> list[tuple[float, Path]]:
    """Penalised scores and complete sequences, best first, each once.

    ``token_score(path, token, valid, log_p)`` is what a token scores in the place of its log-probability.
    """
    own = width // groups
    beams: list[list[tuple[float, Path]]] = [[(0.0, ())] for _ in range(groups)]
    finished: list[list[tuple[float, Path]]] = [[] for _ in range(groups)]
    longest = max(map(len, items))
    for length in range(1, min(longest, max_length or longest) + 1):
        taken = torch.zeros(VOCAB_SIZE, dtype=torch.float64)
        for group in range(groups):
            grown = []
            for score, path in beams[group]:
                valid = sorted({item[len(path)] for item in items if item[: len(path)] == path})
                log_p = logits(path).double().log_softmax(-1) - diversity_penalty * taken
                log_p = log_p[valid].log_softmax(-1) if scope == "trie" else log_p[valid]
                for token, value in zip(valid, log_p.tolist(), strict=True):
                    added = value if token_score is None else token_score(path, token, valid, value)
                    grown.append((score + added, (*path, token)))
            best = sorted(grown, reverse=True)[: 2 * own]
            finished[group] += [(score / length**length_penalty, path) for score, path in best[:own] if path in items]
            finished[group] = sorted(finished[group], reverse=True)[:own]
            beams[group] = [entry for entry in best if entry[1] not in items][:own]
            for _, path in beams[group]:  # also those of a group that is done with this token
                taken[path[-1]] += 1
            worst = finished[group][-1][0] if len(finished[group]) == own else -float("inf")
            if beams[group] and beams[group][0][0] / length**length_penalty <= worst:
                beams[group] = []
    best_of = dict[Path, float]()
    for score, path in sorted(entry for group in finished for entry in group):
        best_of[path] = score
    return sorted(((score, path) for path, score in best_of.items()), reverse=True)


class Engine:
    """Logits that depend on request and path; a path is known by the handle of its last row alone."""

    def __init__(self) -> None:
        self.paths: dict[int, list[int]] = {}
        self.num_rows = 0

    def logits(self, rows: BeamRows) -> torch.Tensor:
        found = []
        for at in range(len(rows)):
            fed = rows.tokens[rows.indptr[at] : rows.indptr[at + 1]].tolist()
            parent = int(rows.parents[at])
            path = [*([] if parent < 0 else self.paths[parent]), *fed]
            self.paths[int(rows.handles[at])] = path
            count = int(rows.logit_counts[at])
            found += [
                scores(int(rows.requests[at]), path[: length + 1]) for length in range(len(path) - count, len(path))
            ]
        self.num_rows += len(found)
        return torch.stack(found)

    def forget(self, used: list[int]) -> None:
        self.paths = {handle: self.paths[handle] for handle in used}


def scores(request: int, path: list[int] | Path) -> torch.Tensor:
    """Random logits of a place."""
    seed = np.random.SeedSequence([request % 7, *path]).generate_state(1)[0]
    return 2 * torch.randn(VOCAB_SIZE, generator=torch.Generator().manual_seed(int(seed)))


def search(stepper: BeamStepper, request: int) -> BeamItems:
    """Drive one request to its end."""
    engine = Engine()
    while len(rows := stepper.rows()):
        stepper.step(engine.logits(rows))
    return stepper.pop_result(request)


def complete(trie: TokenTrie) -> set[Path]:
    """Every sequence of a catalog, end token included."""
    values, indptr, _, _ = trie.to_sequences()
    return {tuple(values[a:b].tolist()) for a, b in itertools.pairwise(indptr)}
