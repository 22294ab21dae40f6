"""A catalog that changes every second under matchers and searches: every answer is its version's, nothing grows.

``python tests/live/test_soak.py`` goes on for an hour.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gentrie import LiveCatalog, TokenTrie, TrieMatcher
from gentrie.live_catalog import CatalogVersion
from gentrie.search import BeamStepper

VOCAB_SIZE, END, ITEMS = 64, 1, 400
MATCHERS, SEARCHES = 4, 2


class Catalogs:
    """A few catalogs in files, and which items each sequence stands for, as plain dictionaries."""

    def __init__(self, folder: Path, count: int = 4) -> None:
        draw = np.random.default_rng(0)
        self.paths, self.items = [], []
        for number in range(count):
            rows = draw.integers(2, 14, (ITEMS, 3)).tolist()
            path = folder / f"{number}.safetensors"
            TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END).save(path)
            self.paths.append(path)
            items: dict[tuple[int, ...], set[int]] = {}
            for item, row in enumerate(rows):
                items.setdefault((*row, END), set()).add(item)
            self.items.append(items)
        self.meaning: dict[int, tuple[int, frozenset[int]]] = {}
        """By version: which catalog, and what was removed."""

    def check(self, version: CatalogVersion, tokens: list[int], even: bool) -> None:
        """``tokens`` are an item of this version that may be given."""
        which, removed = self.meaning[version.number]
        allowed = {item for item in self.items[which][tuple(tokens)] if not even or item % 2 == 0} - removed
        assert allowed, (version.number, tokens)
        if even:
            assert set(version.filters["even"].resolve(tokens).tolist()) == allowed


def match(catalogs: Catalogs, live: LiveCatalog, seed: int) -> None:
    """One request: an item token by token, with rollbacks."""
    draw, version = random.Random(seed), live.current
    matcher = TrieMatcher(version.trie, item_filter=version.filters["even"])
    tokens: list[int] = []
    while not matcher.is_terminated():
        tokens.append(int(draw.choice(matcher.get_allowed_tokens().tolist())))
        assert matcher.accept_token(tokens[-1])
        if draw.random() < 0.2:
            matcher.rollback(1)
            tokens.pop()
    catalogs.check(version, tokens, even=True)


def search(catalogs: Catalogs, live: LiveCatalog, seed: int) -> None:
    draw, version = np.random.default_rng(seed), live.current
    stepper = BeamStepper(version.trie, beam_width=5, scope="vocab")
    for request in range(3):
        stepper.add_request(request, item_filter=version.filters["even"])
    while len(rows := stepper.rows()):
        stepper.step(draw.normal(size=(int(rows.logit_counts.sum()), VOCAB_SIZE)).astype(np.float32))
    for request in range(3):
        found = stepper.pop_result(request)
        assert len(found.sequences) == 5
        for tokens in found.sequences:
            catalogs.check(version, tokens, even=True)


def change(catalogs: Catalogs, live: LiveCatalog, draw: random.Random) -> None:
    which, removed = catalogs.meaning[live.current.number]
    number = live.current.number + 1
    if draw.random() < 0.3:
        gone = frozenset(draw.sample(range(ITEMS), 20))
        catalogs.meaning[number] = which, removed | gone
        live.remove(sorted(gone))
    elif removed and draw.random() < 0.5:
        catalogs.meaning[number] = which, frozenset()
        live.restore(sorted(removed))
    else:
        which = draw.randrange(len(catalogs.paths))
        catalogs.meaning[number] = which, removed
        live.swap(TokenTrie.load(catalogs.paths[which]))
    assert live.current.number == number


def memory() -> int:
    """Bytes of memory that the process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def soak(folder: Path, seconds: float, pause: float, *, seed: int = 0) -> dict[str, int]:
    catalogs, draw = Catalogs(folder), random.Random(seed)
    live = LiveCatalog(TokenTrie.load(catalogs.paths[0]), filters={"even": range(0, ITEMS, 2)})
    catalogs.meaning[live.current.number] = 0, frozenset()
    counts, failures, done = {"matches": 0, "searches": 0, "changes": 0}, [], threading.Event()
    lock = threading.Lock()

    def work(name: str, request: object, first: int) -> None:
        at = first
        try:
            while not done.is_set():
                request(catalogs, live, at)  # type: ignore[operator]
                at += MATCHERS + SEARCHES
                with lock:
                    counts[name] += 1
        except BaseException as error:
            failures.append(error)
            done.set()

    threads = [threading.Thread(target=work, args=("matches", match, at)) for at in range(MATCHERS)]
    threads += [threading.Thread(target=work, args=("searches", search, MATCHERS + at)) for at in range(SEARCHES)]
    for thread in threads:
        thread.start()
    end, settled = time.monotonic() + seconds, None
    try:
        while time.monotonic() < end and not done.is_set():
            change(catalogs, live, draw)
            counts["changes"] += 1
            if settled is None and time.monotonic() > end - seconds / 2:
                settled = memory(), len(os.listdir("/proc/self/fd"))
            time.sleep(pause)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    assert settled is not None
    grown, files = memory() - settled[0], len(os.listdir("/proc/self/fd")) - settled[1]
    assert grown < 32 << 20, f"{grown} bytes more than half way"
    assert files <= 0, f"{files} open files more than half way"
    return counts | {"bytes grown in the second half": grown}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_every_answer_is_its_versions_and_nothing_grows(tmp_path: Path) -> None:
    counts = soak(tmp_path, 8, 0.02)
    assert min(counts["matches"], counts["searches"], counts["changes"]) > 20


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600, help="how long (3600)")
    parser.add_argument("--pause", type=float, default=1, help="seconds between changes (1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        print(soak(Path(place), options.seconds, options.pause))
