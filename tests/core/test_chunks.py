"""Builds from chunks: the trie of all rows at once, whatever the cuts; bounded memory, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from strategies import Catalog, catalogs, examples

from gentrie import TokenTrie


def from_chunks(chunks: Any, vocab_size: int = 100, **options: Any) -> TokenTrie:
    return TokenTrie.from_chunks(chunks, vocab_size=vocab_size, **options)


@given(catalogs(), st.data())
@examples(120)
def test_any_cuts_give_the_trie_of_all_rows(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog, data: Any):
    ids = list(range(len(catalog.rows))) if catalog.item_ids is None else catalog.item_ids
    order = data.draw(st.permutations(range(len(ids)))) if catalog.item_ids is not None else list(range(len(ids)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=6)))
    parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    chunks: list[Any] = []
    for part in parts:
        rows = [catalog.rows[i] for i in part]
        flat = np.array(
            [token for row in rows for token in row], dtype=data.draw(st.sampled_from([np.int32, np.int64]))
        )
        chunk = data.draw(st.sampled_from([rows, (flat, np.cumsum([0, *map(len, rows)]))]))
        chunks.append(chunk if catalog.item_ids is None else (chunk, np.array([ids[i] for i in part], dtype=np.int64)))
    folder = tmp_path_factory.mktemp("spill")
    trie = from_chunks(
        iter(chunks),
        catalog.vocab_size,
        end_token_id=catalog.end,
        with_item_ids=catalog.item_ids is not None,
        num_threads=data.draw(st.sampled_from([1, 3])),
        spill_dir=data.draw(st.sampled_from([None, folder])),
    )
    assert trie.fingerprint == catalog.build().fingerprint
    oracle = Oracle(catalog.rows, catalog.end, catalog.item_ids)
    values, indptr, item_ids, item_indptr = trie.to_sequences()
    for i, sequence in enumerate(oracle.sequences):
        assert tuple(values[indptr[i] : indptr[i + 1]].tolist()) == sequence
        assert item_ids[item_indptr[i] : item_indptr[i + 1]].tolist() == sorted(oracle.items[sequence])
    trie.verify()
    assert not any(folder.iterdir())


@pytest.mark.parametrize("chunk_rows", [20, 30_000, 300_000])
def test_many_segments_parts_and_tiers(chunk_rows: int, tmp_path: Path):
    """Few tokens, so that rows collide across chunks; enough rows for several segments, and for tiers of runs."""
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 12, (60_000 if chunk_rows < 1000 else 300_000, 6), dtype=np.int32)
    ids = rng.integers(-(2**40), 2**40, len(rows))
    whole = TokenTrie.from_sequences(rows, vocab_size=12, item_ids=ids)
    for spill in (None, tmp_path):
        cuts = range(0, len(rows), chunk_rows)
        chunks = ((rows[a : a + chunk_rows], ids[a : a + chunk_rows]) for a in cuts)
        trie = from_chunks(chunks, 12, with_item_ids=True, num_threads=2, spill_dir=spill)
        assert trie.fingerprint == whole.fingerprint
        assert np.array_equal(trie.to_sequences()[2], whole.to_sequences()[2])
    distinct, group = np.unique(rows, axis=0, return_inverse=True)
    assert trie.num_sequences == len(distinct)
    assert np.array_equal(
        trie.collisions()[2],
        whole.to_sequences()[2][np.repeat(np.bincount(group.ravel()) > 1, np.bincount(group.ravel()))],
    )


def test_long_rows_across_chunks():
    stem = list(range(5, 500))
    rows = [[*stem[:cut], token] for cut in range(0, 495, 7) for token in (600, 601, 7)] + [[3]] * 2
    whole = TokenTrie.from_sequences(rows, vocab_size=700, end_token_id=1)
    for size in (1, 2, 50):
        chunks = [rows[a : a + size] for a in range(0, len(rows), size)]
        assert from_chunks(chunks, 700, end_token_id=1).fingerprint == whole.fingerprint


def test_mapped_array(tmp_path: Path):
    rows = np.random.default_rng(0).integers(0, 90, (5000, 4)).astype(np.uint16)
    np.save(tmp_path / "codes.npy", rows)
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    trie = from_chunks(mapped[a : a + 700] for a in range(0, 5000, 700))
    assert trie.fingerprint == TokenTrie.from_sequences(rows, vocab_size=100).fingerprint


def broken_after(count: int) -> Iterator[list[list[int]]]:
    for i in range(count):
        yield [[i, i + 1]]
    raise RuntimeError("the source went away")


def test_an_iterator_that_raises(tmp_path: Path):
    with pytest.raises(RuntimeError, match="the source went away"):
        from_chunks(broken_after(5), spill_dir=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_disk_that_fills(tmp_path: Path):
    code = """
import resource, signal, sys
import numpy as np
from gentrie import TokenTrie
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
rows = np.random.default_rng(0).integers(0, 90, (5000, 4))
try:
    TokenTrie.from_chunks([rows, rows], vocab_size=90, spill_dir=sys.argv[1])
except OSError as error:
    print(type(error).__name__, sys.argv[1] in str(error))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.stdout == "OSError True\n", done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("chunks", "options", "kind", "parts"),
    [
        (7, {}, TypeError, ["chunks", "int"]),
        ("ab", {}, TypeError, ["chunks", "str"]),
        ([], {}, ValueError, ["no rows"]),
        ([[], np.zeros((0, 2), dtype=np.int32)], {}, ValueError, ["no rows"]),
        ([[[1]], [[2], [3, 100]]], {}, ValueError, ["chunks[1][1]", "100"]),
        ([[[1]], [[2], []]], {}, ValueError, ["chunks[1][1]", "empty"]),
        ([[[1]], [[2, 1.5]]], {}, TypeError, ["chunks[1][0][1]", "1.5"]),
        ([np.ones((2, 2))], {}, TypeError, ["chunks[0]", "float64"]),
        ([(np.array([1]), np.array([0, 2]))], {}, ValueError, ["chunks[0]", "indptr"]),
        ([[[1, 2]], [[1]]], {}, ValueError, ["item 1", "item 0", "prefix"]),
        ([[[1, 2], [1]]], {}, ValueError, ["chunks[0][1]", "chunks[0][0]", "prefix"]),
        ([[[1]]], {"with_item_ids": True}, TypeError, ["chunks[0]", "pair"]),
        ([([[1]], None)], {"with_item_ids": True}, TypeError, ["chunks[0]", "item_ids"]),
        ([([[1]], [1, 2])], {"with_item_ids": True}, ValueError, ["chunks[0]", "item_ids", "2", "1"]),
        ([[[1]]], {"with_item_ids": 1}, ValueError, ["with_item_ids=1"]),
        ([[[1]]], {"memory_limit": 0}, ValueError, ["memory_limit=0"]),
        ([[[1]]], {"num_threads": 0}, ValueError, ["num_threads=0"]),
        ([[[1]]], {"spill_dir": "/no/such/folder"}, FileNotFoundError, ["/no/such/folder"]),
        ([[[1]]], {"vocab_size": 0}, ValueError, ["vocab_size=0"]),
        ([[[1]]], {"end_token_id": 100}, ValueError, ["end_token_id=100"]),
        ([[[1]], np.broadcast_to(np.int32(1), (2**31, 1))], {}, ValueError, ["chunks[1]", str(2**31), str(2**31 - 2)]),
    ],
)
def test_refused(chunks: Any, options: dict[str, Any], kind: type[Exception], parts: list[str]):
    with pytest.raises(kind) as error:
        from_chunks(chunks, **{"vocab_size": 100, **options})
    for part in parts:
        assert part in str(error.value)


def test_more_rows_than_the_index_counts():
    with pytest.raises(ValueError, match=f"{2**31} rows, more than the {2**31 - 2}"):
        TokenTrie.from_sequences(np.broadcast_to(np.int32(1), (2**31, 1)), vocab_size=2)


@pytest.mark.parametrize("spilled", [False, True])
def test_a_memory_limit_is_kept_by_foresight(spilled: bool, tmp_path: Path):
    rows = np.random.default_rng(0).integers(0, 2000, (200_000, 8), dtype=np.int32)
    options: dict[str, Any] = {"vocab_size": 2048, "num_threads": 2}
    trie = TokenTrie.from_sequences(rows, **options)
    chunks = [rows[:100_000], rows[100_000:]]
    spill = tmp_path if spilled else None
    for limit in (1, 100_000, 1_000_000, trie.nbytes):
        with pytest.raises(MemoryError, match=f"memory_limit={limit} bytes"):
            TokenTrie.from_sequences(rows, **options, memory_limit=limit)
        with pytest.raises(MemoryError, match=f"memory_limit={limit} bytes"):
            TokenTrie.from_chunks(chunks, **options, memory_limit=limit, spill_dir=spill)
    enough = 5 * trie.nbytes // 2
    assert TokenTrie.from_sequences(rows, **options, memory_limit=enough).fingerprint == trie.fingerprint
    again = TokenTrie.from_chunks(chunks, **options, memory_limit=enough, spill_dir=spill)
    assert again.fingerprint == trie.fingerprint


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's own account of memory")
@pytest.mark.parametrize(("length", "num_tokens"), [(8, 2048), (4, 256)])
def test_peak_memory_is_at_most_two_and_a_half_times_the_trie(length: int, num_tokens: int):
    code = """
import sys
import numpy as np
from gentrie import TokenTrie
length, num_tokens, num_chunks, chunk_rows = map(int, sys.argv[1:])
def chunk(seed):
    return np.random.default_rng(seed).integers(0, num_tokens, (chunk_rows, length), dtype=np.int32)
def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
held = [chunk(i) for i in range(2)]  # the one at hand, and the next while it is made
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
before = kilobytes("VmRSS:")
del held
trie = TokenTrie.from_chunks(map(chunk, range(num_chunks)), vocab_size=num_tokens, num_threads=2)
print((kilobytes("VmHWM:") - before) * 1024 / trie.nbytes)
"""
    arguments = map(str, (length, num_tokens, 20, 100_000))
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert float(done.stdout) < 2.5


@pytest.mark.parametrize("phase", ["adding", "merging"])
def test_an_interrupt_leaves_nothing(phase: str, tmp_path: Path):
    code = """
import signal, sys
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)
from gentrie import TokenTrie
rows = np.random.default_rng(0).integers(0, 2000, (500_000, 8), dtype=np.int32)
def chunks():
    if sys.argv[2] == "adding":
        print("ready", flush=True)
    for _ in range(1_000_000 if sys.argv[2] == "adding" else 8):
        yield rows
    print("ready", flush=True)
while True:
    TokenTrie.from_chunks(chunks(), vocab_size=2048, spill_dir=sys.argv[1])
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path, phase], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert process.returncode != 0
    assert os.listdir(tmp_path) == []


def test_progress_bars(capsys: pytest.CaptureFixture[str]):
    from_chunks([[[5, 6]], [[7]]], progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "sorting chunks" in captured.err
    assert "merging" in captured.err
