"""The command line, on files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import HARD_TITLES, REAL_DATA, fast_tokenizer, real_titles
from typer.testing import CliRunner

import gentrie
from gentrie import TokenTrie
from gentrie.cli import app

SEQUENCES = [[1, 2, 3], [1, 2, 4], [1, 5, 3], [6, 2, 3], [6, 2, 3]]


def run(*arguments: object, code: int = 0) -> Any:
    """Runs a command; its ``stdout`` and ``stderr`` are those of a process that is no terminal."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.stdout, result.stderr, result.exception)
    if code == 0 and arguments[0] != "build":
        assert result.stderr == ""
    return result


def error(*arguments: object, code: int = 2) -> str:
    """Runs a command that must fail; returns its one line on stderr."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("gentrie: ")
    return lines[0].removeprefix("gentrie: ")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    fast_tokenizer().save_pretrained(folder)
    return folder


def saved(path: Path, sequences: Any = SEQUENCES, **settings: Any) -> Path:
    TokenTrie.from_sequences(sequences, **{"vocab_size": 10, "end_token_id": 0, **settings}).save(path)
    return path


@pytest.fixture
def trie_file(tmp_path: Path) -> Path:
    return saved(tmp_path / "trie.safetensors")


# ------------------------------------------------------------------------------------------------ whole


def test_version_and_help() -> None:
    assert run("--version").stdout == f"gentrie {gentrie.__version__}\n"
    text = run("--help").stdout
    for command in (
        "build",
        "inspect",
        "lookup",
        "verify",
        "diff",
        "demo",
        "warmup",
        "bench",
        "gpu-check",
        "collect-env",
    ):
        assert command in text
        assert run(command, "--help").stdout.startswith("Usage: ")
    assert "table-a2" in run("bench", "--help").stdout


@pytest.mark.parametrize("arguments", [["nonsense"], ["inspect"], ["build", "x.txt"], ["verify", "--nonsense"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    result = run(*arguments, code=2)
    assert "Usage: " in result.stderr
    assert "Traceback" not in result.stderr


def test_as_a_process(tmp_path: Path, trie_file: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gentrie", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    done = call("verify", trie_file.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("trie.safetensors: ok")

    failed = call("verify", "none.safetensors")
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("gentrie: ")
    assert failed.stderr.count("\n") == 1

    # A closed stdout, where results would be lost without a word.
    closed = ["sh", "-c", '"$@" >&-', "sh", sys.executable, "-m", "gentrie", "verify", trie_file.name]
    done = subprocess.run(closed, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "gentrie: stdout is closed\n")

    debugged = call("--debug", "verify", "none.safetensors")
    assert debugged.returncode != 0
    assert "Traceback" in debugged.stderr


def test_commands_start_without_torch_and_transformers() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'matplotlib'}"
    code = f"import sys, gentrie.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# ------------------------------------------------------------------------------------------------ build


def test_build_from_text(tmp_path: Path, tokenizer_folder: Path) -> None:
    titles = [title for title in HARD_TITLES if "\n" not in title]
    (tmp_path / "titles.txt").write_text("\n".join(titles) + "\n", encoding="utf-8")
    output = tmp_path / "trie.safetensors"
    result = run(
        *("build", tmp_path / "titles.txt", "--tokenizer", tokenizer_folder, "--template", '"{title}"'),
        *("--context", "Recommend:\n", "--end-token", "</s>", "-o", output),
        *("--metadata", "catalog=hard=1", "--metadata", "note="),
    )
    assert f"{len(titles)} items, {len(set(titles))} distinct sequences" in result.stdout
    assert f"wrote {output}" in result.stdout

    trie = TokenTrie.load(output)
    tokenizer = fast_tokenizer()
    assert trie.vocab_size == len(tokenizer)
    assert trie.end_token_id == 0
    assert trie.metadata["catalog"] == "hard=1"
    assert trie.metadata["note"] == ""
    trie.check_tokenizer(tokenizer)
    for row, title in enumerate(titles):
        ids = tokenizer(f'Recommend:\n"{title}"', add_special_tokens=False)["input_ids"]
        context = tokenizer("Recommend:\n", add_special_tokens=False)["input_ids"]
        assert row in trie.resolve(ids[len(context) :])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_build_with_item_ids(tmp_path: Path, tokenizer_folder: Path, kind: str) -> None:
    ids = [1000 - i for i in range(len(HARD_TITLES))]
    path = tmp_path / f"catalog.{kind}"
    if kind == "jsonl":
        rows = ({"id": i, "name": title} for i, title in zip(ids, HARD_TITLES, strict=True))
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "csv":
        pandas = pytest.importorskip("pandas")
        pandas.DataFrame({"id": ids, "name": HARD_TITLES}).to_csv(path, index=False)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"id": ids, "name": HARD_TITLES}), path)
    output = tmp_path / "trie.safetensors"
    tokenizer = tokenizer_folder / "tokenizer.json"
    run(
        *("build", path, "--tokenizer", tokenizer, "--title-field", "name", "--id-field", "id"),
        *("--end-token", 0, "--vocab-size", 600, "-o", output),
    )
    trie = TokenTrie.load(output)
    assert trie.vocab_size == 600
    for item_id, title in zip(ids, HARD_TITLES, strict=True):
        assert item_id in trie.resolve(fast_tokenizer()(title, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", ["toy", "office"])
def test_build_real_titles_with_mistral_common(tmp_path: Path, name: str) -> None:
    titles = real_titles(name)
    mistral_common = pytest.importorskip("mistral_common", reason="mistral-common is not installed")
    tekken = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    if not tekken.is_file():
        pytest.skip("this mistral-common does not ship a tekken file")
    output = tmp_path / "trie.safetensors"
    run(
        *("build", REAL_DATA / name / "catalog.jsonl", "--id-field", "item_id", "--tokenizer", tekken),
        *("--template", '"{title}"', "--end-token", "</s>", "-o", output),
    )
    found = json.loads(run("inspect", output, "--json").stdout)["statistics"]
    assert found["items"] == len(titles)
    assert found["sequences"] == len(set(titles))
    assert found["forced_share"] > 0.6
    run("verify", output)


def test_build_from_semantic_ids(tmp_path: Path) -> None:
    codes = np.array([[0, 1, 2], [0, 1, 3], [3, 0, 0]], dtype=np.uint8)
    np.save(tmp_path / "codes.npy", codes)
    output = tmp_path / "trie.safetensors"
    common = ("build", tmp_path / "codes.npy", "--vocab-size", 200, "-o", output)

    run(*common, "--token-base", 100, "--token-stride", 4)
    trie = TokenTrie.load(output)
    assert trie.end_token_id is None
    assert trie.resolve([100, 105, 111]).tolist() == [1]

    table = np.arange(12).reshape(3, 4) + 50
    np.save(tmp_path / "table.npy", table)
    np.save(tmp_path / "ids.npy", np.array([7, 8, 9]))
    run(*common, "--token-ids", tmp_path / "table.npy", "--item-ids", tmp_path / "ids.npy")
    assert TokenTrie.load(output).resolve([53, 54, 58]).tolist() == [9]

    assert "need --token-base and --token-stride, or --token-ids" in error(*common)
    assert "need --token-base and --token-stride, or --token-ids" in error(*common, "--token-base", 1)
    assert "--token-base does not go with --token-ids" in error(
        *common, "--token-ids", tmp_path / "table.npy", "--token-base", 1
    )
    assert "--tokenizer does not go with semantic ids" in error(*common, "--tokenizer", "x")
    assert "need --vocab-size" in error("build", tmp_path / "codes.npy", "-o", output)
    assert "codes[1][2]=3 is outside [0, 3)" in error(*common, "--token-base", 100, "--token-stride", 3)


def test_build_refuses_bad_input_and_writes_nothing(tmp_path: Path, tokenizer_folder: Path) -> None:
    output = tmp_path / "trie.safetensors"
    good = tmp_path / "good.txt"
    good.write_text("red box\nred\nblue\n")
    common = ("--tokenizer", tokenizer_folder, "-o", output)

    def refused(*arguments: object) -> str:
        message = error("build", *arguments)
        assert not output.exists()
        return message

    assert "none.txt" in refused(tmp_path / "none.txt", *common)
    (tmp_path / "blank.txt").write_text("red\n\nblue\n")
    assert "blank.txt, line 2: the title must be a non-empty string" in refused(tmp_path / "blank.txt", *common)
    (tmp_path / "x.jsonl").write_text('{"title": "red", "id": 1.5}\n')
    advice = refused(tmp_path / "x.jsonl", "--id-field", "id", *common)
    assert "item ids must be integers, got 1.5, or all of them strings; --id-field '' numbers the items" in advice
    (tmp_path / "x.doc").write_text("red\n")
    assert "unknown ending '.doc'" in refused(tmp_path / "x.doc", *common)
    assert "titles need --tokenizer" in refused(good, "-o", output)
    assert "--token-base does not go with titles" in refused(good, "--token-base", 3, *common)
    assert "no tokenizer file or folder ./none" in refused(good, "--tokenizer", "./none", "-o", output)
    assert "the tokenizer has no token '<eos>'" in refused(good, "--end-token", "<eos>", *common)
    assert "template must contain '{title}'" in refused(good, "--template", "x", *common)
    assert "prefix" in refused(good, *common)
    assert "--metadata must be KEY=VALUE, got 'x'" in refused(good, "--metadata", "x", *common)
    assert "--metadata has 'a' twice" in refused(good, "--metadata", "a=1", "--metadata", "a=2", *common)
    assert "fills itself" in refused(good, "--end-token", 0, "--metadata", "template=x", *common)
    folder = tmp_path / "none"
    message = refused(good, "--tokenizer", tokenizer_folder, "-o", folder / "trie.safetensors")
    assert "the folder of --output" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blank.txt", "good.txt", "x.doc", "x.jsonl"]


@pytest.mark.parametrize("name", ["tokenizer.json", "tekken.json", "tokenizer.model.v3"])
def test_broken_tokenizer_files_are_refused(tmp_path: Path, name: str) -> None:
    if name != "tokenizer.json":
        pytest.importorskip("mistral_common", reason="mistral-common is not installed")
    if name == "tokenizer.model.v3":
        pytest.importorskip("sentencepiece", reason="mistral-common needs it for this tokenizer")
    (tmp_path / "titles.txt").write_text("red\n")
    (tmp_path / name).write_text('{"vocab": ')
    output = tmp_path / "trie.safetensors"
    message = error("build", tmp_path / "titles.txt", "--tokenizer", tmp_path / name, "-o", output)
    assert name in message
    message = error("build", tmp_path / "titles.txt", "--tokenizer", tmp_path, "-o", output)
    assert str(tmp_path) in message


def test_missing_extra_is_named_with_code_1(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "titles.txt").write_text("red\n")
    message = error(
        *("build", tmp_path / "titles.txt", "--tokenizer", tokenizer_folder / "tokenizer.json"),
        *("-o", tmp_path / "trie.safetensors"),
        code=1,
    )
    assert "gentrie[hf]" in message


def test_progress_on_request(tmp_path: Path, tokenizer_folder: Path) -> None:
    (tmp_path / "titles.txt").write_text("red\nblue\n")
    arguments = ["build", tmp_path / "titles.txt", "--tokenizer", tokenizer_folder, "-o", tmp_path / "t"]
    result = CliRunner().invoke(app, [*map(str, arguments), "--progress"])
    assert result.exit_code == 0
    assert "encode" in result.stderr


# ---------------------------------------------------------------------------------------------- inspect


def test_inspect_as_text(trie_file: Path) -> None:
    text = " ".join(run("inspect", trie_file).stdout.split())
    trie = TokenTrie.load(trie_file)
    for expected in (
        f"fingerprint {trie.fingerprint}",
        "items 5 ",
        "distinct sequences 4 ",
        "duplicates 1 sequences stand for 2 items, at most 2 for one",
        "collisions 20.00% of the items",
        "tokens per item 4.00, at most 4",
        "forced tokens 50.0%",
        "branching tokens per item 2.00",
        "valid next tokens 1.5 on average, at most 2",
        "nodes 10: 3 branch, 7 have one child",
        "Items by tokens 4 5 ####",
        "Branching nodes by children 2 3 ####",
        f"all {trie.nbytes:,} bytes",
    ):
        assert expected in text


def test_inspect_as_json(tmp_path: Path) -> None:
    path = tmp_path / "trie.safetensors"
    trie = TokenTrie.from_sequences(SEQUENCES, vocab_size=10, end_token_id=0)
    trie.save(path, metadata={"catalog": "v7"})
    found = json.loads(run("inspect", path, "--json").stdout)
    assert found["fingerprint"] == trie.fingerprint
    assert found["file_bytes"] == path.stat().st_size
    assert found["vocab_size"] == 10
    assert found["end_token_id"] == 0
    assert found["metadata"] == {"catalog": "v7"}
    assert sum(found["array_bytes"].values()) == trie.nbytes
    statistics = found["statistics"]
    assert statistics["items"] == trie.num_items
    assert statistics["sequences"] == trie.num_sequences
    assert statistics["max_depth"] == trie.max_depth
    assert statistics["max_branching"] == trie.max_branching
    assert statistics["distinct_tokens"] == trie.vocabulary.size
    assert statistics["length_histogram"] == {"4": 5}


def test_inspect_shows_levels_of_semantic_ids(tmp_path: Path) -> None:
    path = saved(tmp_path / "trie.safetensors", end_token_id=None)
    text = " ".join(run("inspect", path).stdout.split())
    assert "Levels 0 2 tokens 2 prefixes 1 2 tokens 3 prefixes 2 2 tokens 4 prefixes" in text


def test_inspect_bins_many_lengths_and_branchings(tmp_path: Path) -> None:
    sequences = [[first, *range(300, 300 + first)] for first in range(1, 200)]
    path = saved(tmp_path / "trie.safetensors", sequences, vocab_size=600)
    lines = run("inspect", path).stdout.splitlines()
    start = lines.index("Items by tokens")
    bins = [line.split() for line in lines[start + 1 : lines.index("", start)]]
    assert len(bins) <= 16
    assert bins[0][0] == "3-15"
    assert bins[-1][0].endswith("201")
    assert sum(int(count) for _, count, _ in bins) == 199
    start = lines.index("Branching nodes by children")
    assert lines[start + 1].split() == ["2", "0"]
    assert lines[start + 8].split()[:2] == ["129-256", "1"]


def test_inspect_draws_a_png(tmp_path: Path, trie_file: Path) -> None:
    pytest.importorskip("matplotlib")
    png = tmp_path / "histograms.png"
    run("inspect", trie_file, "--png", png)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "none" in error("inspect", trie_file, "--png", tmp_path / "none" / "x.png")


def test_inspect_refuses_what_is_no_trie(tmp_path: Path, trie_file: Path) -> None:
    assert "none.safetensors" in error("inspect", tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("no trie")
    assert "text" in error("inspect", tmp_path / "text")


# ----------------------------------------------------------------------------------------- verify, diff


def test_verify(trie_file: Path, tmp_path: Path) -> None:
    trie = TokenTrie.load(trie_file)
    assert run("verify", trie_file).stdout == f"{trie_file}: ok, 5 items, fingerprint {trie.fingerprint}\n"
    content = bytearray(trie_file.read_bytes())
    content[-70] ^= 1
    (tmp_path / "altered").write_bytes(content)
    (tmp_path / "cut").write_bytes(trie_file.read_bytes()[:-10])
    for name in ("altered", "cut"):
        assert name in error("verify", tmp_path / name, code=1)
    assert "none" in error("verify", tmp_path / "none", code=2)


def test_diff_of_the_same_items(trie_file: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other", SEQUENCES[::-1], item_ids=[4, 3, 2, 1, 0])
    result = run("diff", trie_file, other)
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["added", "0"],
        ["removed", "0"],
        ["changed", "0"],
    ]
    assert json.loads(run("diff", trie_file, other, "--json").stdout) == {
        "added": [],
        "removed": [],
        "changed": [],
        "settings": [],
    }


def test_diff_of_different_items(trie_file: Path, tmp_path: Path) -> None:
    sequences = [[1, 2, 3], [1, 2, 5], [6, 2, 3], [6, 2, 4], [7]]
    other = saved(tmp_path / "other", sequences, item_ids=[0, 1, 4, 3, 8])
    expected = {"added": [8], "removed": [2], "changed": [1, 3], "settings": []}
    assert json.loads(run("diff", trie_file, other, "--json", code=1).stdout) == expected
    text = run("diff", trie_file, other, code=1).stdout
    assert [line.split() for line in text.splitlines()] == [
        ["added", "1", "8"],
        ["removed", "1", "2"],
        ["changed", "2", "1,", "3"],
    ]
    backwards = json.loads(run("diff", other, trie_file, "--json", code=1).stdout)
    assert backwards == {"added": [2], "removed": [8], "changed": [1, 3], "settings": []}

    run("diff", trie_file, other, "--max-removed", 1, code=0)
    run("diff", trie_file, other, "--max-changed", 2, code=0)
    for gates, failure in (
        ([], "1 items added; 1 items removed; 2 items changed"),
        (["--max-removed", 0], "1 items removed, more than --max-removed 0"),
        (["--max-removed", 1, "--max-changed", 1], "2 items changed, more than --max-changed 1"),
    ):
        assert run("diff", trie_file, other, *gates, code=1).stderr == f"gentrie: failed: {failure}\n"


def test_diff_of_settings_and_items_with_several_sequences(trie_file: Path, tmp_path: Path) -> None:
    wider = saved(tmp_path / "wider", vocab_size=11)
    result = run("diff", trie_file, wider, code=1)
    assert result.stdout.endswith("different settings: vocab_size\n")
    gated = run("diff", trie_file, wider, "--max-removed", 100, "--max-changed", 100, code=1)
    assert gated.stderr == "gentrie: failed: different settings: vocab_size\n"

    both = saved(tmp_path / "both", [[1], [2]], item_ids=[5, 5])
    one = saved(tmp_path / "one", [[1]], item_ids=[5])
    assert json.loads(run("diff", both, one, "--json", code=1).stdout)["changed"] == [5]


def test_diff_compares_the_settings_of_titles(tmp_path: Path) -> None:
    def built(name: str, titles: list[str], add: str | None = None, **settings: Any) -> Path:
        tokenizer = fast_tokenizer()
        if add is not None:
            tokenizer.add_tokens([add])
        TokenTrie.from_titles(titles, tokenizer, **{"end_token_id": 0, "vocab_size": 600, **settings}).save(
            tmp_path / name
        )
        return tmp_path / name

    titles = ["red box", "blue easel", "little game"]
    old = built("old", titles)

    def settings(name: str, *arguments: Any, **options: Any) -> list[str]:
        new = built(name, *arguments, **options)
        result = CliRunner().invoke(app, ["diff", str(old), str(new), "--json", "--max-removed", "9"])
        found: list[str] = json.loads(result.stdout)["settings"]
        assert result.exit_code == (1 if found else 0)
        assert result.stderr == (f"gentrie: failed: different settings: {', '.join(found)}\n" if found else "")
        return found

    # One tokenizer, other titles with other tokens: the settings are the same.
    assert settings("new", ["wooden puzzle", "red tool"]) == []
    assert settings("new", titles, "<pad>") == []
    assert settings("new", titles, "box") == ["tokenizer"]
    assert settings("new", titles, template='"{title}"') == ["template"]
    assert settings("new", titles, context="\n") == ["context"]


def test_diff_of_string_ids(trie_file: Path, tmp_path: Path) -> None:
    old = saved(tmp_path / "old", SEQUENCES, item_ids=["a", "b", "c", "d", "e"])
    new = saved(tmp_path / "new", SEQUENCES, item_ids=["a", "c", "b", "d", "f\x1b"])
    found = json.loads(run("diff", old, new, "--json", code=1).stdout)
    assert found == {"added": ["f\x1b"], "removed": ["e"], "changed": ["b", "c"], "settings": []}
    assert "\x1b" not in run("diff", old, new, code=1).stdout
    run("diff", old, old)
    assert json.loads(run("diff", trie_file, old, "--json", code=1).stdout)["settings"] == ["item_ids"]


# ------------------------------------------------------------------------------------------------ lookup


def test_lookup(trie_file: Path, tmp_path: Path, tokenizer_folder: Path) -> None:
    assert run("lookup", trie_file, "6 2 3").stdout == "3\n4\n"
    assert json.loads(run("lookup", trie_file, "1,2,4,0", "--json").stdout) == {"items": [1], "tokens": [1, 2, 4, 0]}
    missing = run("lookup", trie_file, "1 2 9", code=1)
    assert (missing.stdout, missing.stderr) == (
        "",
        "gentrie: no such item: 2 of its 3 tokens are in the catalog: [1, 2, 9]\n",
    )
    assert "ITEM must be token ids such as '5 17 3', or a title with --tokenizer" in error("lookup", trie_file, "red")

    titles = tmp_path / "titles"
    TokenTrie.from_titles(
        ["red box", "blue"], fast_tokenizer(), end_token_id=0, item_ids=["B1", "B2"], template='"{title}"', context="\n"
    ).save(titles)
    tokenizer = tokenizer_folder / "tokenizer.json"
    assert run("lookup", titles, "red box", "--tokenizer", tokenizer).stdout == "B1\n"
    assert "no such item" in run("lookup", titles, "red", "--tokenizer", tokenizer, code=1).stderr


# ------------------------------------------------------------------------------------------------ diff


def test_diff_lists_few_of_many(tmp_path: Path) -> None:
    old = saved(tmp_path / "old", [[i] for i in range(1, 10)])
    new = saved(tmp_path / "new", [[i] for i in range(1, 40)], vocab_size=50)
    text = run("diff", old, new, code=1).stdout
    assert "added              30  9, 10, 11, 12, 13, 14, 15, 16, 17, 18, ..." in text


def test_diff_errors_are_code_2(trie_file: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no trie")
    for bad in (tmp_path / "none", tmp_path / "text"):
        assert bad.name in error("diff", trie_file, bad)
        assert bad.name in error("diff", bad, trie_file)


# ------------------------------------------------------------------------------------------ collect-env


def test_collect_env() -> None:
    found = json.loads(run("collect-env", "--json").stdout)
    assert found["versions"]["gentrie"] == gentrie.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert isinstance(found["gpus"], list)
    text = run("collect-env").stdout
    assert f"  numpy: {np.__version__}\n" in text


def test_collect_env_without_torch(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n"
        "from gentrie.cli.collect_env import environment\n"
        "assert 'torch' not in environment()\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
