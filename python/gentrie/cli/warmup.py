"""``gentrie warmup``: compile kernels before the first request."""

from __future__ import annotations

import sys
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class DType(str, Enum):
    """Types of logits."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Scope(str, Enum):
    """What scores of beams are normalised over."""

    trie = "trie"
    vocab = "vocab"


_NAMES = {DType.bf16: "bfloat16", DType.fp16: "float16", DType.fp32: "float32"}


def warmup(
    catalog: Annotated[Path, typer.Argument(metavar="CATALOG", help="A trie file.")],
    cache_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to; later processes set TRITON_CACHE_DIR to it.")
    ],
    beams: Annotated[int, typer.Option(min=1, max=512, help="Beams of each prompt.")] = 10,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts of a batch.")] = 1,
    dtype: Annotated[
        DType, typer.Option(help="Of the logits; generate hands fp32 to processors, whatever the model's.")
    ] = DType.bf16,
    vocab_size: Annotated[int | None, typer.Option(min=1, help="Columns of the logits; default the trie's.")] = None,
    begin_token_id: Annotated[
        int | None, typer.Option(min=0, help="Where responses are triggered; by default they are whole responses.")
    ] = None,
    eos_tokens: Annotated[int, typer.Option(min=0, help="Number of end-of-sequence tokens.")] = 1,
    scope: Annotated[Scope, typer.Option(help="What scores of beams are normalised over.")] = Scope.trie,
    training: Annotated[bool, typer.Option("--training", help="The losses too, forward and backward.")] = False,
    hidden_size: Annotated[int, typer.Option(min=1, help="With --training: features of the hidden states.")] = 2048,
    arch: Annotated[
        str | None, typer.Option(help="Compile for a kind of GPU, like sm_90, where there is none.")
    ] = None,
    progress: Annotated[
        bool | None, typer.Option(help="A progress bar; by default where stderr is a terminal.")
    ] = None,
) -> None:
    """Compile the GPU kernels for given shapes into a folder, so that no request waits for the compiler."""
    from gentrie import TokenTrie
    from gentrie._optional import require

    torch = require("torch", extra="hf")
    from gentrie.warmup import warmup as compile_kernels

    trie = TokenTrie.load(catalog)
    try:
        compiled = compile_kernels(
            trie,
            cache_dir,
            num_prompts=prompts,
            num_beams=beams,
            dtype=getattr(torch, _NAMES[dtype]),
            vocab_size=vocab_size,
            begin_token_id=begin_token_id,
            num_eos_tokens=eos_tokens,
            scope=scope.value,
            hidden_size=hidden_size if training else None,
            arch=arch,
            progress=sys.stderr.isatty() if progress is None else progress,
        )
    except RuntimeError as error:
        typer.echo(f"gentrie: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    for name, count in Counter(kernel.name for kernel in compiled).items():
        typer.echo(f"{name}: {count}")
    typer.echo(f"compiled {len(compiled)} kernels into {cache_dir}; set TRITON_CACHE_DIR={cache_dir.absolute()}")
