"""Readers of catalog files: titles and item ids from text, JSON, CSV and Parquet, tokens from JSON and NumPy."""

from __future__ import annotations

import codecs
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

__all__ = ["TITLE_FORMATS", "Titles", "TokenRows", "format_of", "read_array", "read_json", "read_titles"]

_SUFFIXES = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".npy": "npy",
}
TITLE_FORMATS = ("text", "jsonl", "json", "csv", "tsv", "parquet")

_ID_FIELD = "item_id"
_INT64 = np.iinfo(np.int64)
_LISTED = 10  # names in a message
_SHOWN = 80  # characters of a value in a message


class Titles(NamedTuple):
    """Titles of a file in its order.

    Attributes
    ----------
    titles
        N strings.
    item_ids
        int64 [N], or N strings; None for row numbers.
    places
        Where each title stands: ``line 3``, ``row 2``, ``key '17'``.
    id_source
        Where the item ids come from, in words.
    skipped
        Rows without a title that were left out.
    """

    titles: list[str]
    item_ids: npt.NDArray[np.int64] | list[str] | None
    places: list[str]
    id_source: str
    skipped: int


class TokenRows(NamedTuple):
    """Tokens of each item of a file: ids, or strings as the tokenizer writes them; the rest as in :class:`Titles`."""

    rows: list[list[Any]]
    item_ids: npt.NDArray[np.int64] | list[str] | None
    places: list[str]
    id_source: str


def format_of(path: str | os.PathLike[str]) -> str:
    """Return the format that a file's name says: one of ``TITLE_FORMATS``, or ``npy``.

    Raises
    ------
    ValueError
        If the name's ending is not known.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(
            f"{path}: unknown ending {suffix!r}; known are {', '.join(_SUFFIXES)}; --format names the format of others"
        )
    return _SUFFIXES[suffix]


def read_titles(
    path: str | os.PathLike[str],
    *,
    file_format: str | None = None,
    title_field: str = "title",
    id_field: str | None = None,
    delimiter: str | None = None,
    header: bool = True,
    quotes: bool = True,
    encoding: str = "utf-8",
    skip_empty: bool = False,
) -> Titles:
    """Read titles and item ids.

    Parameters
    ----------
    path
        Text with one title per line; JSON lines with an object each; JSON as :func:`read_json` takes it; CSV or TSV
        whose first line names the columns; or Parquet.
    file_format
        One of ``TITLE_FORMATS``; by default what the name's ending says.
    title_field
        Key or column of the titles. Text has none.
    id_field
        Key or column of the item ids, which are integers or strings; by default ``item_id`` where the file has it, else
        items are numbered by row. Empty: number them. Cells of CSV are integers where all of them are.
    delimiter
        Character between the cells of CSV; by default a comma, or a tab in TSV.
    header
        Whether the first line of CSV names the columns. If not, fields are column numbers from 1, and by default the
        first column holds the titles.
    quotes
        Whether cells of CSV may stand in double quotes.
    encoding
        Of the text in the file.
    skip_empty
        Leave out rows without a title. They keep their row numbers.

    Raises
    ------
    OSError
        If the file cannot be read.
    ImportError
        For Parquet, if pyarrow is not installed.
    ValueError
        If the file is not of its format, holds no title, lacks a field, or a title is empty or not a string,
        or item ids are neither 64-bit integers nor non-empty strings; names the line or row.
    """
    path = Path(path)
    derived = file_format is None
    file_format = file_format or format_of(path)
    encoding = _checked_encoding(encoding)
    if file_format in ("csv", "tsv"):
        delimiter = delimiter or ("\t" if file_format == "tsv" else ",")
        rows = _read_csv(path, delimiter, title_field, id_field, header=header, quotes=quotes, encoding=encoding)
    else:
        for option, given in (
            ("delimiter", delimiter is not None),
            ("no-header", not header),
            ("no-quotes", not quotes),
        ):
            if given:
                raise ValueError(f"{path}: --{option} is for CSV and TSV; --format csv says that this is one")
        if file_format == "text":
            if id_field:
                raise ValueError(f"{path}: text has no field {id_field!r}; give item ids in JSON lines or CSV")
            rows = _read_text(path, encoding, may_be_table=derived)
        elif file_format == "jsonl":
            rows = _read_json_lines(path, title_field, id_field, encoding)
        elif file_format == "json":
            found = read_json(
                path, title_field=title_field, id_field=id_field, encoding=encoding, skip_empty=skip_empty
            )
            if isinstance(found, TokenRows):
                raise ValueError(f"{path} holds tokens, not titles")
            return found
        elif file_format == "parquet":
            rows = _read_parquet(path, title_field, id_field)
        else:
            raise ValueError(f"file_format must be one of {', '.join(TITLE_FORMATS)}, got {file_format!r}")
    return _collected(path, rows, skip_empty=skip_empty, written=file_format in ("csv", "tsv"))


def read_json(
    path: str | os.PathLike[str],
    *,
    title_field: str = "title",
    id_field: str | None = None,
    encoding: str = "utf-8",
    skip_empty: bool = False,
) -> Titles | TokenRows:
    """Read a JSON file: ``{id: title}``, ``{id: {"title": ...}}``, ``{id: [token, ...]}``, or a list of such values.

    Parameters
    ----------
    path
        File to read.
    title_field, id_field, encoding, skip_empty
        As in :func:`read_titles`. The keys of an object are its item ids.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is not such JSON, mixes titles and tokens, or as :func:`read_titles`.
    """
    path = Path(path)
    content = _loads(_decoded(path, _checked_encoding(encoding)), str(path))
    if not isinstance(content, dict | list) or not content:
        raise ValueError(f"{path} must hold a JSON object {{id: title}} or {{id: [token, ...]}}, or a list")
    by_id = isinstance(content, dict)
    values: list[Any] = list(content.values()) if isinstance(content, dict) else content
    if by_id and id_field:
        raise ValueError(f"{path} is a JSON object, whose keys are the item ids; --id-field does not go with it")
    places = [f"key {_short(key)}" for key in content] if by_id else [f"entry {i}" for i in range(len(values))]
    id_source = "the keys of the JSON object"
    if by_id:
        ids: list[Any] = list(content)
    else:
        field = _id_field_in(id_field, values[0] if isinstance(values[0], dict) else {})
        ids = [_field(path, place, v, field) if field else None for place, v in zip(places, values, strict=True)]
        id_source = f"field {field!r}" if field else ""
    if isinstance(values[0], list):
        for place, row in zip(places, values, strict=True):
            kinds = {type(token) for token in row} if isinstance(row, list) else set()
            if kinds not in ({int}, {str}):
                raise ValueError(
                    f"{path}, {place} must be a list of token ids, or of tokens as strings, got {_short(row)}"
                )
        return TokenRows(values, _item_ids(path, ids, places, written=by_id) if id_source else None, places, id_source)
    titles = [
        _field(path, place, value, title_field) if isinstance(value, dict) else value
        for place, value in zip(places, values, strict=True)
    ]
    rows = zip(places, titles, ids, strict=True)
    return _collected(path, (id_source, rows), skip_empty=skip_empty, written=by_id)


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


# Where the ids come from ("": nowhere), and of each row its place, title and item id, none of them checked.
_Rows = tuple[str, Iterator[tuple[str, Any, Any]]]


def _collected(path: Path, found: _Rows, *, skip_empty: bool, written: bool) -> Titles:
    id_source, rows = found
    titles, places, item_ids, numbers, skipped = [], [], [], [], 0
    for number, (place, title, item_id) in enumerate(rows):
        if skip_empty and (title is None or title == ""):
            skipped += 1
            continue
        if not isinstance(title, str) or not title:
            advice = "; --skip-empty leaves such rows out" if title in ("", None) else ""
            raise ValueError(f"{path}, {place}: the title must be a non-empty string, got {_short(title)}{advice}")
        titles.append(title)
        places.append(place)
        numbers.append(number)
        if id_source:
            item_ids.append(item_id)
    if not titles:
        raise ValueError(f"{path} holds no title")
    if id_source:
        return Titles(titles, _item_ids(path, item_ids, places, written=written), places, id_source, skipped)
    return Titles(titles, np.array(numbers) if skipped else None, places, "row numbers, from 0", skipped)


def _read_text(path: Path, encoding: str, *, may_be_table: bool) -> _Rows:
    lines = list(_lines(path, encoding))
    if may_be_table and lines and all("\t" in line for _, line in lines):
        raise ValueError(
            f"{path}: every line holds a tab; --format tsv reads it as a table whose first line names the columns "
            "(--no-header: it does not), --format text takes whole lines as titles"
        )
    if len(lines) == 1 and "\r" in lines[0][1].strip("\r") and may_be_table:
        raise ValueError(
            f"{path}: lines end in carriage returns alone; convert them to line feeds, or --format text takes "
            "the file as one title"
        )
    return "", ((f"line {number}", line, None) for number, line in lines)


def _read_json_lines(path: Path, title_field: str, id_field: str | None, encoding: str) -> _Rows:
    objects = _json_objects(path, encoding)
    first = next(objects, None)
    if first is None:
        return "", iter(())
    field = _id_field_in(id_field, first[1])

    def rows() -> Iterator[tuple[str, Any, Any]]:
        for place, row in _chained(first, objects):
            yield place, _field(path, place, row, title_field), _field(path, place, row, field) if field else None

    return f"field {field!r}" if field else "", rows()


def _json_objects(path: Path, encoding: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in _lines(path, encoding):
        if not line.strip():
            continue
        place = f"line {number}"
        row = _loads(line, f"{path}, {place}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {place} must be a JSON object, got {_short(row)}")
        yield place, row


def _chained(first: tuple[str, Any], rest: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    yield first
    yield from rest


def _read_csv(
    path: Path,
    delimiter: str,
    title_field: str,
    id_field: str | None,
    *,
    header: bool,
    quotes: bool,
    encoding: str,
) -> _Rows:
    cells = _cells(path, delimiter, quotes=quotes, encoding=encoding)
    first = next(cells, None)
    if first is None:
        raise ValueError(f"{path} is empty; its first line must name the columns")
    width = len(first[1])
    if header:
        field = _id_field_in(id_field, first[1])
        title_column = _column(path, first[1], title_field, header=True)
        id_column = _column(path, first[1], field, header=True) if field else None
        rows, id_source = cells, f"column {field!r}"
    else:
        title_column = 0 if title_field == "title" else _column_number(path, "title", title_field, width)
        id_column = _column_number(path, "id", id_field, width) if id_field else None
        rows, id_source = _chained(first, cells), f"column {id_field}"

    def checked() -> Iterator[tuple[str, Any, Any]]:
        for place, row in rows:
            if len(row) != width:
                raise ValueError(f"{path}, {place} has {len(row)} cells, the first line {width}")
            yield place, row[title_column], row[id_column] if id_column is not None else None

    return id_source if id_column is not None else "", checked()


def _cells(path: Path, delimiter: str, *, quotes: bool, encoding: str) -> Iterator[tuple[str, list[str]]]:
    if len(delimiter) != 1 or delimiter in '\r\n"':
        raise ValueError(f"--delimiter must be one character, such as ';' or '|', got {delimiter!r}")
    with path.open(encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as file:
        reader = csv.reader(
            file, delimiter=delimiter, strict=True, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
        )
        try:
            for row in reader:
                if row:
                    yield f"line {reader.line_num}", row
        except csv.Error as error:
            advice = "; --no-quotes takes quotation marks as text" if quotes and '"' in str(error) else ""
            raise ValueError(f"{path}, line {reader.line_num}: {error}{advice}") from None
        except UnicodeError as error:
            raise ValueError(_not_encoded(f"{path}", f" after line {reader.line_num}", encoding, error)) from None


def _read_parquet(path: Path, title_field: str, id_field: str | None) -> _Rows:
    pyarrow = require("pyarrow", extra="arrow")
    parquet = require("pyarrow.parquet", extra="arrow")
    with path.open("rb") as raw:  # so that later errors are of the contents
        try:
            with parquet.ParquetFile(raw) as file:
                names = file.schema_arrow.names
                field = _id_field_in(id_field, names)
                fields = [title_field, field] if field else [title_field]
                for name in fields:
                    _column(path, names, name)
                table = file.read(columns=fields)
            titles = table[title_field].to_pylist()
            item_ids = table[field].to_pylist() if field else [None] * len(titles)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a Parquet file, or a damaged one: {error}") from None
    places = (f"row {row}" for row in range(len(titles)))
    return f"column {field!r}" if field else "", zip(places, titles, item_ids, strict=True)


def _lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of text; only a line feed, or one behind a carriage return, ends a line."""
    if encoding != "utf-8":
        with path.open(encoding=encoding, newline="\n") as text:
            number = 0
            try:
                for number, line in enumerate(text, start=1):
                    yield number, line.removesuffix("\n").removesuffix("\r")
            except UnicodeError as error:
                raise ValueError(_not_encoded(f"{path}", f" after line {number}", encoding, error)) from None
        return
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(_not_encoded(f"{path}, line {number}", "", encoding, error)) from None
            yield number, line.removesuffix("\n").removesuffix("\r")


def _decoded(path: Path, encoding: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeError as error:
        raise ValueError(_not_encoded(str(path), "", encoding, error)) from None


def _not_encoded(place: str, after: str, encoding: str, error: UnicodeError) -> str:
    reason = getattr(error, "reason", error)
    return f"{place} is not {encoding.upper()}{after}: {reason}; --encoding names another, such as utf-16 or latin-1"


def _checked_encoding(encoding: str) -> str:
    try:
        info = codecs.lookup(encoding)
        "".encode(encoding)  # bytes to bytes codecs such as zip are no encodings
    except (LookupError, TypeError, ValueError):
        raise ValueError(f"--encoding {encoding!r} is not known; examples are utf-8, utf-16, latin-1, cp1252") from None
    return info.name


def _loads(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None
    except ValueError as error:  # of JSON, or an integer of thousands of digits
        raise ValueError(f"{place} is not JSON: {error}") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {_short(next(key for key in keys if keys.count(key) > 1))} stands there twice")
    return found


def _id_field_in(id_field: str | None, names: Sequence[str] | dict[str, Any]) -> str | None:
    """The field of the item ids; None to number the items."""
    if id_field is None:
        return _ID_FIELD if _ID_FIELD in names else None
    return id_field or None


def _field(path: Path, place: str, row: Any, field: str) -> Any:
    if not isinstance(row, dict):
        raise ValueError(f"{path}, {place} must be a JSON object, got {_short(row)}")
    if field not in row:
        option = "--id-field" if field == _ID_FIELD else "--title-field or --id-field"
        raise ValueError(f"{path}, {place} has no field {field!r}, only {_listed(row)}; {option} names another")
    return row[field]


def _column(path: Path, names: Sequence[str], field: str, *, header: bool = False) -> int:
    if names.count(field) != 1:
        problem = "no column" if field not in names else "several columns"
        advice = "; the first line must name the columns, or give --no-header" if header else ""
        raise ValueError(
            f"{path} has {problem} {field!r}; its columns are {_listed(names)}; --title-field or --id-field names "
            f"another{advice}"
        )
    return names.index(field)


def _column_number(path: Path, name: str, field: str, width: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", field) or not 1 <= int(field) <= width:
        raise ValueError(f"{path}: without a header --{name}-field must be a column in [1, {width}], got {field!r}")
    return int(field) - 1


def _listed(names: Sequence[str] | dict[str, Any]) -> str:
    shown = ", ".join(name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..." for name in list(names)[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown}, ... ({len(names):,} in all)"


def _short(value: Any) -> str:
    try:
        shown = repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits
        return f"a {type(value).__name__}"
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."


def _item_ids(path: Path, ids: list[Any], places: list[str], *, written: bool) -> npt.NDArray[np.int64] | list[str]:
    """Item ids, checked; ``written``: they are text, read as integers where all of them would be written back so."""
    if written and all(re.fullmatch(r"0|-?[1-9][0-9]{0,18}", text) for text in ids):
        ids = list(map(int, ids))
    kind: Any = str if isinstance(ids[0], str) else int
    for value, place in zip(ids, places, strict=True):
        if type(value) is not kind or value == "":
            first = "" if place == places[0] or value == "" else f" ({places[0]} has {_short(ids[0])})"
            raise ValueError(
                f"{path}, {place}: item ids must be integers, got {_short(value)}, or all of them strings{first}; "
                "--id-field '' numbers the items by row"
            )
        if kind is int and not _INT64.min <= value <= _INT64.max:
            raise ValueError(f"{path}, {place}: item id {_short(value)} does not fit in 64 bits")
    return ids if kind is str else np.array(ids, dtype=np.int64)
