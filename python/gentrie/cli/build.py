"""``gentrie build``: a catalog file and a tokenizer, or semantic ids, to a trie."""

from __future__ import annotations

import sys
import time
from enum import Enum
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from gentrie import TokenTrie

_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_FORMATS = "text, jsonl, csv, tsv, parquet or npy; by default what INPUT's ending says."


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
            help="Titles as text (one a line), .jsonl, .csv, .tsv or .parquet; or semantic ids [N, L], .npy.",
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
    template: Annotated[str, typer.Option(help="Titles: text around each {title}.")] = "{title}",
    context: Annotated[str | None, typer.Option(help="Titles: text right before the template in the prompt.")] = None,
    end_token: Annotated[
        str | None, typer.Option(help="Token appended to every sequence: an id, or a string like '</s>'.")
    ] = None,
    file_format: Annotated[str | None, typer.Option("--format", help=_FORMATS)] = None,
    title_field: Annotated[str, typer.Option(help="Titles: key or column.")] = "title",
    id_field: Annotated[
        str | None, typer.Option(help="Titles: key or column of integer item ids; default the row number.")
    ] = None,
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
            "them; suffix: tell them apart by one more code. The last two are for semantic ids."
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
    from gentrie import TokenTrie
    from gentrie._catalog_files import format_of, read_titles
    from gentrie.cli._load_tokenizer import load_tokenizer

    started = time.monotonic()
    stored = _parsed_metadata(metadata or [])
    limit = None if memory_limit is None else _parsed_bytes(memory_limit)
    show = sys.stderr.isatty() if progress is None else progress
    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"the folder of --output {output} does not exist")
    file_format = file_format or format_of(source)

    if file_format == "npy":
        _refuse("semantic ids", tokenizer=tokenizer, end_token=end_token, id_field=id_field, context=context)
        trie = _from_semantic_ids(
            source,
            token_base,
            token_stride,
            token_ids,
            item_ids,
            vocab_size,
            on_collision="keep" if on_collision is OnCollision.list else on_collision.value,
            memory_limit=limit,
            progress=show,
        )
    else:
        _refuse("titles", token_base=token_base, token_stride=token_stride, token_ids=token_ids)
        _refuse("titles, whose ids --id-field names", item_ids=item_ids)
        if on_collision in (OnCollision.error, OnCollision.suffix):
            raise ValueError(f"--on-collision {on_collision.value} does not go with titles")
        if tokenizer is None:
            raise ValueError("titles need --tokenizer")
        titles, ids = read_titles(source, file_format=file_format, title_field=title_field, id_field=id_field)
        loaded = load_tokenizer(tokenizer)
        trie = TokenTrie.from_titles(
            titles,
            loaded,
            template=template,
            context=context or "",
            end_token_id=None if end_token is None else _end_token_id(loaded, end_token),
            item_ids=ids,
            vocab_size=vocab_size,
            memory_limit=limit,
            progress=show,
        )
    for key in stored.keys() & trie.metadata.keys():
        raise ValueError(f"--metadata {key!r} is a key that gentrie fills itself")
    trie.save(output, metadata=stored)
    if on_collision is OnCollision.list:
        _print_collisions(trie)
    _print_summary(trie, output, time.monotonic() - started)


def _end_token_id(tokenizer: Any, end_token: str) -> int:
    from gentrie.tokenization import token_id_of

    return int(end_token) if end_token.isdecimal() else token_id_of(tokenizer, end_token)


def _from_semantic_ids(
    source: Path,
    token_base: int | None,
    token_stride: int | None,
    token_ids_path: Path | None,
    item_ids_path: Path | None,
    vocab_size: int | None,
    *,
    on_collision: Literal["keep", "error", "suffix"],
    memory_limit: int | None,
    progress: bool,
) -> TokenTrie:
    from gentrie import TokenTrie
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


def _print_collisions(trie: TokenTrie) -> None:
    values, indptr, item_ids, item_indptr = trie.collisions()
    for row, (begin, end) in enumerate(pairwise(item_indptr)):
        items = ", ".join(map(str, item_ids[begin:end]))
        typer.echo(f"items {items}: tokens {' '.join(map(str, values[indptr[row] : indptr[row + 1]]))}")


def _print_summary(trie: TokenTrie, output: Path, seconds: float) -> None:
    typer.echo(
        f"{trie.num_items:,} items, {trie.num_sequences:,} distinct sequences of at most {trie.max_depth:,} "
        f"tokens, {trie.vocabulary.size:,} of {trie.vocab_size:,} token ids"
    )
    typer.echo(
        f"wrote {output}: {trie.nbytes:,} bytes in arrays, {trie.nbytes / trie.num_items:.1f} per item, "
        f"in {seconds:.1f} s"
    )
