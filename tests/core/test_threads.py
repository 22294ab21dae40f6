"""One trie for many threads and for forked processes; builds on many threads, stopped by an interrupt."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from gentrie import TokenTrie, TrieMatcher

ROWS = np.random.default_rng(0).integers(0, 50, (3000, 5))
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=60)


def use(seed: int) -> list[object]:
    """A bit of everything, the same for the same seed."""
    rng = np.random.default_rng(seed)
    found: list[object] = []
    for row in ROWS[rng.integers(0, len(ROWS), 40)]:
        matcher = TrieMatcher(TRIE, begin_token_id=51, eos_token_id=52, unique=True)
        assert matcher.accept_tokens([51, *row])
        found += [TRIE.resolve(row).tolist(), matcher.accept_tokens([51, *row]), TRIE.walk(row[:3])]
        found.append(TRIE.next_tokens(TRIE.walk(row[:2])).tolist())
    return found


def test_threads_see_the_same():
    expected = [use(seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(16))) == expected


def test_builds_side_by_side_are_equal():
    def build(threads: int) -> str:
        return TokenTrie.from_sequences(ROWS, vocab_size=60, num_threads=threads).fingerprint

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(build, [1, 2, 3, 8] * 3)) == {TRIE.fingerprint}


def test_a_forked_process_looks_up_and_builds():
    expected = use(1)
    child = os.fork()
    if child == 0:
        same = use(1) == expected
        rebuilt = TokenTrie.from_sequences(ROWS, vocab_size=60, num_threads=2).fingerprint == TRIE.fingerprint
        os._exit(0 if same and rebuilt else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_an_interrupt_stops_a_build():
    code = """
import signal
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from gentrie import TokenTrie
rows = np.random.default_rng(0).integers(0, 2000, (3_000_000, 8))
print("ready", flush=True)
for _ in range(100):
    TokenTrie.from_sequences(rows, vocab_size=2048)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
