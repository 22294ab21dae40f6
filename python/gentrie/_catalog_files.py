"""Readers of catalog files: titles and item ids from text, JSON lines, CSV and Parquet, codes from NumPy."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gentrie._optional import require

__all__ = ["TITLE_FORMATS", "Titles", "format_of", "read_array", "read_titles"]

_SUFFIXES = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".npy": "npy",
}
TITLE_FORMATS = ("text", "jsonl", "csv", "tsv", "parquet")

_INT64 = np.iinfo(np.int64)


class Titles(NamedTuple):
    """Titles of a file in its order, and their int64 item ids; None for row numbers."""

    titles: list[str]
    item_ids: npt.NDArray[np.int64] | None


def format_of(path: str | os.PathLike[str]) -> str:
    """Return the format that a file's name says: one of ``TITLE_FORMATS``, or ``npy``.

    Raises
    ------
    ValueError
        If the name's ending is not known.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"{path}: unknown ending {suffix!r}; known are {', '.join(_SUFFIXES)}")
    return _SUFFIXES[suffix]


def read_titles(
    path: str | os.PathLike[str],
    *,
    file_format: str | None = None,
    title_field: str = "title",
    id_field: str | None = None,
) -> Titles:
    """Read titles, and item ids on request.

    Parameters
    ----------
    path
        UTF-8 text with one title per line; JSON lines with an object each; CSV or TSV whose first line names
        the columns; or Parquet.
    file_format
        One of ``TITLE_FORMATS``; by default what the name's ending says.
    title_field
        Key or column of the titles. Text has none.
    id_field
        Key or column of the item ids, which must be integers; by default items are numbered by row.

    Raises
    ------
    OSError
        If the file cannot be read.
    ImportError
        For Parquet, if pyarrow is not installed.
    ValueError
        If the file is not of its format, holds no title, lacks a field, or a title is empty or not a string,
        or an item id is not a 64-bit integer; names the line or row.
    """
    path = Path(path)
    file_format = file_format or format_of(path)
    if file_format == "text":
        if id_field is not None:
            raise ValueError(f"{path}: text has no field {id_field!r}; give item ids in JSON lines or CSV")
        rows = _read_text(path)
    elif file_format == "jsonl":
        rows = _read_json_lines(path, title_field, id_field)
    elif file_format in ("csv", "tsv"):
        rows = _read_csv(path, "\t" if file_format == "tsv" else ",", title_field, id_field)
    elif file_format == "parquet":
        rows = _read_parquet(path, title_field, id_field)
    else:
        raise ValueError(f"file_format must be one of {', '.join(TITLE_FORMATS)}, got {file_format!r}")

    titles, item_ids = [], []
    for place, title, item_id in rows:
        if not isinstance(title, str) or not title:
            raise ValueError(f"{path}, {place}: the title must be a non-empty string, got {title!r}")
        titles.append(title)
        if id_field is not None:
            item_ids.append(_checked_item_id(item_id, f"{path}, {place}"))
    if not titles:
        raise ValueError(f"{path} holds no title")
    return Titles(titles, np.array(item_ids, dtype=np.int64) if id_field is not None else None)


def read_array(path: str | os.PathLike[str], *, name: str, dimensions: int) -> npt.NDArray[np.integer[Any]]:
    """Read an integer array from a ``.npy`` file without loading it all at once.

    Parameters
    ----------
    path
        File to read.
    name
        What the array is, for messages.
    dimensions
        Number of dimensions that it must have.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not a ``.npy`` file, or not of integers or of this number of dimensions.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is not a .npy file of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays, a .npy file of one array is needed")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{path}: {name} must be integers, got dtype {array.dtype}")
    if array.ndim != dimensions:
        raise ValueError(f"{path}: {name} must have {dimensions} dimensions, got shape {array.shape}")
    return array


# (where the row is, its title, its item id), none of them checked
_Rows = Iterator[tuple[str, Any, Any]]


def _read_text(path: Path) -> _Rows:
    for number, line in _lines(path):
        yield f"line {number}", line, None


def _read_json_lines(path: Path, title_field: str, id_field: str | None) -> _Rows:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} must be a JSON object, got {line[:80]!r}")
        for field in _fields(title_field, id_field):
            if field not in row:
                raise ValueError(f"{path}, line {number} has no field {field!r}, only {', '.join(row)}")
        yield f"line {number}", row[title_field], row.get(id_field) if id_field is not None else None


def _read_csv(path: Path, delimiter: str, title_field: str, id_field: str | None) -> _Rows:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            columns = [_column(path, header, field) for field in _fields(title_field, id_field)]
            for row in reader:
                if not row:
                    continue
                place = f"line {reader.line_num}"
                if len(row) != len(header):
                    raise ValueError(f"{path}, {place} has {len(row)} cells, the first line {len(header)}")
                yield place, row[columns[0]], _integer(row[columns[1]]) if id_field is not None else None
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 after line {reader.line_num}: {error.reason}") from None


def _read_parquet(path: Path, title_field: str, id_field: str | None) -> _Rows:
    pyarrow = require("pyarrow", extra="arrow")
    parquet = require("pyarrow.parquet", extra="arrow")
    try:
        with parquet.ParquetFile(path) as file:
            for field in _fields(title_field, id_field):
                _column(path, file.schema_arrow.names, field)
            table = file.read(columns=_fields(title_field, id_field))
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file: {error}") from None
    titles = table[title_field].to_pylist()
    item_ids = table[id_field].to_pylist() if id_field is not None else [None] * len(titles)
    for row, (title, item_id) in enumerate(zip(titles, item_ids, strict=True)):
        yield f"row {row}", title, item_id


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of UTF-8 text; only a line feed, or one behind a carriage return, ends a line."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number} is not UTF-8: {error.reason}") from None
            yield number, line.removesuffix("\n").removesuffix("\r")


def _fields(title_field: str, id_field: str | None) -> list[str]:
    return [title_field] if id_field is None else [title_field, id_field]


def _column(path: Path, names: Sequence[str], field: str) -> int:
    if names.count(field) != 1:
        problem = "no column" if field not in names else "several columns"
        raise ValueError(f"{path} has {problem} {field!r}; its columns are {', '.join(names)}")
    return names.index(field)


def _integer(cell: str) -> int | str:
    """The integer that a cell of CSV writes; one that would not be written back the same stays text."""
    return int(cell) if re.fullmatch(r"0|-?[1-9][0-9]*", cell) else cell


def _checked_item_id(value: Any, place: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(
            f"{place}: item ids must be integers, got {value!r}; number the items (default: by row) and "
            "keep their names in a list of your own"
        )
    if not _INT64.min <= value <= _INT64.max:
        raise ValueError(f"{place}: item id {value} does not fit in 64 bits")
    return value
