"""Processes killed at any moment: files are old or new, results that were written stay, and no litter grows.

``python tests/core/test_kills.py --kills 1000`` kills as often.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from gentrie import TokenTrie

ROWS = 60_000


def killed(work: Callable[[], None], delay: float) -> None:
    """Run ``work`` in a forked process and kill it after so many seconds."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def kill_saves(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    versions = [TokenTrie.from_sequences(np.arange(ROWS).reshape(-1, 1) + v, vocab_size=ROWS + 2) for v in range(2)]
    path = folder / "catalog.safetensors"
    versions[0].save(path)
    known = {trie.fingerprint for trie in versions}

    def save() -> None:
        for turn in range(10**6):
            versions[turn % 2].save(path)

    for _ in tqdm(range(kills), desc="save", unit="kill"):
        killed(save, draw.uniform(0, 0.03))
        assert TokenTrie.load(path, verify=True).fingerprint in known
        assert len(os.listdir(folder)) <= 2  # the next save removes what this one has left
    versions[1].save(path)
    assert os.listdir(folder) == [path.name]


def kill_spills(folder: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    rows = np.random.default_rng(seed).integers(0, 50, (ROWS, 4))

    def build() -> None:
        while True:
            TokenTrie.from_chunks(np.split(rows, 6), vocab_size=50, spill_dir=folder, num_threads=1)

    for _ in tqdm(range(kills), desc="spill", unit="kill"):
        killed(build, draw.uniform(0, 0.05))
        assert os.listdir(folder) == []


def kill_stores(folder: Path, kills: int, seed: int) -> None:
    from gentrie.generation import Recommendation, RecommendationStore

    draw = random.Random(seed)
    prompts = [[prompt, 7] for prompt in range(4 * kills)]

    def expected(prompt: int) -> Recommendation:
        return Recommendation([[prompt, 2 * prompt]], [-float(prompt)], [[prompt] * 40], [[0.5] * 40])

    def recommend(ready: int) -> None:
        store = RecommendationStore(folder, prompts)
        for prompt in [prompt for prompt in range(len(prompts)) if prompt not in store.read()]:
            store.write({prompt: expected(prompt)})
            os.write(ready, prompt.to_bytes(8, "little"))  # told once write() has returned

    told: set[int] = set()
    for _ in tqdm(range(kills), desc="recommend", unit="kill"):
        reader, writer = os.pipe()
        killed(lambda writer=writer: recommend(writer), draw.uniform(0, 0.02 + kills * 1e-4))
        os.close(writer)
        with open(reader, "rb") as said:
            data = said.read()
        told |= {int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8)}
        found = RecommendationStore(folder, prompts).read()
        assert told <= found.keys()
        assert all(found[prompt] == expected(prompt) for prompt in found)
    assert told


KILLS = {"save": kill_saves, "spill": kill_spills, "recommend": kill_stores}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_nothing_is_lost_and_nothing_grows(name: str, tmp_path: Path) -> None:
    if name == "recommend":
        pytest.importorskip("transformers")
    KILLS[name](tmp_path, 40, 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="kills of each kind (1000)")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for kill in KILLS.values():
        with tempfile.TemporaryDirectory() as folder:
            kill(Path(folder), options.kills, options.seed)
    print(f"{len(KILLS)} x {options.kills} kills: nothing lost, nothing left behind")
