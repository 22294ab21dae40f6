"""``gentrie inspect``: what is in a trie file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gentrie._text_record import RECORD_KEY, TextRecord
from gentrie._titles import unknown_counts
from gentrie.cli._messages import printable

if TYPE_CHECKING:
    from gentrie import TokenTrie
    from gentrie.statistics import CatalogStatistics

_BAR_WIDTH = 40
_MAX_BINS = 16
_MAX_LISTED_LEVELS = 32
_MAX_CHARACTERS = 200


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A trie file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the histograms into a PNG too.")] = None,
    progress: Annotated[bool | None, typer.Option(help="Progress bars; by default where stderr is a terminal.")] = None,
) -> None:
    """Show sizes, depth, branching, share of forced tokens, duplicates and collisions."""
    from gentrie import TokenTrie
    from gentrie.statistics import CatalogStatistics

    trie = TokenTrie.load(file)
    statistics = CatalogStatistics.of(trie, progress=sys.stderr.isatty() if progress is None else progress)
    if png is not None:
        _draw(statistics, file.name, png)
    if as_json:
        typer.echo(json.dumps(_as_json(file, trie, statistics), indent=1))
    else:
        for line in _as_text(file, trie, statistics):
            typer.echo(line)


def _as_json(file: Path, trie: TokenTrie, statistics: CatalogStatistics) -> dict[str, Any]:
    return {
        "file": str(file),
        "file_bytes": file.stat().st_size,
        "fingerprint": trie.fingerprint,
        "vocab_size": trie.vocab_size,
        "end_token_id": trie.end_token_id,
        "metadata": dict(trie.metadata),
        "array_bytes": dict(trie.nbytes_by_array),
        "statistics": asdict(statistics),
        "unknown_token": _unknown_counts_as_json(trie),
    }


def _as_text(file: Path, trie: TokenTrie, statistics: CatalogStatistics) -> Iterator[str]:
    s = statistics
    end = "none" if trie.end_token_id is None else str(trie.end_token_id)
    yield from _table(
        str(file),
        {
            "file": f"{file.stat().st_size:,} bytes",
            "fingerprint": trie.fingerprint,
            "vocabulary": f"{s.distinct_tokens:,} of {trie.vocab_size:,} token ids",
            "end token": end,
            **{f"metadata {key}": _shown(value) for key, value in sorted(trie.metadata.items()) if key != RECORD_KEY},
        },
    )
    yield from _table(
        "Catalog",
        {
            "items": f"{s.items:,}",
            "distinct sequences": f"{s.sequences:,}",
            "duplicates": f"{s.shared_sequences:,} sequences stand for {s.items_sharing:,} items, "
            f"at most {s.max_items_per_sequence:,} for one",
            "collisions": f"{s.collision_rate:.2%} of the items have the sequence of an earlier one",
            **_unknown(trie),
            "tokens per item": f"{s.tokens_per_item:.2f}, at most {s.max_depth:,}",
            "forced tokens": f"{s.forced_share:.1%}",
            "branching tokens per item": f"{s.branching_tokens_per_item:.2f}",
            "valid next tokens": f"{s.mean_valid_tokens:.1f} on average, at most {s.max_branching:,}",
            "nodes": f"{s.nodes:,}: {s.branching_nodes:,} branch, {s.unary_nodes:,} have one child",
        },
    )
    total = trie.nbytes
    sizes = {
        name: f"{size:>14,} bytes {size / s.items:>9.2f} per item"
        for name, size in [*trie.nbytes_by_array.items(), ("all", total)]
    }
    yield from _table("Arrays", sizes)
    if s.levels:
        listed = s.levels[:_MAX_LISTED_LEVELS]
        yield from _table(
            "Levels",
            {
                str(i): f"{level.distinct_tokens:>9,} tokens {level.distinct_prefixes:>12,} prefixes"
                for i, level in enumerate(listed)
            },
        )
        if len(s.levels) > len(listed):
            yield f"  ... and {len(s.levels) - len(listed)} more"
    yield from _histogram("Items by tokens", _binned(s.length_histogram))
    yield from _histogram("Branching nodes by children", _doubling(s.branching_histogram))


def _unknown_counts_as_json(trie: TokenTrie) -> dict[str, int] | None:
    record = TextRecord.of(trie.metadata)
    if record is None or record.unknown_token_id is None:
        return None
    items, sequences = unknown_counts(trie, record.unknown_token_id)
    return {"token_id": record.unknown_token_id, "items": items, "sequences": sequences}


def _shown(value: str) -> str:
    return repr(value) if len(value) <= _MAX_CHARACTERS else f"{value[:_MAX_CHARACTERS]!r}... ({len(value):,} in all)"


def _unknown(trie: TokenTrie) -> dict[str, str]:
    """A row on items with the tokenizer's unknown token; none for tokenizers without one."""
    record = TextRecord.of(trie.metadata)
    if record is None or record.unknown_token_id is None:
        return {}
    items, sequences = unknown_counts(trie, record.unknown_token_id)
    return {
        "unknown token": f"{record.unknown_token_id}, of characters that the tokenizer lacks, is in {items:,} items "
        f"with {sequences:,} sequences"
    }


def _table(title: str, rows: Mapping[str, str]) -> Iterator[str]:
    width = max(len(printable(name)) for name in rows)
    yield printable(title)
    for name, value in rows.items():
        yield f"  {printable(name):<{width}}  {printable(value)}"
    yield ""


def _histogram(title: str, bins: Mapping[str, int]) -> Iterator[str]:
    if not bins:
        return
    label_width, largest = max(map(len, bins)), max(bins.values())
    count_width = len(f"{largest:,}")
    yield title
    for label, count in bins.items():
        # Rounded up, so that a bin that holds anything is seen.
        bar = "#" * -(-count * _BAR_WIDTH // largest)
        yield f"  {label:>{label_width}}  {count:>{count_width},}  {bar}".rstrip()
    yield ""


def _binned(histogram: Mapping[int, int]) -> dict[str, int]:
    """Bins of equal width, as many as fit on a screen."""
    low, high = min(histogram), max(histogram)
    width = -(-(high - low + 1) // _MAX_BINS)
    starts = range(low, high + 1, width)
    counts = dict.fromkeys(starts, 0)
    for number, count in histogram.items():
        counts[low + (number - low) // width * width] += count
    return {_label(start, min(start + width - 1, high)): counts[start] for start in starts}


def _doubling(histogram: Mapping[int, int]) -> dict[str, int]:
    """Bins whose limits double: 2, 3-4, 5-8, ..."""
    counts: dict[int, int] = {}
    for number, count in histogram.items():
        exponent = (number - 1).bit_length()
        counts[exponent] = counts.get(exponent, 0) + count
    exponents = range(1, max(counts, default=0) + 1)
    return {_label((1 << e >> 1) + 1, 1 << e): counts.get(e, 0) for e in exponents}


def _label(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"


def _draw(statistics: CatalogStatistics, title: str, path: Path) -> None:
    import io

    from gentrie._optional import require
    from gentrie.bench.harness import write_whole

    require("matplotlib", extra="plot")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{title}: {statistics.items:,} items, {statistics.forced_share:.0%} of their tokens forced")
    lengths, branching = figure.subplots(1, 2)
    lengths.bar(list(statistics.length_histogram), list(statistics.length_histogram.values()), width=1.0)
    lengths.set(xlabel="tokens of the item", ylabel="items")
    branching.plot(list(statistics.branching_histogram), list(statistics.branching_histogram.values()), ".")
    branching.set(xlabel="children of the node", ylabel="branching nodes", xscale="log", yscale="log")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=120)
    write_whole(path, drawn.getvalue())
