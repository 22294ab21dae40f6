"""``gentrie diff``: what changed from one trie file to another."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from gentrie._text_record import tokenizers_agree
from gentrie.cli._messages import printable

if TYPE_CHECKING:
    from gentrie import TokenTrie

_LISTED = 10

_Ints = npt.NDArray[np.int64]
_Ids = npt.NDArray[Any]


@dataclass(frozen=True)
class CatalogDifference:
    """What changed between two tries.

    Attributes
    ----------
    added, removed, changed
        Item ids, ascending: only in the new trie; only in the old one; in both with other sequences.
    settings
        Names of what else differs: ``vocab_size``, ``end_token_id``, ``tokenizer``, ``template``, ``context``,
        ``item_ids`` (integers in one trie, strings in the other).
    """

    added: list[Any]
    removed: list[Any]
    changed: list[Any]
    settings: list[str]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.settings)

    @classmethod
    def between(cls, old: TokenTrie, new: TokenTrie) -> CatalogDifference:
        """Compare two tries item by item."""
        numbers: dict[bytes, int] = {}
        old_items, old_sequences = _pairs(old, numbers)
        new_items, new_sequences = _pairs(new, numbers)
        kinds_differ = old_items.dtype != new_items.dtype
        if kinds_differ:
            old_items, new_items = (np.array([str(i) for i in ids], dtype=object) for ids in (old_items, new_items))
        items = np.unique(np.concatenate([old_items, new_items]))
        # One integer a pair: sorting records would take most of the time.
        old_keys = np.searchsorted(items, old_items) * len(numbers) + old_sequences
        new_keys = np.searchsorted(items, new_items) * len(numbers) + new_sequences
        moved = items[np.unique(np.setxor1d(old_keys, new_keys) // len(numbers))]
        kept = np.intersect1d(old_items, new_items)
        before, after = old.metadata, new.metadata
        settings = {
            "vocab_size": old.vocab_size != new.vocab_size,
            "end_token_id": old.end_token_id != new.end_token_id,
            "tokenizer": not tokenizers_agree((before, old.vocabulary), (after, new.vocabulary)),
            **{name: before.get(name) != after.get(name) for name in ("template", "context")},
            "item_ids": kinds_differ,
        }
        return cls(
            added=np.setdiff1d(new_items, old_items).tolist(),
            removed=np.setdiff1d(old_items, new_items).tolist(),
            changed=np.intersect1d(moved, kept, assume_unique=True).tolist(),
            settings=[name for name, differs in settings.items() if differs],
        )


def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A trie file.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The trie file to replace it.")],
    max_removed: Annotated[
        int | None, typer.Option(help="Gate: fail only if more items than this were removed.", min=0)
    ] = None,
    max_changed: Annotated[
        int | None, typer.Option(help="Gate: fail only if more items than this have other tokens.", min=0)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with all item ids.")] = False,
) -> None:
    """Compare two tries item by item.

    Without gates every difference fails. With a gate, items may be added, and what has no gate of its own may change,
    but not the settings: vocabulary size, end token, tokenizer, template and context. What failed is named on stderr.
    Exit code 0: nothing failed; 1: something did; 2: a file cannot be read.
    """
    from gentrie import TokenTrie

    try:
        difference = CatalogDifference.between(TokenTrie.load(old), TokenTrie.load(new))
    except OSError as error:
        raise ValueError(str(error)) from error  # like diff(1), where 1 would mean a difference
    if as_json:
        typer.echo(json.dumps(asdict(difference)))
    else:
        for name in ("added", "removed", "changed"):
            ids: list[Any] = getattr(difference, name)
            listed = printable(", ".join(map(str, ids[:_LISTED]))) + (", ..." if len(ids) > _LISTED else "")
            typer.echo(f"{name:<8} {len(ids):>12,}  {listed}".rstrip())
        if difference.settings:
            typer.echo(f"different settings: {', '.join(difference.settings)}")

    failures = _failures(difference, max_removed, max_changed)
    if failures:
        typer.echo(f"gentrie: failed: {'; '.join(failures)}", err=True)
        raise typer.Exit(1)


def _failures(difference: CatalogDifference, max_removed: int | None, max_changed: int | None) -> list[str]:
    """What fails the comparison, in words."""
    counts = {name: len(getattr(difference, name)) for name in ("added", "removed", "changed")}
    if max_removed is None and max_changed is None:
        failures = [f"{count:,} items {name}" for name, count in counts.items() if count]
    else:
        gates = {"removed": max_removed, "changed": max_changed}
        failures = [
            f"{counts[name]:,} items {name}, more than --max-{name} {limit}"
            for name, limit in gates.items()
            if limit is not None and counts[name] > limit
        ]
    if difference.settings:
        failures.append(f"different settings: {', '.join(difference.settings)}")
    return failures


def _pairs(trie: TokenTrie, numbers: dict[bytes, int]) -> tuple[_Ids, _Ints]:
    """Return the items of a trie and the numbers of their sequences; the tries compared share ``numbers``."""
    values, indptr, item_ids, item_indptr = trie.to_sequences()
    content, bounds = values.tobytes(), (indptr * values.itemsize).tolist()
    sequences = np.array(
        [numbers.setdefault(content[start:stop], len(numbers)) for start, stop in itertools.pairwise(bounds)],
        dtype=np.int64,
    )
    return item_ids, np.repeat(sequences, np.diff(item_indptr))
