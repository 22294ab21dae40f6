"""``gentrie verify``: is a trie file whole?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gentrie.cli._messages import printable


def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trie file.")],
    progress: Annotated[
        bool | None, typer.Option(help="A progress bar; by default where stderr is a terminal.")
    ] = None,
) -> None:
    """Check every byte of a trie file. Exit code 0: it is whole; 1: it is not."""
    from gentrie import TokenTrie

    try:
        trie = TokenTrie.load(file, verify=False)
        trie.verify(progress=sys.stderr.isatty() if progress is None else progress)
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())
        named = message if str(file) in message else f"{file}: {message}"
        typer.echo(f"gentrie: {printable(named)}", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{file}: ok, {trie.num_items:,} items, fingerprint {trie.fingerprint}")
