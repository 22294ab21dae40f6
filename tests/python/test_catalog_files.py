"""Readers of catalog files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import HARD_TITLES

from gentrie._catalog_files import format_of, read_array, read_titles

TITLES = [title for title in HARD_TITLES if "\n" not in title]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_csv(path: Path, rows: list[list[Any]], delimiter: str = ",") -> Path:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_text(tmp_path: Path, ending: str, bom: bytes, last: bool) -> None:
    titles = [*TITLES, "a lone \r return", "\u2028 and \x0b are no line breaks"]
    content = bom + ending.join(titles).encode() + (ending.encode() if last else b"")
    read = read_titles(write(tmp_path / "titles.txt", content))
    assert read.titles == titles
    assert read.item_ids is None


def test_json_lines_csv_tsv_and_parquet_agree(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ids = [(-1) ** i * (2**40 + i) for i in range(len(HARD_TITLES))]
    rows = list(zip(ids, HARD_TITLES, strict=True))
    table = [["sku", "name"], *map(list, rows)]
    paths = [
        write(tmp_path / "a.jsonl", "".join(json.dumps({"sku": i, "name": t}) + "\n" for i, t in rows)),
        write(
            tmp_path / "b.ndjson",
            "\n\n".join(json.dumps({"name": t, "x": 1, "sku": i}, ensure_ascii=False) for i, t in rows),
        ),
        write_csv(tmp_path / "c.csv", table),
        write_csv(tmp_path / "d.tsv", table, "\t"),
        tmp_path / "e.parquet",
    ]
    parquet.write_table(pyarrow.table({"sku": ids, "name": HARD_TITLES, "other": ids}), paths[-1])
    for path in paths:
        read = read_titles(path, title_field="name", id_field="sku")
        assert read.titles == HARD_TITLES
        assert read.item_ids is not None
        assert read.item_ids.dtype == np.int64
        assert read.item_ids.tolist() == ids
        assert read_titles(path, title_field="name").item_ids is None


def test_the_format_can_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "catalog", '{"title": "a"}\n')
    assert read_titles(path, file_format="jsonl").titles == ["a"]
    assert read_titles(path, file_format="text").titles == ['{"title": "a"}']
    with pytest.raises(ValueError, match=r"unknown ending ''; known are \.txt"):
        read_titles(path)
    with pytest.raises(ValueError, match=r"file_format must be one of text, .* got 'xml'"):
        read_titles(path, file_format="xml")
    assert format_of("X.JSONL") == "jsonl"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt holds no title"),
        ("a.txt", "one\n\ntwo\n", "a.txt, line 2: the title must be a non-empty string, got ''"),
        ("a.txt", b"one\ntw\xff\n", "a.txt, line 2 is not UTF-8"),
        ("a.jsonl", "\n \n", "a.jsonl holds no title"),
        ("a.jsonl", '{"title": "a"}\n{"title": \n', "a.jsonl, line 2 is not JSON"),
        ("a.jsonl", '["a"]\n', "a.jsonl, line 1 must be a JSON object"),
        ("a.jsonl", '{"name": "a"}\n', "a.jsonl, line 1 has no field 'title', only name"),
        ("a.jsonl", '{"title": 5}\n', "a.jsonl, line 1: the title must be a non-empty string, got 5"),
        ("a.jsonl", '{"title": null}\n', "a.jsonl, line 1: the title must be .* got None"),
        ("a.csv", "", "a.csv is empty; its first line must name the columns"),
        ("a.csv", "name\nx\n", "a.csv has no column 'title'; its columns are name"),
        ("a.csv", "title,title\nx,y\n", "a.csv has several columns 'title'"),
        ("a.csv", "title\n", "a.csv holds no title"),
        ("a.csv", "title,b\nx,1\ny\n", "a.csv, line 3 has 1 cells, the first line 2"),
        ("a.csv", 'title\nx\n"y', "a.csv, line 3: unexpected end of data"),
        ("a.csv", 'title,b\nx,1\n"",2\n', "a.csv, line 3: the title must be"),
        ("a.csv", b"title\nx\n\xff\n", "a.csv is not UTF-8"),
        ("a.parquet", "not parquet", "a.parquet is not a Parquet file"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match=message):
        read_titles(write(tmp_path / name, content))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("7", r"item ids must be integers, got '7', or all of them strings \(line 1 has 3\)"),
        (1.0, "item ids must be integers, got 1.0"),
        (True, "item ids must be integers, got True"),
        (None, "item ids must be integers, got None"),
        (2**63, f"item id {2**63} does not fit in 64 bits"),
    ],
)
def test_item_ids_that_are_neither_integers_nor_strings_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    lines = [{"title": "a", "id": 3}, {"title": "b", "id": value}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=f"a.jsonl, line 2: {message}"):
        read_titles(path, id_field="id")


@pytest.mark.parametrize("cell", ["B00X4WHP5E", "007", "1.0", " 7", "1_000", "-0", "9" * 20])
def test_cells_are_strings_where_one_is_no_plain_integer(tmp_path: Path, cell: str) -> None:
    path = write_csv(tmp_path / "a.csv", [["title", "id"], ["a", "3"], ["b", cell]])
    assert read_titles(path, id_field="id").item_ids == ["3", cell]


def test_empty_item_ids_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", [["title", "id"], ["a", "B00X4"], ["b", ""]])
    with pytest.raises(ValueError, match=r"a\.csv, line 3: item ids must be integers, got ''"):
        read_titles(path, id_field="id")
    path = write(tmp_path / "a.jsonl", '{"title": "a", "id": "B00X4"}\n{"title": "b", "id": 5}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: .* got 5, or all of them strings"):
        read_titles(path, id_field="id")


def test_missing_fields_and_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"text has no field 'id'"):
        read_titles(write(tmp_path / "a.txt", "a\n"), id_field="id")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 1 has no field 'id', only title"):
        read_titles(write(tmp_path / "a.jsonl", '{"title": "a"}'), id_field="id")
    with pytest.raises(FileNotFoundError):
        read_titles(tmp_path / "none.txt")
    with pytest.raises(IsADirectoryError):
        read_titles(tmp_path, file_format="text")


def test_parquet_columns(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"name": ["a", None], "id": ["x", "y"]}), path)
    with pytest.raises(ValueError, match=r"has no column 'title'; its columns are name, id"):
        read_titles(path)
    with pytest.raises(ValueError, match=r"row 1: the title must be a non-empty string, got None"):
        read_titles(path, title_field="name")
    parquet.write_table(pyarrow.table({"name": ["a", "b"], "id": ["x", "y"]}), path)
    assert read_titles(path, title_field="name", id_field="id").item_ids == ["x", "y"]
    with pytest.raises(FileNotFoundError):
        read_titles(tmp_path / "none.parquet")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"gentrie\[arrow\]"):
        read_titles(write(tmp_path / "a.parquet", "x"))


def test_arrays(tmp_path: Path) -> None:
    codes = np.arange(12, dtype=np.uint16).reshape(4, 3)
    np.save(tmp_path / "codes.npy", codes)
    np.testing.assert_array_equal(read_array(tmp_path / "codes.npy", name="codes", dimensions=2), codes)
    with pytest.raises(ValueError, match=r"codes must have 1 dimensions, got shape \(4, 3\)"):
        read_array(tmp_path / "codes.npy", name="codes", dimensions=1)
    np.save(tmp_path / "floats.npy", codes.astype(np.float32))
    with pytest.raises(ValueError, match="codes must be integers, got dtype float32"):
        read_array(tmp_path / "floats.npy", name="codes", dimensions=2)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", codes)
    for name, content in (("empty.npy", b""), ("text.npy", b"1 2 3"), ("cut.npy", None)):
        if content is None:
            content = (tmp_path / "codes.npy").read_bytes()[:-5]
        write(tmp_path / name, content)
    for name in ("objects.npy", "archive.npz", "empty.npy", "text.npy", "cut.npy"):
        with pytest.raises(ValueError, match=name):
            read_array(tmp_path / name, name="codes", dimensions=2)
    with pytest.raises(FileNotFoundError):
        read_array(tmp_path / "none.npy", name="codes", dimensions=2)
