"""Files with checksums that fit and contents that do not: an error or a wrong answer, never a read or write outside,
never without end."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from altered import AlteredFile

from gentrie import ItemFilter, TokenTrie, TrieMatcher


def run_python(code: str, *arguments: object) -> str:
    """What a process of its own prints, so that a crash is a red test."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return done.stdout


def taken_apart(tmp_path: Path, sequences: list[list[int]], **options: int) -> AlteredFile:
    path = tmp_path / "sound.safetensors"
    TokenTrie.from_sequences(sequences, **options).save(path)  # type: ignore[arg-type]
    return AlteredFile(path)


def test_what_is_put_together_unaltered_is_the_same_file(tmp_path: Path):
    file = taken_apart(tmp_path, [[5, 6, 7], [5, 8], [9]], vocab_size=20, end_token_id=1)
    again = file.write(tmp_path / "again.safetensors")
    assert again.read_bytes() == (tmp_path / "sound.safetensors").read_bytes()


def test_more_edges_than_leaves_are_not_visited(tmp_path: Path):
    file = taken_apart(tmp_path, [[0], [1]], vocab_size=4)
    leaves = 4096
    edges = 2 * leaves - 1
    file.counts |= {"num_nodes": leaves, "num_sequences": leaves, "num_items": leaves, "max_branching": 2}
    file.counts |= {"run_offset_bits": 0}
    file.set("edge_indptr", [0] + [edges] * leaves)
    file.set("edge_tokens", [0] * edges)
    file.set("edge_to_node", [min(32 * word, leaves - 1) << 32 for word in range(edges // 32 + 1)])
    file.set("leaf_begin", [0] * leaves)
    file.set("leaf_prefix", range(leaves + 1))
    file.set("run_blocks", [0] * (2 * leaves // 64 + 1))
    file.set("run_offsets", [0, 0])
    file.set("item_ids", range(leaves))
    code = """
    import sys
    from gentrie import ItemFilter, TokenTrie
    trie = TokenTrie.load(sys.argv[1], verify=False)
    for call in (trie.to_sequences, ItemFilter.all_items(trie)._core.allowed_sequences):
        for _ in range(20):
            try:
                call()
            except ValueError as error:
                assert "contradict each other" in str(error), error
            else:
                raise AssertionError("more sequences than there are")
    print("refused")
    """
    assert run_python(code, file.write(tmp_path / "x.safetensors")) == "refused\n"


def test_rollback_takes_back_what_was_spent_and_no_more(tmp_path: Path):
    file = taken_apart(tmp_path, [[1, 0, 2], [3, 4]], vocab_size=10)
    file.set(
        "vocabulary", [5, 1, 2, 3, 4]
    )  # not ascending: 5 is not found, so may be the end of a turn, but is in a run
    code = """
    import sys
    from gentrie import TokenTrie, TrieMatcher
    trie = TokenTrie.load(sys.argv[1], verify=False)
    for unique in (False, True, "item"):
        matcher = TrieMatcher(trie, begin_token_id=9, eos_token_id=5, unique=unique)
        while matcher.accept_tokens([9, 1, 5]) and matcher.num_accepted < 9:
            pass
        matcher.rollback(matcher.num_accepted)
        assert matcher.num_accepted == 0
    print("back")
    """
    assert run_python(code, file.write(tmp_path / "x.safetensors")) == "back\n"


@pytest.mark.parametrize("rank", [0xFFFFFFFF, 0])
def test_no_walk_leads_in_a_circle(tmp_path: Path, rank: int):
    file = taken_apart(tmp_path, [[0, 0, 1], [0, 0, 2], [0, 3, 1], [0, 3, 4]], vocab_size=5)
    file.set("edge_to_node", [rank << 32 | 0xFF])  # rank 2^32 - 1 makes edge 0 of the root lead to the root
    trie = TokenTrie.load(file.write(tmp_path / "x.safetensors"), verify=False)
    state, steps = 0, 0
    while (tokens := trie.next_tokens(state)).size and (state := trie.advance(state, int(tokens[0]))) >= 0:
        steps += 1
        assert steps <= trie.num_sequences + 1
    assert TrieMatcher(trie).find_jump_forward_tokens().size <= trie.max_depth


def test_runs_that_overlap_do_not_make_long_sequences(tmp_path: Path):
    rows = [[i // 2**bit & 1 for bit in range(6)] + [i, i + 1, i + 2] for i in range(64)]
    file = taken_apart(tmp_path, rows, vocab_size=100)
    count = file.counts["num_run_tokens"]
    file.set("run_blocks", [0] * file.arrays["run_blocks"].size)
    file.counts["run_offset_bits"] = 32
    targets = file.counts["num_nodes"] + file.counts["num_sequences"]
    file.set("run_offsets", [0 if target % 2 else count for target in range(targets + 1)] + [0, 0])
    trie = TokenTrie.load(file.write(tmp_path / "x.safetensors"), verify=False)
    with pytest.raises(ValueError, match="contradict each other"):
        trie.to_sequences()
    assert TrieMatcher(trie).find_jump_forward_tokens().size <= trie.max_depth


def test_items_that_every_sequence_claims_are_listed_once(tmp_path: Path):
    file = taken_apart(tmp_path, [[i // 2] for i in range(400)], vocab_size=200)
    file.set("item_indptr", [0 if leaf % 2 else 400 for leaf in range(200)] + [400])
    file.arrays["item_indptr"][0] = 0
    trie = TokenTrie.load(file.write(tmp_path / "x.safetensors"), verify=False)
    assert trie.items_below(0).tolist() == list(range(400))
    with pytest.raises(ValueError, match="contradict each other"):
        trie.to_sequences()
    chosen = ItemFilter.from_item_ids(trie, [1, 2, 399])
    assert chosen.items_below(0).tolist() == [1, 2, 399]
    assert chosen.deny([2, 1]).items_below(0).tolist() == [399]


def test_one_fingerprint_does_not_make_one_catalog(tmp_path: Path):
    wide = TokenTrie.from_sequences([[i] for i in range(64)], vocab_size=70)
    file = taken_apart(tmp_path, [[i // 2, 64 + i % 2] for i in range(64)], vocab_size=70)
    path = file.write(tmp_path / "deep.safetensors")
    deep = TokenTrie.load(path)
    # The fingerprint is a 64-bit sum that can be solved for one array's checksum: as good as any claim.
    last = solved([*words_of(file)[:-1]], int(wide.fingerprint, 16))
    file.checksums = {name: 0 for name in file.arrays} | {"item_ids": last}
    claimed = TokenTrie.load(file.write(path), verify=False)
    assert claimed.fingerprint == wide.fingerprint
    assert claimed.num_sequences == wide.num_sequences
    chosen = ItemFilter.from_item_ids(wide, range(0, 64, 3))
    with pytest.raises(ValueError, match="belongs to the trie"):
        TrieMatcher(claimed, item_filter=chosen)
    with pytest.raises(ValueError, match="belongs to the trie"):
        chosen & ItemFilter.all_items(claimed)
    again = TokenTrie.load(tmp_path / "sound.safetensors")
    assert TrieMatcher(again, item_filter=ItemFilter.all_items(deep)).get_allowed_tokens().size == 32


def words_of(file: AlteredFile) -> list[int]:
    """What a fingerprint is made of where all checksums are claimed to be 0."""
    names = ("vocab_size", "end_token_id", "num_nodes", "num_sequences", "num_items")
    words = [file.counts[name] & (2**64 - 1) for name in names]
    return words + [word for array in file.arrays.values() for word in (array.size, 0)]


def solved(words: list[int], target: int) -> int:
    """The last of the words with which XXH64 gives ``target``."""
    mask = 2**64 - 1
    p1, p2, p3, p4 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63

    def rotated(x: int, by: int) -> int:
        return (x << by | x >> 64 - by) & mask

    def mixed(lane: int, word: int) -> int:
        return rotated((lane + word * p2) & mask, 31) * p1 & mask

    def divided(x: int, prime: int) -> int:
        return x * pow(prime, -1, 2**64) & mask

    h = target ^ target >> 32
    h = divided(h, p3)
    h ^= h >> 29
    h ^= h >> 58
    h = divided(h, p2)
    h ^= h >> 33
    lanes, at = [(p1 + p2) & mask, p2, 0, -p1 & mask], 0
    while len(words) + 1 - at >= 4:
        lanes = [mixed(lane, words[at + i]) for i, lane in enumerate(lanes)]
        at += 4
    g = sum(rotated(lane, by) for lane, by in zip(lanes, (1, 7, 12, 18), strict=True)) & mask
    for lane in lanes:
        g = ((g ^ mixed(0, lane)) * p1 + p4) & mask
    g = (g + 8 * (len(words) + 1)) & mask
    for word in words[at:]:
        g = (rotated(g ^ mixed(0, word), 27) * p1 + p4) & mask
    return divided(rotated(divided(g ^ rotated(divided((h - p4) & mask, p1), 37), p1), 33), p2)


@pytest.mark.parametrize("verify", [None, False, True])
def test_no_count_is_believed_that_no_array_bears_out(tmp_path: Path, verify: bool | None):
    file = taken_apart(tmp_path, [[i, 0] for i in range(64)], vocab_size=64)
    file.counts |= {"num_run_tokens": 2**40, "run_token_bits": 0, "run_offset_bits": 0}
    file.set("run_tokens", [0, 0])
    file.set("run_blocks", [0, 2**40])
    file.set("run_offsets", [0, 0])
    with pytest.raises(ValueError, match="counts contradict each other"):
        TokenTrie.load(file.write(tmp_path / "x.safetensors"), verify=verify)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_depth": 3}, "max_depth is not the length"),
        ({"max_depth": 0}, "counts contradict"),
        ({"max_depth": 2**40}, "counts contradict"),
        ({"max_branching": 1}, "max_branching is not the most"),
        ({"max_branching": 0}, "counts contradict"),
        ({"max_branching": 2**32 + 2}, "counts contradict"),
        ({"end_token_id": 7}, "end_token_id is not the last"),
        ({"end_token_id": 19}, "end_token_id is not the last"),
        ({"run_token_bits": 2}, "counts contradict"),
    ],
)
def test_verify_holds_every_count_against_the_arrays(tmp_path: Path, change: dict[str, int], message: str):
    file = taken_apart(tmp_path, [[5, 6, 7, 8], [5, 6, 9], [10, 11]], vocab_size=20, end_token_id=1)
    file.counts |= change
    path = file.write(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message):
        TokenTrie.load(path, verify=True)
    if "counts" not in message:
        with pytest.raises(ValueError, match=message):
            TokenTrie.load(path, verify=False).verify()


def test_an_end_token_in_the_midst_of_a_sequence_is_seen(tmp_path: Path):
    file = taken_apart(tmp_path, [[1, 5, 2], [3, 4, 2]], vocab_size=20)
    file.counts["end_token_id"] = 2
    assert TokenTrie.load(file.write(tmp_path / "x.safetensors")).end_token_id == 2
    again = taken_apart(tmp_path, [[1, 2, 2], [3, 4, 2]], vocab_size=20)
    again.counts["end_token_id"] = 2
    with pytest.raises(ValueError, match="end_token_id is not the last"):
        TokenTrie.load(again.write(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(70_000)) + b"}}",
        b'{"t":{"dtype":"U8","shape":[' + b"1," * 100_000 + b'1],"data_offsets":[0,0]}}',
        b"{" + b",".join(b'"%x":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(70_000)) + b"}",
    ],
)
def test_a_header_of_many_entries_is_refused_as_soon_as_it_has_too_many(tmp_path: Path, header: bytes):
    path = tmp_path / "x.safetensors"
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(ValueError, match="too many"):
        TokenTrie.load(path)


def test_metadata_that_no_reader_takes_is_not_written(tmp_path: Path):
    trie = TokenTrie.from_sequences([[1]], vocab_size=2)
    with pytest.raises(ValueError, match="entries, more than"):
        trie.save(tmp_path / "x.safetensors", {str(i): "" for i in range(70_000)})
    assert os.listdir(tmp_path) == []


def test_a_pipe_is_refused_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    code = "import signal, sys; signal.alarm(60); from gentrie import TokenTrie\ntry: TokenTrie.load(sys.argv[1])\n"
    assert run_python(code + "except OSError as error: print(error.strerror)", tmp_path / "pipe") != ""
    trie = TokenTrie.from_sequences([[1]], vocab_size=2)
    with pytest.raises(OSError, match="cannot replace"):
        trie.save(tmp_path / "pipe")


def test_a_copy_does_not_see_what_is_written_over_its_file(tmp_path: Path):
    path, other = tmp_path / "x.safetensors", tmp_path / "other.safetensors"
    rows = np.arange(1000).reshape(-1, 1)
    TokenTrie.from_sequences(rows, vocab_size=1000).save(path)
    TokenTrie.from_sequences(rows, vocab_size=1000, item_ids=np.arange(1000)[::-1]).save(other)
    mapped, copy = TokenTrie.load(path), TokenTrie.load(path, copy=True)
    mapped._core.check_file_unchanged()
    with open(path, "r+b") as file:  # as cp does
        file.write(other.read_bytes())
    os.utime(path, (0, 0))
    assert mapped.resolve([5]).tolist() == [994]
    assert copy.resolve([5]).tolist() == [5]
    copy.verify()
    copy._core.check_file_unchanged()
    with pytest.raises(ValueError, match="was written to since it was loaded"):
        mapped._core.check_file_unchanged()
    TokenTrie.load(other).save(path)  # another file in its place
    mapped._core.check_file_unchanged()
    with open(path, "r+b") as file:
        file.truncate(100)
    assert copy.resolve([5]).tolist() == [5]
    with pytest.raises(ValueError, match="copy=1"):
        TokenTrie.load(other, copy=1)  # type: ignore[arg-type]
