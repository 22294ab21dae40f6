"""What chunks of a catalog may look like, and their way into the core's builder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from gentrie import _core, _validate
from gentrie._progress import progress_bar


def build_from_chunks(
    chunks: Iterable[Any],
    *,
    vocab_size: int,
    end_token_id: int,
    with_item_ids: bool,
    num_threads: int,
    memory_limit: int,
    spill_folder: bytes,
    progress: bool,
) -> _core.Trie:
    """Feed every chunk to a ``ChunkedBuilder`` and finish it; arguments are as the core wants them."""
    if isinstance(chunks, str | bytes) or not isinstance(chunks, Iterable):
        raise TypeError(f"chunks is a {type(chunks).__name__}, expected an iterable of chunks")
    shown: Callable[[int, int], object] = lambda done, total: None  # noqa: E731 - the bar at hand replaces it
    builder = _core.ChunkedBuilder(
        vocab_size, end_token_id, num_threads, memory_limit, spill_folder, lambda done, total: shown(done, total)
    )
    with ExitStack() as bars:
        add_rows = bars.enter_context(progress_bar("sorting chunks", None)) if progress else None
        num_rows = 0
        for number, chunk in enumerate(chunks):
            name = f"chunks[{number}]"
            values, indptr, ids = _parts(name, chunk, with_item_ids)
            builder.add(values, indptr, ids, name)
            num_rows += values.shape[0] if indptr is None else indptr.size - 1
            if add_rows is not None:
                add_rows(num_rows, num_rows)
        if progress:
            bars.close()
            shown = bars.enter_context(progress_bar("merging", num_rows))
        return builder.finish()


def _parts(name: str, chunk: Any, with_item_ids: bool) -> tuple[Any, Any, Any]:
    """Values, indptr and item ids of a chunk."""
    if not with_item_ids:
        return *_validate.sequences(chunk, name), None
    if not isinstance(chunk, tuple | list) or len(chunk) != 2:
        raise TypeError(f"{name} is a {type(chunk).__name__}, expected a pair (sequences, item_ids)")
    values, indptr = _validate.sequences(chunk[0], name)
    num_rows = values.shape[0] if indptr is None else indptr.size - 1
    ids = _validate.item_ids(chunk[1], num_rows, f"{name}: item_ids", name)
    if ids is None:
        raise TypeError(f"{name}: item_ids is None, expected one id a row")
    return values, indptr, ids
