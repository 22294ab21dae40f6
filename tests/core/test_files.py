"""Files: what is saved comes back, from any reader; whatever is not ours, damaged or newer is refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from layout import decode
from strategies import Catalog, catalogs, examples

from gentrie import TokenTrie

GOLDEN = Path(__file__).with_name("golden_v3.safetensors")


def golden_trie() -> TokenTrie:
    """What the golden file holds. A new format version gets a golden file of its own."""
    rows = [[7, 300, 12], [7, 300, 99, 5], [7, 8], [70000], [70000], *([9, i, i + 1] for i in range(20, 40))]
    return TokenTrie.from_sequences(rows, vocab_size=131072, end_token_id=2, item_ids=[2**40, *range(len(rows) - 1)])


def run_python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """In a process of its own, so that a crash is a red test."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True, **options
    )


@given(catalogs())
@examples(60)
def test_round_trip_and_decoded_by_another_reader(tmp_path_factory: pytest.TempPathFactory, catalog: Catalog):
    path = tmp_path_factory.mktemp("trie") / "x.safetensors"
    trie, oracle = catalog.build(), catalog.oracle()
    trie.save(path, {"codebook": "v7", 'naïve "key"\n': "\\ \u2028 🧩"})
    loaded = TokenTrie.load(path, verify=True)
    assert loaded.fingerprint == trie.fingerprint
    assert loaded.metadata == {"codebook": "v7", 'naïve "key"\n': "\\ \u2028 🧩"}
    assert repr(loaded) == repr(trie)
    assert all(np.array_equal(a, b) for a, b in zip(loaded.to_sequences(), trie.to_sequences(), strict=True))
    assert decode(path) == [(list(s), sorted(oracle.items[s])) for s in oracle.sequences]


def test_golden_file(tmp_path: Path):
    golden_trie().save(tmp_path / "new.safetensors", {"made by": "test_files.py"})
    assert GOLDEN.read_bytes() == (tmp_path / "new.safetensors").read_bytes()
    TokenTrie.load(GOLDEN).save(tmp_path / "again.safetensors")
    assert GOLDEN.read_bytes() == (tmp_path / "again.safetensors").read_bytes()


def test_arrays_begin_at_multiples_of_64_and_checksums_are_xxh64():
    xxhash = pytest.importorskip("xxhash")
    data = GOLDEN.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    meta = header.pop("__metadata__")
    assert (8 + length) % 64 == 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert begin % 64 == end % 64 == 0
        body = data[8 + length + begin : 8 + length + end]
        assert meta[f"gentrie.xxh64.{name}"] == xxhash.xxh64_hexdigest(body)


def test_truncated_at_every_length_and_altered_at_every_byte(tmp_path: Path):
    done = run_python(
        """
        import random, sys
        from gentrie import TokenTrie
        data, path = open(sys.argv[1], "rb").read(), sys.argv[2]
        def refused(altered):
            with open(path, "wb") as file:
                file.write(altered)
            try:
                TokenTrie.load(path)
            except ValueError as error:
                assert path in str(error), error
                return
            raise AssertionError("an altered file was loaded")
        for length in range(len(data)):
            refused(data[:length])
        refused(data + b"x")
        random.seed(0)
        for at in range(len(data)):
            for bit in random.sample(range(8), 2):
                refused(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1:])
        print("all refused")
        """,
        GOLDEN,
        tmp_path / "altered.safetensors",
    )
    assert done.stdout == "all refused\n", done.stderr[-2000:]


def test_an_altered_body_that_is_not_verified_never_crashes(tmp_path: Path):
    pytest.importorskip("transformers")
    done = run_python(
        """
        import random, sys
        import torch
        from gentrie import TokenTrie, TrieMatcher
        from gentrie.generation import TrieLogitsProcessor
        data, path = open(sys.argv[1], "rb").read(), sys.argv[2]
        body = 8 + int.from_bytes(data[:8], "little")
        def tried(call, *arguments, **options):
            try:
                return call(*arguments, **options)
            except (ValueError, IndexError):  # a contradiction seen is fine too
                return None
        for seed in range(150):
            rng, altered = random.Random(seed), bytearray(data)
            for _ in range(rng.choice([1, 3, 30, 300])):
                altered[rng.randrange(body, len(data))] = rng.choice([0, 255, rng.randrange(256)])
            with open(path, "wb") as file:
                file.write(altered)
            trie = TokenTrie.load(path, verify=False)
            states = [0]
            for state in states:
                if len(states) > 300:
                    break
                tokens = tried(trie.next_tokens, state)
                for verb in (trie.forced_tokens, trie.is_leaf, trie.num_sequences_below, trie.items_below):
                    tried(verb, state)
                for token in () if tokens is None else tokens[:20].tolist():
                    after = tried(trie.advance, state, token)
                    if after is not None and after >= 0:
                        states.append(after)
            tried(trie.to_sequences), tried(trie.resolve, [7, 300, 12]), tried(trie.verify)
            tried(trie.next_tokens_batch, states), tried(trie.advance_batch, states, [7] * len(states))
            tried(trie.token_states, [[0, 7, 300, 12, 2], [0, 9, 21, 22, 2]], begin_token_id=0)
            options = {"unique": rng.choice([False, True, "item"]), "item_filter": rng.choice([None, [1, 2, 20]])}
            matcher = tried(TrieMatcher, trie, begin_token_id=0, eos_token_id=1, **options)
            if matcher is None:
                continue
            mask = torch.empty(1, 4096, dtype=torch.int32)
            for token in (0, 7, 300, 12, 2, 0, 9, 21, 22, 2, 0):
                tried(matcher.accept_token, token), tried(matcher.find_jump_forward_tokens)
            history = torch.tensor([[0, 7, 300, 12, 2, 0], [5, 5, 0, 7, 8, 2]])
            scores = torch.zeros(2, 131072)
            tried(matcher.fill_next_token_bitmask, mask)
            tried(tried(TrieLogitsProcessor, trie, begin_token_id=0, eos_token_id=1, **options), history, scores)
        print("no crash")
        """,
        GOLDEN,
        tmp_path / "altered.safetensors",
    )
    assert done.stdout == "no crash\n", (done.returncode, done.stderr[-2000:])


def test_foreign_files_are_refused(tmp_path: Path):
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    for content in (b"", b"{}", b"\0" * 64, os.urandom(4096), b"\x02\0\0\0\0\0\0\0{}"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a gentrie file"):
            TokenTrie.load(path)
    save_file({"weight": np.zeros(3)}, path)
    with pytest.raises(ValueError, match="not a gentrie file"):
        TokenTrie.load(path)
    with pytest.raises(FileNotFoundError, match=r"missing\.safetensors"):
        TokenTrie.load(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError):
        TokenTrie.load(tmp_path)


def test_a_newer_format_names_both_versions(tmp_path: Path):
    data = GOLDEN.read_bytes()
    key = b'"gentrie.format_version":"3"'
    assert key in data
    (tmp_path / "new.safetensors").write_bytes(data.replace(key, key.replace(b'"3"', b'"9"')))
    with pytest.raises(ValueError, match=r"format version 9, this library \(.*\) reads version 3"):
        TokenTrie.load(tmp_path / "new.safetensors")


def test_required_metadata(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    golden_trie().save(path, {"codebook": "v7"})
    assert TokenTrie.load(path, require={"codebook": "v7"}).metadata["codebook"] == "v7"
    with pytest.raises(ValueError, match="codebook='v7', required 'v8'"):
        TokenTrie.load(path, require={"codebook": "v8"})
    with pytest.raises(ValueError, match="shop=None"):
        TokenTrie.load(path, require={"shop": "a"})
    with pytest.raises(ValueError, match=r"gentrie\.mine"):
        golden_trie().save(path, {"gentrie.mine": "x"})
    with pytest.raises(TypeError, match="'n'"):
        golden_trie().save(path, {"n": 3})  # type: ignore[dict-item]
    assert TokenTrie.load(path).metadata == {"codebook": "v7"}


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    done = run_python(
        """
        import resource, signal, sys
        from gentrie import TokenTrie
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        trie = TokenTrie.from_sequences([[i, i + 1] for i in range(5000)], vocab_size=6000)
        try:
            trie.save(sys.argv[1])
        except OSError as error:
            print(type(error).__name__, sys.argv[1] in str(error))
        """,
        path,
    )
    assert done.stdout == "OSError True\n", done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]
    assert path.read_bytes() == b"old"
    with pytest.raises(FileNotFoundError):
        golden_trie().save(tmp_path / "no" / "such" / "folder.safetensors")


def mapped_kilobytes(path: Path) -> dict[str, int]:
    """Sums over this process's mappings of a file, by the names of /proc/self/smaps."""
    found: dict[str, int] = defaultdict(int)
    is_ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
            is_ours = line.endswith(str(path))
        elif is_ours and line.endswith(" kB"):
            name, kilobytes, _ = line.split()
            found[name.rstrip(":")] += int(kilobytes)
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's own account of mappings")
def test_a_large_file_is_mapped_read_on_demand_and_shared(tmp_path: Path):
    path = tmp_path / "large.safetensors"
    rows = np.random.default_rng(0).integers(0, 256, (2_500_000, 4), dtype=np.int32)
    TokenTrie.from_sequences(rows, vocab_size=256).save(path)
    size = path.stat().st_size // 1024
    assert size > 16 << 10  # smaller ones are verified
    trie = TokenTrie.load(path)
    assert mapped_kilobytes(path)["Size"] >= size
    assert mapped_kilobytes(path)["Rss"] < size / 4
    other = TokenTrie.load(path, prefault=True)
    assert mapped_kilobytes(path)["Rss"] >= size
    trie.verify()
    assert mapped_kilobytes(path)["Rss"] >= 2 * size
    assert mapped_kilobytes(path)["Shared_Clean"] >= 2 * size  # the same pages, seen twice
    assert mapped_kilobytes(path)["Private_Dirty"] == 0
    assert trie.fingerprint == other.fingerprint
    with pytest.raises(ValueError, match="prefault=1"):
        TokenTrie.load(path, prefault=1)  # type: ignore[arg-type]

    length = int.from_bytes(path.read_bytes()[:8], "little")
    with open(path, "r+b") as file:  # the last byte before the padding of an array of many pages
        file.seek(8 + length + 6_000_000)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(ValueError, match="altered"):
        TokenTrie.load(path, verify=True)


def test_an_interrupt_during_a_save_leaves_a_whole_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    golden_trie().save(path)
    code = """
import signal, sys
import numpy as np
signal.signal(signal.SIGINT, signal.default_int_handler)
from gentrie import TokenTrie
trie = TokenTrie.from_sequences(np.random.default_rng(0).integers(0, 2000, (500_000, 8)), vocab_size=2048)
while True:
    trie.save(sys.argv[1])
"""
    process = subprocess.Popen([sys.executable, "-c", code, path], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and len(os.listdir(tmp_path)) == 1:  # until a file is half-written
        time.sleep(1e-4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert os.listdir(tmp_path) == ["x.safetensors"]
    TokenTrie.load(path, verify=True)


if __name__ == "__main__":
    golden_trie().save(GOLDEN, {"made by": "test_files.py"})
