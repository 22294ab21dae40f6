"""The command line on large catalogs: collisions, memory limits, progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import fast_tokenizer
from typer.testing import CliRunner

from gentrie import TokenTrie
from gentrie.cli import app

CODES = [[0, 1], [2, 3], [0, 1], [0, 2]]


def run(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    return result


def error(*arguments: object, code: int = 2) -> str:
    """The one line on stderr of a command that must fail and write nothing."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return str(result.stderr)


@pytest.fixture
def build(tmp_path: Path) -> tuple[object, ...]:
    np.save(tmp_path / "codes.npy", np.array(CODES))
    options = ("--vocab-size", 100, "--token-base", 10, "--token-stride", 10)
    return ("build", tmp_path / "codes.npy", "-o", tmp_path / "trie.safetensors", *options)


def test_collisions(build: tuple[object, ...], tmp_path: Path) -> None:
    kept = run(*build).stdout
    assert "items 0" not in kept
    assert run(*build, "--on-collision", "keep").stdout.splitlines()[0] == kept.splitlines()[0]
    listed = run(*build, "--on-collision", "list").stdout.splitlines()
    assert listed[:2] == ["items 0, 2: tokens 10 21", kept.splitlines()[0]]
    trie = TokenTrie.load(tmp_path / "trie.safetensors")
    assert trie.resolve([10, 21]).tolist() == [0, 2]

    run(*build, "--on-collision", "suffix")
    trie = TokenTrie.load(tmp_path / "trie.safetensors")
    assert trie.num_sequences == 4
    assert trie.resolve([10, 21, 31]).tolist() == [2]


def test_refused_collisions_leave_no_file(build: tuple[object, ...], tmp_path: Path) -> None:
    assert "items 0 and 2" in error(*build, "--on-collision", "error")
    assert "--on-collision" in run(*build, "--on-collision", "nonsense", code=2).stderr
    assert not (tmp_path / "trie.safetensors").exists()


def test_collisions_of_titles(tmp_path: Path) -> None:
    fast_tokenizer().save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "titles.txt").write_text("a cat\na dog\na cat\n")
    build = ("build", tmp_path / "titles.txt", "-o", tmp_path / "trie.safetensors")
    build += ("--tokenizer", tmp_path / "tokenizer")
    assert run(*build, "--on-collision", "list").stdout.startswith("item 0: 'a cat'; item 2: 'a cat'\n")
    assert "--on-collision suffix does not go with titles" in error(*build, "--on-collision", "suffix")
    assert "'a cat'" in error(*build, "--on-collision", "error")
    assert "--memory-limit=1 bytes" in error(*build, "--memory-limit", "1", code=1)


@pytest.mark.parametrize("limit", ["2000000000", "2GB", "1.5GiB", "900mb", "70000 KB"])
def test_memory_limits_that_suffice(build: tuple[object, ...], limit: str) -> None:
    assert run(*build, "--memory-limit", limit).stdout.startswith("4 items")


def test_a_memory_limit_that_does_not(build: tuple[object, ...], tmp_path: Path) -> None:
    assert "--memory-limit=10 bytes" in error(*build, "--memory-limit", 10, code=1)
    assert not (tmp_path / "trie.safetensors").exists()


@pytest.mark.parametrize("limit", ["", "many", "2PB", "-5MB", "0", "nan", "inf GB", "1e400", "5 M B"])
def test_no_memory_limit(build: tuple[object, ...], limit: str) -> None:
    assert "--memory-limit must be a number of bytes" in error(*build, f"--memory-limit={limit}")


def test_progress(build: tuple[object, ...], tmp_path: Path) -> None:
    path = tmp_path / "trie.safetensors"
    assert "building" in run(*build, "--progress").stderr
    assert "verifying" in run("verify", path, "--progress").stderr
    assert "comparing neighbours" in run("inspect", path, "--progress").stderr
    assert run(*build).stderr == "gentrie: item ids: row numbers, from 0\n"
    for command in (("verify", path), ("inspect", path), ("inspect", path, "--no-progress")):
        assert run(*command).stderr == ""


def test_an_altered_file_is_named(build: tuple[object, ...], tmp_path: Path) -> None:
    run(*build)
    path = tmp_path / "trie.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-64] + bytes(byte ^ 1 for byte in whole[-64:]))
    assert f"{path}: an array was altered" in error("verify", path, code=1)


def test_progress_reaches_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    rows = np.random.default_rng(0).integers(0, 50, (200_000, 3), dtype=np.int32)
    trie = TokenTrie.from_sequences(rows, vocab_size=50)
    trie.verify(progress=True)
    assert capsys.readouterr().err.splitlines()[-1].split("\r")[-1].startswith("verifying: 100%")
