"""The command line ``gentrie``: build, inspect, lookup, verify, diff, demo, warmup, bench, gpu-check, collect-env.

Results go to stdout, progress and errors to stderr. Exit codes: 0 success; 1 the command failed, or found
what it looks for (``verify``, ``diff``); 2 the command line or its input is wrong.
"""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gentrie.bench.command import table_a2
from gentrie.cli._messages import printable
from gentrie.cli.build import build
from gentrie.cli.collect_env import collect_env
from gentrie.cli.demo import demo
from gentrie.cli.diff import diff
from gentrie.cli.gpu_check import gpu_check
from gentrie.cli.inspect import inspect
from gentrie.cli.lookup import lookup
from gentrie.cli.verify import verify
from gentrie.cli.warmup import warmup

__all__ = ["app", "main"]

# What wrong input raises; anything else of the kinds below is a failure of what was asked for.
_WRONG_INPUT = (ValueError, TypeError, FileNotFoundError, IsADirectoryError, NotADirectoryError)
_FAILURES = (OSError, ImportError, MemoryError)


class _Group(TyperGroup):
    """Turns what commands raise into one line on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output has gone, which is no error to report
        except (*_WRONG_INPUT, *_FAILURES) as error:
            if ctx.params.get("debug"):
                raise
            message = printable(" ".join(str(error).split())) or type(error).__name__
            typer.echo(f"gentrie: {message}", err=True)
            raise typer.Exit(2 if isinstance(error, _WRONG_INPUT) else 1) from error


def _print_version(wanted: bool) -> None:
    if wanted:
        from gentrie import __version__

        typer.echo(f"gentrie {__version__}")
        raise typer.Exit


app = typer.Typer(
    name="gentrie",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,
) -> None:
    """Token tries that keep a language model inside a catalog."""


app.command()(build)
app.command()(inspect)
app.command()(lookup)
app.command()(verify)
app.command()(diff)
app.command()(demo)
app.command()(warmup)
app.command("gpu-check")(gpu_check)
app.command("collect-env")(collect_env)

_bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run a benchmark.")
_bench.command("table-a2")(table_a2)
app.add_typer(_bench, name="bench")


def main() -> None:
    """Run the command line; the entry point of ``gentrie``."""
    if sys.stdout is None:  # closed by the caller: results would be lost with exit code 0
        if sys.stderr is not None:
            sys.stderr.write("gentrie: stdout is closed\n")
        sys.exit(1)
    app()
