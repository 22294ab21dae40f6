"""``gentrie demo``: a small model recommends from a catalog, free and constrained."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console


def demo(
    items: Annotated[int, typer.Option(help="Items of the synthetic catalog.", min=50, max=11726)] = 1000,
    users: Annotated[int, typer.Option(help="Users that get lists.", min=1)] = 128,
    epochs: Annotated[int, typer.Option(help="How often the model sees each training user.", min=1)] = 3,
    seed: Annotated[int, typer.Option(help="Seed of catalog, users, model and sampling.", min=0)] = 0,
) -> None:
    """See it work: a small model learns to recommend, then writes lists with and without the constraint.

    Everything is made on the spot, without a network, in about a minute on one core.
    """
    from gentrie.demo import render, run

    result = run(items=items, users=users, seed=seed, epochs=epochs, console=Console(stderr=True))
    Console().print(render(result))
