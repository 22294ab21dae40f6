"""The result of the demonstration as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gentrie._optional import require

if TYPE_CHECKING:
    from gentrie.demo import DemoResult


def render(result: DemoResult) -> Any:
    """Return the result as a ``rich`` renderable, to be printed by a ``rich`` console.

    Raises
    ------
    ImportError
        If ``rich`` is not installed.
    """
    group = require("rich.console", extra="demo").Group
    text = require("rich.text", extra="demo").Text
    return group(
        text(
            f"{result.num_items:,} items, {result.num_sequences:,} different titles of "
            f"{result.tokens_per_item:.1f} tokens; trie of {result.trie_bytes / 1024:.0f} KiB built in "
            f"{result.build_seconds * 1000:.1f} ms, tokenisation included.\n"
            f"Llama-shaped model of {result.num_parameters / 1e6:.1f}M parameters, trained with BEAR for "
            f"{result.training_seconds:.0f} s on {result.num_training_users:,} users "
            f"(last epoch's loss {result.training_loss:.2f})."
        ),
        _statistics(result),
        text(f"{result.popular_hit_rate:.0%} of the users bought one of the items most bought by others."),
        _examples(result),
    )


def _statistics(result: DemoResult) -> Any:
    table = require("rich.table", extra="demo").Table(
        title=f"{result.list_length} items for each of {result.num_users} users, batches of {result.batch_size}, "
        "one CPU thread",
        caption="repeats: items that the history or the list had already; unfinished: lists cut off inside an item",
    )
    for heading in ("", "items", "outside the catalog", "repeats", "unfinished", "hit rate", "tokens/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, way in result.ways.items():
        table.add_row(
            name,
            f"{way.items}",
            f"{way.out_of_catalog:.1%}",
            f"{way.repeats:.1%}",
            f"{way.unfinished}",
            f"{way.hit_rate:.1%}",
            f"{way.tokens_per_second:,.0f}",
        )
    return table


def _examples(result: DemoResult) -> Any:
    text = require("rich.text", extra="demo").Text
    table = require("rich.table", extra="demo").Table(title="One user's lists (red: no title of the catalog)")
    for name in result.examples:
        table.add_column(name)
    for row in range(max(map(len, result.examples.values()), default=0)):
        cells = []
        for items in result.examples.values():
            title, in_catalog = items[row] if row < len(items) else ("", True)
            cells.append(text(title, style="" if in_catalog else "red"))
        table.add_row(*cells)
    return table
