"""Arrays that another thread writes to, a fork amid a call, writers that were killed: an error at worst."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from gentrie import TokenTrie, _validate


def run_python(code: str, *arguments: object) -> str:
    """What a process of its own prints, so that a crash is a red test."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


@pytest.mark.parametrize("what", ["values", "indptr", "item_ids", "narrow values"])
def test_a_build_whose_input_is_written_to_crashes_never(what: str):
    code = """
    import sys, threading
    import numpy as np
    from gentrie import TokenTrie
    what, n = sys.argv[1], 20_000
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 30, (n, 4), dtype=np.int32 if what == "narrow values" else np.int64)
    sound, indptr, ids = rows.copy(), np.arange(0, 4 * n + 1, 4), rng.integers(0, 50, n)
    done = threading.Event()
    def write():
        while not done.is_set():
            if what == "indptr":
                indptr[1:-1:5] += 2**40
                indptr[1:-1:5] -= 2**40
            elif what == "item_ids":
                ids[:] = ids[::-1].copy()
            else:
                rows[::5] = 2**30
                rows[:] = sound
                rows[::7] = rows[::-7][: len(rows[::7])]
                rows[:] = sound
    thread = threading.Thread(target=write)
    thread.start()
    seen = set()
    for i in range(60):
        try:
            trie = TokenTrie.from_sequences(
                (rows.reshape(-1), indptr) if what == "indptr" else rows, vocab_size=1000, item_ids=ids,
                end_token_id=999, num_threads=1 + i % 2)
            trie.verify()
            seen.add("built")
        except ValueError as error:
            assert "sequences" in str(error), error
            seen.add("refused")
    done.set()
    thread.join()
    print("survived")
    """
    assert run_python(code, what) == "survived\n"


def test_a_batch_whose_states_are_written_to_crashes_never():
    code = """
    import threading
    import numpy as np
    from gentrie import ItemFilter, TokenTrie
    trie = TokenTrie.from_sequences(np.arange(1000).reshape(-1, 2), vocab_size=1000)
    states, tokens, done = np.zeros(200_000, np.int64), np.zeros(200_000, np.int64), threading.Event()
    def write():
        while not done.is_set():
            states[::3] = 2**39
            states[::3] = 0
    thread = threading.Thread(target=write)
    thread.start()
    chosen = ItemFilter.all_items(trie)
    for _ in range(20):
        for call in (
            lambda: trie.advance_batch(states, tokens, num_threads=2),
            lambda: chosen.num_sequences_below_batch(states),
            lambda: trie.next_tokens_batch(states[:2000]),
            lambda: chosen.next_tokens_batch(states[:2000]),
        ):
            try:
                call()
            except ValueError as error:
                assert "is not a state of this trie" in str(error), error
    done.set()
    thread.join()
    print("survived")
    """
    assert run_python(code) == "survived\n"


def test_the_first_state_that_is_none_is_named():
    trie = TokenTrie.from_sequences(np.arange(1000).reshape(-1, 2), vocab_size=1000)
    states = np.zeros(50_000, np.int64)
    states[[9_000, 20_000, 49_000]] = 2**39, -3, 2**50
    for threads in (1, 2, 8):
        with pytest.raises(ValueError, match=r"states\[9000\]=549755813888"):
            trie.advance_batch(states, states, num_threads=threads)
    with pytest.raises(ValueError, match=r"states\[9000\]=549755813888"):
        trie.next_tokens_batch(states)


def test_row_numbers_are_those_that_were_checked():
    """What another thread writes to them later is not seen."""
    rows = np.array([2, 0])
    checked = _validate.row_indices("indices", rows, 2, 3)
    rows[:] = 1 << 40
    assert checked.tolist() == [2, 0]


def test_a_fork_while_the_item_index_is_made_does_not_hang():
    code = """
    import os, threading
    import numpy as np
    from gentrie import ItemFilter, TokenTrie, _core
    n = 400_000
    ids = np.random.default_rng(0).permutation(n) * 2**32  # hashed: takes a while
    for _ in range(5):
        trie = TokenTrie.from_sequences(np.arange(n).reshape(-1, 1), vocab_size=n, item_ids=ids)
        started = threading.Event()
        def make():
            started.set()
            ItemFilter.from_item_ids(trie, [1, 2])
        threads = [threading.Thread(target=make) for _ in range(2)]
        for thread in threads:
            thread.start()
        started.wait()
        child = os.fork()
        if child == 0:
            os._exit(ItemFilter.from_item_ids(trie, ids[:3]).num_items)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        for thread in threads:
            thread.join()
        assert _core.item_index_nbytes(trie._core) > 0
    print("made")
    """
    assert run_python(code) == "made\n"


def test_what_a_killed_save_leaves_is_removed_by_the_next_one(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    code = """
    import os, signal, sys
    import numpy as np
    from gentrie import TokenTrie
    folder, base = os.path.split(sys.argv[1])
    def left():
        return [name for name in os.listdir(folder) if name.startswith(base + ".tmp-") and name[-1].isdigit()]
    trie = TokenTrie.from_sequences(np.arange(200_000).reshape(-1, 1), vocab_size=200_000)
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            while True:
                trie.save(sys.argv[1])
        while not any(str(child) in name for name in left()):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert len(left()) <= 1
    trie.save(sys.argv[1])
    TokenTrie.load(sys.argv[1], verify=True)
    print("whole")
    """
    foreign = [f"{path.name}.tmp-notes", "y.safetensors.tmp-1-0", f"{path.name}.bak"]
    for name in foreign:
        (tmp_path / name).write_bytes(b"mine")
    assert run_python(code, path) == "whole\n"
    assert sorted(os.listdir(tmp_path)) == sorted([path.name, *foreign])


def test_a_writer_that_lives_keeps_its_file(tmp_path: Path):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "x.safetensors"
    trie = TokenTrie.from_sequences([[1]], vocab_size=2)
    held = tmp_path / "x.safetensors.tmp-1-0"
    with open(held, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        trie.save(path)
        assert held.exists()
    trie.save(path)
    assert not held.exists()


def test_a_file_that_is_replaced_passes_on_its_mode_and_a_link_is_followed(tmp_path: Path):
    path, link = tmp_path / "x.safetensors", tmp_path / "folder" / "link"
    link.parent.mkdir()
    link.symlink_to("../hop")
    (tmp_path / "hop").symlink_to(path.name)
    one, two = (TokenTrie.from_sequences([[token]], vocab_size=9) for token in (1, 2))
    one.save(link)  # which leads to nothing yet
    path.chmod(0o600)
    two.save(link)
    assert link.is_symlink()
    assert (tmp_path / "hop").is_symlink()
    assert TokenTrie.load(path).fingerprint == two.fingerprint
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        one.save(tmp_path / "loop")
    assert sorted(os.listdir(tmp_path)) == ["folder", "hop", "loop", path.name]
