"""``gentrie build``: a catalog file and a tokenizer, or semantic ids, to a trie."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gentrie import TokenTrie
from gentrie._text_record import TextRecord
from gentrie._titles import unknown_counts
from gentrie.cli._messages import printable, unescaped, with_options

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gentrie._catalog_files import Titles, TokenRows

_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_FORMATS = "text, jsonl, json, csv, tsv, parquet or npy; by default what INPUT's ending says."


class OnCollision(str, Enum):
    """What becomes of items with the same tokens."""

    keep = "keep"
    list = "list"
    error = "error"
    suffix = "suffix"


def build(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help="Titles as text (one a line), .jsonl, .csv, .tsv or .parquet; .json, {id: title} or "
            "{id: [token, ...]}; or semantic ids [N, L], .npy.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .safetensors file to write.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Titles: folder of a Hugging Face tokenizer, its tokenizer.json, or a tokenizer file of "
            "mistral-common (tekken.json, tokenizer.model.v3)."
        ),
    ] = None,
    template: Annotated[
        str | None,
        typer.Option(help=r"Titles: text around each {title}; \n is a line break, \t a tab, \\ a backslash."),
    ] = None,
    context: Annotated[
        str | None,
        typer.Option(help="Titles: text right before the template in the prompt; backslashes as in --template."),
    ] = None,
    end_token: Annotated[
        str | None, typer.Option(help="Token appended to every sequence: an id, or a string like '</s>'.")
    ] = None,
    file_format: Annotated[str | None, typer.Option("--format", help=_FORMATS)] = None,
    title_field: Annotated[str, typer.Option(help="Titles: key or column.")] = "title",
    id_field: Annotated[
        str | None,
        typer.Option(
            help="Titles: key or column of item ids, integers or strings; default 'item_id' where INPUT has it, else "
            "the row number, from 0. '': always the row number."
        ),
    ] = None,
    delimiter: Annotated[
        str | None, typer.Option(help=r"CSV: character between cells, \t for a tab; default a comma, in TSV a tab.")
    ] = None,
    no_header: Annotated[
        bool,
        typer.Option(
            "--no-header",
            help="CSV: the first line is an item. --title-field and --id-field are column numbers from 1; default: "
            "titles in column 1.",
        ),
    ] = False,
    no_quotes: Annotated[bool, typer.Option("--no-quotes", help="CSV: quotation marks are text.")] = False,
    encoding: Annotated[str, typer.Option(help="Titles: encoding of INPUT, such as latin-1 or utf-16.")] = "utf-8",
    skip_empty: Annotated[
        bool,
        typer.Option("--skip-empty", help="Titles: leave rows without a title out; the others keep their row numbers."),
    ] = False,
    vocab_size: Annotated[
        int | None, typer.Option(help="Number of token ids; with titles by default the tokenizer's.", min=1)
    ] = None,
    token_base: Annotated[
        int | None,
        typer.Option(help="Semantic ids: code c at position i is BASE + i * STRIDE + c.", min=0),
    ] = None,
    token_stride: Annotated[
        int | None, typer.Option(help="Semantic ids: see --token-base; codes are below it.", min=1)
    ] = None,
    token_ids: Annotated[
        Path | None, typer.Option(help="Semantic ids: .npy [L, K], the token of each code of each level.")
    ] = None,
    item_ids: Annotated[
        Path | None, typer.Option(help="Semantic ids: .npy [N] of item ids; default the row number.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Stored in the file; may be repeated.")
    ] = None,
    on_collision: Annotated[
        OnCollision,
        typer.Option(
            help="Items with the same tokens: keep them as they are; list them too, one sequence a line; error: refuse "
            "them; suffix: tell them apart by one more code, which is for semantic ids."
        ),
    ] = OnCollision.keep,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="BYTES",
            help="Memory that the build may take beside its input, such as 500MB or 2GB; by default what the system "
            "has available.",
        ),
    ] = None,
    progress: Annotated[bool | None, typer.Option(help="Progress bars; by default where stderr is a terminal.")] = None,
) -> None:
    """Build a trie from titles or semantic ids."""
    from gentrie._catalog_files import TokenRows, format_of, read_json, read_titles
    from gentrie.cli._load_tokenizer import load_tokenizer

    started = time.monotonic()
    stored = _parsed_metadata(metadata or [])
    limit = None if memory_limit is None else _parsed_bytes(memory_limit)
    show = sys.stderr.isatty() if progress is None else progress
    inputs = [source, *(Path(name) for name in (tokenizer, token_ids, item_ids) if name is not None)]
    _check_output(output, inputs)
    format_given = file_format is not None
    file_format = file_format or format_of(source)
    if title_field == "":
        raise ValueError("--title-field is empty")

    titles: Titles | None = None
    if file_format == "npy":
        _refuse("semantic ids", tokenizer=tokenizer, id_field=id_field, template=template, context=context)
        _refuse("semantic ids", delimiter=delimiter, no_header=no_header or None, skip_empty=skip_empty or None)
        with _errors_name_options():
            trie = _from_semantic_ids(
                source,
                token_base,
                token_stride,
                token_ids,
                item_ids,
                vocab_size,
                end_token_id=None if end_token is None else _token_id(end_token),
                on_collision="keep" if on_collision is OnCollision.list else on_collision.value,
                memory_limit=limit,
                progress=show,
            )
        id_source = "row numbers, from 0" if item_ids is None else str(item_ids)
    else:
        _refuse("titles", token_base=token_base, token_stride=token_stride, token_ids=token_ids)
        _refuse("titles, whose ids --id-field names", item_ids=item_ids)
        if on_collision is OnCollision.suffix:
            raise ValueError("--on-collision suffix does not go with titles")
        found: Titles | TokenRows
        if file_format == "json":
            _refuse("JSON", delimiter=delimiter, no_header=no_header or None, no_quotes=no_quotes or None)
            found = read_json(
                source, title_field=title_field, id_field=id_field, encoding=encoding, skip_empty=skip_empty
            )
        else:
            found = read_titles(
                source,
                # None lets the reader doubt that a .txt file holds titles.
                file_format=None if source.suffix.lower() == ".txt" and not format_given else file_format,
                title_field=title_field,
                id_field=id_field,
                delimiter="\t" if delimiter == r"\t" else delimiter,
                header=not no_header,
                quotes=not no_quotes,
                encoding=encoding,
                skip_empty=skip_empty,
            )
        if tokenizer is None and not isinstance(found, TokenRows):
            raise ValueError("titles need --tokenizer")
        loaded = None if tokenizer is None else load_tokenizer(tokenizer)
        end = None if end_token is None else _token_id(end_token, loaded)
        if isinstance(found, TokenRows):
            _refuse("tokens", template=template, context=context)
            with _errors_name_options(source, found.places):
                trie = _from_tokens(source, found, loaded, vocab_size, end, memory_limit=limit, progress=show)
            if on_collision is OnCollision.error and trie.num_items > trie.num_sequences:
                shared = trie.collisions()[2]
                raise ValueError(
                    f"{source}: {trie.num_items - trie.num_sequences:,} items have the tokens of an earlier one, such "
                    f"as {shared[0]} and {shared[1]}; --on-collision list shows them"
                )
        else:
            titles = found
            if titles.skipped:
                _note(f"skipped {titles.skipped:,} rows without a title")
            template = "{title}" if template is None else unescaped("--template", template)
            context = unescaped("--context", context or "")
            with _errors_name_options(source, titles.places):
                trie = TokenTrie.from_titles(
                    titles.titles,
                    loaded,
                    template=template,
                    context=context,
                    end_token_id=end,
                    item_ids=titles.item_ids,
                    vocab_size=vocab_size,
                    on_collision="error" if on_collision is OnCollision.error else "keep",
                    memory_limit=limit,
                    progress=show,
                )
        id_source = found.id_source or "row numbers, from 0"
        if isinstance(found.item_ids, list):
            id_source += ", strings"
    for key in stored.keys() & trie.metadata.keys():
        raise ValueError(f"--metadata {key!r} is a key that gentrie fills itself")
    with _errors_name_options():
        trie.save(output, metadata=stored)
    _note(f"item ids: {id_source}")
    if on_collision is OnCollision.list:
        _print_collisions(trie, titles)
    _print_summary(trie, output, time.monotonic() - started)


def _check_output(output: Path, inputs: list[Path]) -> None:
    """Refuse an output that cannot be written, or that would replace an input."""
    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"the folder of --output {output} does not exist")
    if str(output) == "-":
        raise ValueError("--output - is not possible: a trie is written to a file")
    if output.is_dir():
        raise IsADirectoryError(f"--output {output} is a folder")
    if output.exists() and not output.is_file():
        raise ValueError(f"--output {output} is not a regular file")
    if not output.exists():
        return
    for path in inputs:
        if path.is_file() and path.samefile(output):
            raise ValueError(f"--output {output} is an input, {path}, which would be overwritten")
        # A folder of a tokenizer may hold the trie too, which a new one then replaces.
        if path.is_dir() and path.samefile(output.resolve().parent) and not _is_trie(output):
            raise ValueError(f"--output {output} is an input, a file of {path}, which would be overwritten")


def _is_trie(path: Path) -> bool:
    try:
        TokenTrie.load(path, verify=False)
    except ValueError:
        return False
    return True


def _note(message: str) -> None:
    typer.echo(f"gentrie: {printable(message)}", err=True)


@contextmanager
def _errors_name_options(source: Path | None = None, places: list[str] | None = None) -> Iterator[None]:
    """Rewrite errors of the API in the words of the command line, with the places of titles in the file."""
    try:
        yield
    except (ValueError, TypeError, MemoryError) as error:
        message = str(error)
        if places is not None:
            message = re.sub(
                r"(?:titles|sequences)\[(\d+)\](?:\s?=\s?)?",
                lambda row: f"{source}, {places[int(row[1])]} ",
                message,
            )
            message = re.sub(r" (?=[:;])", "", message)
        kind = next(kind for kind in (MemoryError, TypeError, ValueError) if isinstance(error, kind))
        raise kind(with_options(message)) from error


def _token_id(token: str, tokenizer: Any = None) -> int:
    """A token of the command line: an id, or a string that the tokenizer writes for one."""
    from gentrie.tokenization import token_id_of

    if token.isascii() and token.isdecimal():
        return int(token[:20])  # one of more digits is too large as well
    if tokenizer is None:
        raise ValueError(f"--end-token {token!r} needs --tokenizer; without one it must be an id")
    return token_id_of(tokenizer, token)


def _from_tokens(
    source: Path,
    found: TokenRows,
    tokenizer: Any,
    vocab_size: int | None,
    end_token_id: int | None,
    *,
    memory_limit: int | None,
    progress: bool,
) -> TokenTrie:
    """Build from the tokens of a JSON file, which may be strings."""
    from gentrie.tokenization import token_id_of, vocab_size_of

    rows = found.rows
    if isinstance(rows[0][0], str):
        if tokenizer is None:
            raise ValueError(f"{source} holds tokens as strings, whose ids need --tokenizer")
        ids: dict[str, int] = {}
        for place, row in zip(found.places, rows, strict=True):
            for token in row:
                if token not in ids:
                    try:
                        ids[token] = token_id_of(tokenizer, token)
                    except ValueError as error:
                        raise ValueError(f"{source}, {place}: {error}") from None
        rows = [[ids[token] for token in row] for row in rows]
    if vocab_size is None and tokenizer is None:
        raise ValueError("tokens need --vocab-size, the number of token ids of the model, or --tokenizer")
    return TokenTrie.from_sequences(
        rows,
        vocab_size=vocab_size_of(tokenizer) if vocab_size is None else vocab_size,
        end_token_id=end_token_id,
        item_ids=found.item_ids,
        memory_limit=memory_limit,
        progress=progress,
    )


def _from_semantic_ids(
    source: Path,
    token_base: int | None,
    token_stride: int | None,
    token_ids_path: Path | None,
    item_ids_path: Path | None,
    vocab_size: int | None,
    *,
    end_token_id: int | None,
    on_collision: Literal["keep", "error", "suffix"],
    memory_limit: int | None,
    progress: bool,
) -> TokenTrie:
    from gentrie._catalog_files import read_array

    codes = read_array(source, name="semantic ids", dimensions=2)
    if vocab_size is None:
        raise ValueError("semantic ids need --vocab-size, the number of token ids of the model")
    token_ids: npt.NDArray[np.integer[Any]] | tuple[int, int]
    if token_ids_path is not None:
        _refuse("--token-ids", token_base=token_base, token_stride=token_stride)
        token_ids = read_array(token_ids_path, name="token ids", dimensions=2)
    elif token_base is not None and token_stride is not None:
        token_ids = (token_base, token_stride)
    else:
        raise ValueError("semantic ids need --token-base and --token-stride, or --token-ids")
    item_ids = None if item_ids_path is None else read_array(item_ids_path, name="item ids", dimensions=1)
    return TokenTrie.from_semantic_ids(
        codes,
        token_ids=token_ids,
        vocab_size=vocab_size,
        end_token_id=end_token_id,
        item_ids=item_ids,
        on_collision=on_collision,
        memory_limit=memory_limit,
        progress=progress,
    )


def _refuse(kind: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"--{name.replace('_', '-')} does not go with {kind}")


def _parsed_metadata(pairs: list[str]) -> dict[str, str]:
    stored: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ValueError(f"--metadata must be KEY=VALUE, got {pair!r}")
        if key in stored:
            raise ValueError(f"--metadata has {key!r} twice")
        stored[key] = value
    return stored


def _parsed_bytes(text: str) -> int:
    number = text.rstrip("KMGIBkmgib")
    unit = _BYTES.get(text[len(number) :].upper())
    try:
        size = int(float(number) * unit) if unit else 0
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise ValueError(f"--memory-limit must be a number of bytes such as 500000000, 500MB or 2GB, got {text!r}")
    return size


def _print_collisions(trie: TokenTrie, titles: Titles | None) -> None:
    """One line a shared sequence: its items with their titles, or the tokens where there are no titles."""
    values, indptr, item_ids, item_indptr = trie.collisions()
    by_id: dict[Any, str] = {}
    if titles is not None:
        by_id = dict(
            zip(range(len(titles.titles)) if titles.item_ids is None else titles.item_ids, titles.titles, strict=True)
        )
    for row, (begin, end) in enumerate(pairwise(item_indptr)):
        items = item_ids[begin:end].tolist()
        if by_id:
            typer.echo("; ".join(f"item {printable(str(item))}: {by_id[item]!r}" for item in items))
        else:
            tokens = " ".join(map(str, values[indptr[row] : indptr[row + 1]]))
            typer.echo(f"items {', '.join(map(str, items))}: tokens {tokens}")


def _print_summary(trie: TokenTrie, output: Path, seconds: float) -> None:
    typer.echo(
        f"{trie.num_items:,} items, {trie.num_sequences:,} distinct sequences of at most {trie.max_depth:,} "
        f"tokens, {trie.vocabulary.size:,} of {trie.vocab_size:,} token ids"
    )
    _, _, sharing, sharing_indptr = trie.collisions()
    if sharing.size:
        typer.echo(
            f"{sharing.size:,} items share {sharing_indptr.size - 1:,} sequences (--on-collision list shows them)"
        )
    record = TextRecord.of(trie.metadata)
    if record is not None and record.unknown_token_id is not None:
        items, sequences = unknown_counts(trie, record.unknown_token_id)
        if items:
            typer.echo(
                f"{items:,} items, with {sequences:,} sequences, hold the unknown token {record.unknown_token_id} of "
                "characters that the tokenizer lacks"
            )
    typer.echo(
        f"wrote {printable(str(output))}: {trie.nbytes:,} bytes in arrays, {trie.nbytes / trie.num_items:.1f} per "
        f"item, in {seconds:.1f} s"
    )
