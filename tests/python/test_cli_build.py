"""``gentrie build``: where ids come from, the forms of files, what it refuses and how it says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from small_tokenizers import fast_tokenizer
from test_cli import error, run
from test_title_errors import lacking_braces

from gentrie import TokenTrie

TITLES = ["red box", "blue easel", "little game"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    fast_tokenizer().backend_tokenizer.save(str(path))
    return path


class Build:
    """Runs ``gentrie build`` on a file of a folder."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        self.folder, self.tokenizer, self.output = folder, tokenizer, folder / "trie.safetensors"

    def arguments(self, name: str, content: str | bytes, *options: object) -> list[object]:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return ["build", path, "--tokenizer", self.tokenizer, "--end-token", "</s>", "-o", self.output, *options]

    def __call__(self, name: str, content: str | bytes, *options: object) -> dict[int, str]:
        """The titles of the trie by item id."""
        self.result = run(*self.arguments(name, content, *options))
        values, indptr, items, item_indptr = TokenTrie.load(self.output).to_sequences()
        return {
            item: fast_tokenizer().decode(values[indptr[row] : indptr[row + 1] - 1])
            for row in range(indptr.size - 1)
            for item in items[item_indptr[row] : item_indptr[row + 1]].tolist()
        }

    def refused(self, name: str, content: str | bytes, *options: object) -> str:
        message = error(*self.arguments(name, content, *options))
        assert not self.output.exists()
        return message


@pytest.fixture
def build(tmp_path: Path, tokenizer: Path) -> Build:
    return Build(tmp_path, tokenizer)


def by_id(ids: Any) -> dict[int, str]:
    return dict(zip(ids, TITLES, strict=True))


def test_an_item_id_field_is_used_where_there_is_one(build: Build) -> None:
    lines = [json.dumps({"item_id": i, "title": title}) for i, title in zip([7, 5, 9], TITLES, strict=True)]
    assert build("a.jsonl", "\n".join(lines)) == by_id([7, 5, 9])
    assert build.result.stderr == "gentrie: item ids: field 'item_id'\n"
    assert build("a.jsonl", "\n".join(lines), "--id-field", "") == by_id(range(3))
    assert build.result.stderr == "gentrie: item ids: row numbers, from 0\n"
    assert build("a.csv", "title,item_id\nred box,7\nblue easel,5\nlittle game,9\n") == by_id([7, 5, 9])
    assert build.result.stderr == "gentrie: item ids: column 'item_id'\n"
    assert build("a.txt", "\n".join(TITLES)) == by_id(range(3))
    build.output.unlink()
    lines[1] = '{"title": "x"}'
    assert "a.jsonl, line 2 has no field 'item_id', only title" in build.refused("a.jsonl", "\n".join(lines))


def test_string_ids(build: Build) -> None:
    assert build("a.json", json.dumps(dict(zip(["B1", "7", "B3"], TITLES, strict=True)))) == by_id(["B1", "7", "B3"])
    assert build.result.stderr == "gentrie: item ids: the keys of the JSON object, strings\n"
    content = "title,item_id\nred box,007\nblue easel,8\nlittle game,B\n"
    assert build("a.csv", content) == by_id(["007", "8", "B"])
    assert build.result.stderr == "gentrie: item ids: column 'item_id', strings\n"
    same = '{"B1": "red", "B2": "blue", "B3": "red"}'
    result = run(*build.arguments("a.json", same, "--on-collision", "list"))
    assert "item B1: 'red'; item B3: 'red'\n" in result.stdout
    build.output.unlink()
    assert "key 'B1' 'red' and " in build.refused("a.json", same, "--on-collision", "error")


def test_json_of_titles(build: Build) -> None:
    keyed = dict(zip(["7", "5", "9"], TITLES, strict=True))
    assert build("a.json", json.dumps(keyed)) == by_id([7, 5, 9])
    assert build.result.stderr == "gentrie: item ids: the keys of the JSON object\n"
    assert build("a.json", json.dumps({i: {"title": title} for i, title in keyed.items()})) == by_id([7, 5, 9])
    assert build("a.json", json.dumps(TITLES)) == by_id(range(3))
    assert build("a.json", json.dumps([{"item_id": int(i), "title": t} for i, t in keyed.items()])) == by_id([7, 5, 9])
    build.output.unlink()
    for content, message in (
        ("5", "must hold a JSON object {id: title}"),
        ("{}", "must hold a JSON object"),
        ('{"1": "a", "1": "b"}', "the key '1' stands there twice"),
        ('{"1": ""}', "key '1': the title must be a non-empty string, got ''; --skip-empty"),
        ('{"1": [5], "2": "a"}', "key '2' must be a list of token ids"),
        ("[" * 100_000, "nested too deeply"),
        ('{"1": ' + "1" * 5000 + "}", "a.json"),
    ):
        assert message in build.refused("a.json", content)


def test_json_of_tokens(build: Build, tmp_path: Path, tokenizer: Path) -> None:
    path = tmp_path / "ids.json"
    path.write_text('{"40": [1, 2], "41": [1, 3]}')
    run("build", path, "--vocab-size", 10, "--end-token", 9, "-o", build.output)
    trie = TokenTrie.load(build.output)
    assert trie.resolve([1, 3, 9]).tolist() == [41]
    assert trie.end_token_id == 9
    path.write_text('{"40": ["a", "b"], "41": ["a", "c"]}')
    run("build", path, "--tokenizer", tokenizer, "-o", build.output)
    a, c = fast_tokenizer().convert_tokens_to_ids(["a", "c"])
    assert TokenTrie.load(build.output).resolve([a, c]).tolist() == [41]
    assert "need --tokenizer" in error("build", path, "--vocab-size", 10, "-o", build.output)
    same = ("build", _written(path, '{"4": [1], "5": [2], "6": [1]}'), "--vocab-size", 10, "-o", build.output)
    assert "1 items have the tokens of an earlier one, such as 4 and 6" in error(*same, "--on-collision", "error")
    assert "items 4, 6: tokens 1\n" in run(*same, "--on-collision", "list").stdout
    assert "need --vocab-size" in error("build", _written(path, '{"40": [1]}'), "-o", build.output)
    message = error("build", _written(path, '{"4": [1], "5": [77]}'), "--vocab-size", 10, "-o", build.output)
    assert "ids.json, key '5': token 77" in message
    assert "--vocab-size=10" in message
    message = error(
        *("build", _written(path, '{"4": ["a"], "5": ["<none>"]}'), "--tokenizer", tokenizer, "-o", build.output)
    )
    assert "key '5': the tokenizer has no token '<none>'" in message


def _written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def test_semantic_ids_with_an_end_token(tmp_path: Path) -> None:
    np.save(tmp_path / "codes.npy", np.array([[0, 1], [1, 0]]))
    output = tmp_path / "trie.safetensors"
    common = ("build", tmp_path / "codes.npy", "--vocab-size", 200, "--token-base", 100, "--token-stride", 4)
    result = run(*common, "--end-token", 2, "-o", output)
    assert result.stderr == "gentrie: item ids: row numbers, from 0\n"
    assert TokenTrie.load(output).resolve([100, 105, 2]).tolist() == [0]
    assert "'</s>' needs --tokenizer" in error(*common, "--end-token", "</s>", "-o", output)
    assert "--end-token=200 is outside [0, 199]" in error(*common, "--end-token", 200, "-o", output)
    assert "--end-token" in error(*common, "--end-token", "9" * 5000, "-o", output)
    wrong = ("build", tmp_path / "codes.npy", "--vocab-size", 50, "--token-base", 100, "--token-stride", 4)
    assert "--token-base=100 is outside [0, 49]" in error(*wrong, "-o", output)


def test_tables_without_header_with_other_delimiters_quotes_and_encodings(build: Build) -> None:
    rows = [f"{i};{title}" for i, title in zip([7, 5, 9], TITLES, strict=True)]
    options = ("--no-header", "--delimiter", ";", "--title-field", 2, "--id-field", 1)
    assert build("a.csv", "\n".join(rows), *options) == by_id([7, 5, 9])
    assert build("a.txt", "\n".join(rows).replace(";", "|"), "--format", "csv", *options[:2], "|", *options[3:]) == (
        by_id([7, 5, 9])
    )
    assert build("a.tsv", 'title\tx\n5" box\t1\n"5 inch" box\t2\n', "--no-quotes") == {0: '5" box', 1: '"5 inch" box'}
    assert build("a.txt", "caf\u00e9\n\u20ac\n".encode("utf-16"), "--encoding", "utf-16") == {
        0: "caf\u00e9",
        1: "\u20ac",
    }
    assert build("a.csv", "title\ncaf\u00e9\n".encode("latin-1"), "--encoding", "latin-1") == {0: "caf\u00e9"}
    build.output.unlink()
    for name, content, options, message in (
        (
            "a.csv",
            "red box,1\n",
            (),
            "its columns are red box, 1; --title-field or --id-field names another; the first",
        ),
        ("a.csv", "red box,1\n", ("--no-header", "--title-field", 3), "must be a column in [1, 2], got '3'"),
        ("a.csv", "red box,1\n", ("--delimiter", ",,"), "--delimiter must be one character"),
        ("a.jsonl", '{"title": "a"}', ("--delimiter", ";"), "--delimiter is for CSV and TSV"),
        ("a.tsv", 'title\tx\n"5 inch" box\t2\n', (), "expected after '\"'; --no-quotes"),
        ("a.txt", b"caf\xe9\n", (), "a.txt, line 1 is not UTF-8"),
        ("a.txt", b"caf\xe9\n", ("--encoding", "nonsense"), "--encoding 'nonsense' is not known"),
        ("a.txt", b"\xff\xfea", ("--encoding", "utf-16"), "a.txt is not UTF-16 after line 0"),
        ("a.txt", "1\tred box\n2\tblue\n", (), "every line holds a tab; --format tsv reads it as a table"),
        ("a.txt", "red\rblue\r", (), "lines end in carriage returns alone"),
    ):
        assert message in build.refused(name, content, *options)
    assert build("a.txt", "1\tred box\n2\tblue\n", "--format", "text") == {0: "1\tred box", 1: "2\tblue"}


def test_rows_without_a_title_are_skipped_on_request(build: Build) -> None:
    content = "red box\n\nlittle game\n"
    assert "line 2: the title must be a non-empty string, got ''; --skip-empty" in build.refused("a.txt", content)
    assert build("a.txt", content, "--skip-empty") == {0: "red box", 2: "little game"}
    assert build.result.stderr == "gentrie: skipped 1 rows without a title\ngentrie: item ids: row numbers, from 0\n"
    lines = ['{"item_id": 4, "title": null}', '{"item_id": 6, "title": "red box"}']
    assert build("a.jsonl", "\n".join(lines), "--skip-empty") == {6: "red box"}


def test_escapes_in_template_and_context(build: Build) -> None:
    options = ("--template", r'"{title}"\n', "--context", r"a\\b\t")
    assert build("a.txt", "red box\n", *options) == {0: '"red box"\n'}
    assert TokenTrie.load(build.output).metadata["context"] == "a\\b\t"
    build.output.unlink()
    for option in ("--template", "--context"):
        assert rf"{option}: '\\x' means nothing" in build.refused("a.txt", "a\n", option, r"{title}\x41")


def test_collisions_are_listed_by_title_or_refused_and_unknown_tokens_counted(tmp_path: Path, build: Build) -> None:
    lacking_braces().save(str(tmp_path / "lacking.json"))
    build.tokenizer = tmp_path / "lacking.json"
    content = "red\nset {1}\nset <1>\nset [1]\nred 2\nred  2\n"
    message = build.refused("a.txt", content, "--on-collision", "error")
    assert "such as " in message
    assert "a.txt, line 2 'set {1}' and " in message
    assert "--on-collision='keep'" in message
    result = run(*build.arguments("a.txt", content, "--on-collision", "list"))
    assert "item 1: 'set {1}'; item 2: 'set <1>'; item 3: 'set [1]'\n" in result.stdout
    assert "item 4: 'red 2'; item 5: 'red  2'\n" in result.stdout
    assert "5 items share 2 sequences" in result.stdout
    assert "3 items, with 1 sequences, hold the unknown token 0 " in result.stdout
    text = " ".join(run("inspect", build.output).stdout.split())
    assert "unknown token 0, of characters that the tokenizer lacks, is in 3 items with 1 sequences" in text
    found = json.loads(run("inspect", build.output, "--json").stdout)
    assert found["unknown_token"] == {"token_id": 0, "items": 3, "sequences": 1}


def test_errors_name_lines_and_options(build: Build) -> None:
    lines = "blue\nred</s>box\n"
    message = build.refused("a.txt", lines)
    assert "a.txt, line 2 'red</s>box': --end-token=0 stands inside the sequence" in message
    assert "--vocab-size=3" in build.refused("a.txt", "blue\n", "--vocab-size", 3)
    assert "--end-token=77777 is outside" in build.refused("a.txt", "blue\n", "--end-token", 77777)
    assert "--metadata['gentrie.x']" in build.refused("a.txt", "blue\n", "--metadata", "gentrie.x=1")
    keys = json.dumps({"x" * 500: 1, **{f"key{i}": i for i in range(3458)}})
    message = build.refused("a.jsonl", keys)
    assert "(3,459 in all); --title-field or --id-field names another" in message
    assert len(message) < 500
    for content, part in (
        ('{"title": ' + "[" * 100_000 + "]" * 100_000 + "}", "a.jsonl, line 1 is nested too deeply"),
        ('{"title": "a", "item_id": ' + "1" * 5000 + "}", "a.jsonl, line 1 is not JSON"),
        ('{"title": "a", "title": "b"}', "a.jsonl, line 1 is not JSON: the key 'title' stands there twice"),
    ):
        assert part in build.refused("a.jsonl", content)
    assert "a.csv, line 2: item ids must be integers, got ''" in build.refused("a.csv", "title,item_id\na,\n")


def test_damaged_parquet_is_named(build: Build) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"title": [f"abc{i}" for i in range(300)]}), build.folder / "a.parquet")
    content = (build.folder / "a.parquet").read_bytes()
    damaged = content[:10] + bytes(20) + content[30:]
    assert "a.parquet is not a Parquet file, or a damaged one" in build.refused("a.parquet", damaged)


def test_an_output_that_is_an_input_or_no_file_is_refused(build: Build, tokenizer: Path) -> None:
    arguments = build.arguments("a.txt", "red\n")[:-1]
    (build.folder / "link").symlink_to(build.folder / "a.txt")
    for output in (build.folder / "a.txt", build.folder / "link", tokenizer):
        before = output.read_bytes()
        assert "is an input" in error(*arguments, output)
        assert output.read_bytes() == before
    folder = ["build", build.folder / "a.txt", "--tokenizer", tokenizer.parent, "-o", tokenizer]
    assert "is an input" in error(*folder)
    run(*arguments, build.output)
    run("build", build.folder / "a.txt", "--tokenizer", tokenizer, "--end-token", 0, "-o", build.output)
    assert "is a folder" in error(*arguments, build.folder)
    assert "is not a regular file" in error(*arguments, "/dev/null")
    assert "--output - is not possible" in error(*arguments, "-")


def test_code_of_a_tokenizer_folder_is_not_run(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name: str, **options: Any) -> Any:
            given.append((name, options))
            raise ValueError("X requires you to execute its code")

    # Without the option, transformers asks on stdin whether the code may run.
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(AutoTokenizer=AutoTokenizer))
    build.tokenizer = build.folder
    assert "no tokenizer could be loaded from" in build.refused("a.txt", "red\n")
    assert given == [(str(build.folder), {"trust_remote_code": False})]


def test_control_characters_reach_no_terminal(build: Build) -> None:
    build("a.txt", "red\n", "--metadata", "a\x1b[31m=\x1b[0mred", "--metadata", "long=" + "v" * 5000)
    shown = run("inspect", build.output).stdout
    assert "\x1b" not in shown
    assert r"metadata a\x1b[31m" in shown
    assert len(max(shown.splitlines(), key=len)) < 400
    assert "\x1b" not in error("inspect", build.folder / "no\x1b[31mfile")
