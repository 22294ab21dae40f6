"""Kernels compiled into a folder: a later process finds them there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from strategies import EOS

from gentrie import TokenTrie, training
from gentrie.warmup import warmup
from gentrie.warmup._steps import titles
from gentrie.warmup._toolchain import ahead_of_time

SHAPES = ("--dtype", "fp32", "--vocab-size", "130")
BATCH = ("--beams", "2", "--prompts", "3")
OF_HISTORIES = {"trie_constrain_kernel", "trie_walk_kernel", "trie_mask_kernel", "trie_bitmask_kernel"}
SERVING = OF_HISTORIES | {"beam_select_kernel", "beam_reduce_kernel"}


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    path = tmp_path / "catalog.safetensors"
    trie_of().save(path)
    return path


def trie_of() -> TokenTrie:
    return TokenTrie.from_sequences([[5, 6, 7], [5, 9], [10], [70, 8]], vocab_size=128, end_token_id=EOS)


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """``python`` with these arguments, without Triton's interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=kept | environment, capture_output=True, text=True, check=False
    )


def compiled_by(catalog: Path, folder: Path, *options: str) -> dict[str, int]:
    """What ``gentrie warmup`` says that it has compiled: kernels and how many of each."""
    done = run("-m", "gentrie.cli", "warmup", catalog, "--cache-dir", folder, *SHAPES, *options)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    counts = {name: int(count) for name, count in (line.split(": ") for line in lines)}
    total = sum(counts.values())
    assert last == f"compiled {total} kernels into {folder}; set TRITON_CACHE_DIR={folder}"
    assert len(list(folder.glob("*/*.cubin"))) >= total
    return counts


@pytest.mark.slow
def test_a_later_process_compiles_nothing(catalog: Path, tmp_path: Path):
    """For a GPU that is not here."""
    pytest.importorskip("triton")
    folder = tmp_path / "made" / "cache"
    first = compiled_by(catalog, folder, "--beams", "1", "--arch", "sm_90")
    assert first.keys() == SERVING
    before = set(folder.rglob("*.cubin"))
    searched = run(Path(__file__).with_name("warm_searches.py"), catalog, "1", TRITON_CACHE_DIR=str(folder))
    assert searched.returncode == 0, searched.stderr
    assert searched.stdout == "36 launches\n"
    assert set(folder.rglob("*.cubin")) == before
    assert compiled_by(catalog, folder, "--beams", "1", "--arch", "sm_90") == {}


@pytest.mark.gpu
def test_what_was_compiled_without_a_device_is_what_the_device_takes(catalog: Path, tmp_path: Path):
    major, minor = torch.cuda.get_device_capability()
    assert compiled_by(catalog, tmp_path / "cache", *BATCH, "--arch", f"sm_{major}{minor}").keys() == SERVING
    assert compiled_by(catalog, tmp_path / "cache", *BATCH) == {}


@pytest.mark.gpu
def test_processors_searches_and_losses_find_their_kernels(catalog: Path, tmp_path: Path):
    folder = tmp_path / "cache"
    assert compiled_by(catalog, folder, *BATCH, "--training", "--hidden-size", "64").keys() > SERVING
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.cubin")}
    code = f"""
import torch
from gentrie import TokenTrie, training
from gentrie.device import DeviceTrie, fill_bitmask
from gentrie.generation import TrieLogitsProcessor
trie = TokenTrie.load({str(catalog)!r})
for length in (16, 32, 21):
    ids = torch.full((6, length), 3, device="cuda")
    processor = TrieLogitsProcessor(trie, prompt_length=length, eos_token_id={EOS})
    processor(ids, torch.randn(6, 130, device="cuda"))
tries, states = DeviceTrie(trie, "cuda"), torch.zeros(6, dtype=torch.int64, device="cuda")
fill_bitmask(
    torch.empty(6, 5, dtype=torch.int32, device="cuda"), states, tries, eos_token_ids=torch.tensor([{EOS}]).cuda()
)
labels = torch.tensor([[5, 6, 7, {EOS}], [10, {EOS}, -100, -100], [70, 8, {EOS}, -100]], device="cuda")
hidden = torch.randn(3, 4, 64, device="cuda", requires_grad=True)
weight = torch.randn(130, 64, device="cuda", requires_grad=True)
training.bear_loss(hidden @ weight.T, labels, trie=trie, beam_width=2).backward()
training.linear_bear_loss(hidden, weight, labels, trie=trie, beam_width=2).backward()
torch.cuda.synchronize()
"""
    searches = Path(__file__).with_name("warm_searches.py"), catalog, "2", "cuda"
    for command in (("-c", code), searches):
        done = run(*command, TRITON_CACHE_DIR=str(folder))
        assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.cubin")} == before


def test_without_a_device_it_says_so(catalog: Path, tmp_path: Path):
    done = run("-m", "gentrie.cli", "warmup", catalog, "--cache-dir", tmp_path / "cache", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout) == (1, "")
    assert "gentrie: there is no CUDA device that torch sees" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trie, folder = trie_of(), tmp_path / "cache"
    for options, kind, message in (
        ({"num_beams": 0}, ValueError, "num_beams=0"),
        ({"num_beams": 513}, ValueError, "num_beams=513"),
        ({"num_prompts": 0}, ValueError, "num_prompts=0"),
        ({"vocab_size": 127}, ValueError, "vocab_size=127"),
        ({"dtype": torch.float64}, ValueError, r"dtype=torch\.float64 is not one of"),
        ({"begin_token_id": 128}, ValueError, "begin_token_id=128"),
        ({"num_eos_tokens": -1}, ValueError, "num_eos_tokens=-1"),
        ({"scope": "all"}, ValueError, "scope='all' is not one of"),
        ({"hidden_size": 0}, ValueError, "hidden_size=0"),
        ({"hidden_size": 8, "arch": "sm_90"}, ValueError, "hidden_size=8: the losses are compiled on a device"),
    ):
        with pytest.raises(kind, match=message):
            warmup(trie, folder, **options)
    with pytest.raises(TypeError, match="trie is a str, expected a TokenTrie"):
        warmup("trie", folder)
    with pytest.raises(ValueError, match="arch='gfx942' is not the name of a kind of GPU"), ahead_of_time("gfx942"):
        pass
    monkeypatch.setattr("gentrie.warmup._toolchain.WIDEN", True)
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1 is set, with which nothing is compiled"):
        warmup(trie, folder)
    assert not folder.exists()


def test_titles_are_sequences_that_losses_take():
    trie = trie_of()
    rows = titles(trie, 4)
    assert rows.tolist() == [[5, 6, 7, EOS], [10, EOS, -100, -100], [70, 8, EOS, -100], [5, 9, EOS, -100]]
    assert training.bear_loss(torch.zeros(4, 4, 130), rows, trie=trie).isfinite()
