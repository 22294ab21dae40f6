"""``gentrie lookup``: the items of a title or of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gentrie.cli._messages import printable


def lookup(
    catalog: Annotated[Path, typer.Argument(metavar="CATALOG", help="A trie file.")],
    item: Annotated[
        str,
        typer.Argument(metavar="ITEM", help="A title, with --tokenizer; or token ids, separated by spaces or commas."),
    ],
    tokenizer: Annotated[
        str | None, typer.Option(help="Of the catalog, as in gentrie build; it is compared with the one at build.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print the items of a title or of token ids, and the tokens. Exit code 0: there are some; 1: there are none."""
    from gentrie import TokenTrie

    trie = TokenTrie.load(catalog)
    if tokenizer is None:
        words = item.replace(",", " ").split()
        if not words or not all(word.isascii() and word.isdecimal() and len(word) < 19 for word in words):
            raise ValueError(f"ITEM must be token ids such as '5 17 3', or a title with --tokenizer, got {item!r}")
        tokens = list(map(int, words))
    else:
        from gentrie.cli._load_tokenizer import load_tokenizer
        from gentrie.tokenization import encode_titles

        loaded = load_tokenizer(tokenizer)
        trie.check_tokenizer(loaded)
        template, context = trie.metadata.get("template", "{title}"), trie.metadata.get("context", "")
        tokens = encode_titles([item], loaded, template=template, context=context)[0].tolist()
    items = trie.resolve(tokens).tolist()
    if as_json:
        typer.echo(json.dumps({"items": items, "tokens": tokens}))
    else:
        for found in items:
            typer.echo(printable(str(found)))
    if not items:
        valid = next((n for n in range(len(tokens), 0, -1) if trie.walk(tokens[:n]) >= 0), 0)
        typer.echo(f"gentrie: no such item: {valid} of its {len(tokens)} tokens are in the catalog: {tokens}", err=True)
        raise typer.Exit(1)
