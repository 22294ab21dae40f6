"""Recommendations for many prompts: sorted by length, resumable, over several processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from gentrie import _validate


@dataclass(frozen=True)
class Recommendation:
    """The items of one prompt, best first.

    Attributes
    ----------
    item_ids
        For each sequence found, the items that share it.
    scores
        The score of each sequence.
    """

    item_ids: list[list[int]]
    scores: list[float]


def recommend(
    prompts: Sequence[Sequence[int]],
    search: Callable[..., Any],
    *,
    batch_size: int = 16,
    pad_token_id: int = 0,
    device: torch.device | str = "cpu",
    folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[Recommendation]:
    """Search items for every prompt.

    Prompts are taken longest first in batches of like lengths, so that padding is small and memory runs out at once
    or not at all. With ``folder`` each batch is written as it is done, and a call that was interrupted goes on where
    it stopped, with any number of processes. Where ``torch.distributed`` is initialised (under ``accelerate launch``,
    ``accelerate.PartialState()`` does it) every process takes its share of the batches and all return all results.

    Parameters
    ----------
    prompts
        Token ids of each prompt.
    search
        ``search(input_ids, attention_mask=mask)`` for a batch padded on the left, int64 [P, T] each; returns what the
        searches here do, with ``item_ids`` and ``sequences_scores`` for each prompt. For example
        ``functools.partial(best_first_search, model, trie=trie)``.
    batch_size
        Prompts in a call.
    pad_token_id
        Stands where nothing is.
    device
        Where the batches are made.
    folder
        For the results, JSON lines in one file a process; made where missing. Needed with several processes.
    progress
        Show a progress bar on stderr, of the first process.

    Returns
    -------
    One for each prompt, in the order given.

    Raises
    ------
    ValueError
        For an empty prompt, naming it; a folder that holds results of other prompts; several processes without one.
    OSError
        If the folder cannot be written.
    """
    rows = [_validate.token_row(f"prompts[{number}]", prompt) for number, prompt in enumerate(prompts)]
    for number, row in enumerate(rows):
        if row.size == 0:
            raise ValueError(f"prompts[{number}] is empty")
    size = _validate.integer("batch_size", batch_size, 1, 2**31 - 1)
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    rank, world = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    if world > 1 and folder is None:
        raise ValueError(f"folder is missing: {world} processes exchange their results through it")
    store = None if folder is None else _Store(Path(folder), rank, rows)
    done = {} if store is None else store.read()
    if world > 1:
        torch.distributed.barrier()  # all have read the same before any writes
    left = sorted((number for number in range(len(rows)) if number not in done), key=lambda n: -rows[n].size)
    batches = [left[at : at + size] for at in range(0, len(left), size)][rank::world]
    with tqdm(total=sum(map(len, batches)), unit="prompt", disable=not progress or rank > 0) as bar:
        for batch in batches:
            ids, mask = _padded([rows[number] for number in batch], pad_token_id, device)
            result = search(ids, attention_mask=mask)
            found = dict(zip(batch, _recommendations(result), strict=True))
            done |= found
            if store is not None:
                store.write(found)
            bar.update(len(batch))
    if world > 1:
        assert store is not None
        torch.distributed.barrier()
        done = store.read()
    return [done[number] for number in range(len(rows))]


def _padded(
    rows: list[_validate.Int64Array], pad_token_id: int, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(row.size for row in rows)
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, width - row.size :] = row
        mask[at, width - row.size :] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


def _recommendations(result: Any) -> Iterator[Recommendation]:
    for items, scores in zip(result.item_ids, result.sequences_scores, strict=True):
        yield Recommendation([[int(item) for item in same] for same in items], [float(score) for score in scores])


class _Store:
    """JSON lines, one file a process: a header that names the prompts, then one line a prompt."""

    def __init__(self, folder: Path, rank: int, rows: list[_validate.Int64Array]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._own = folder / f"part-{rank}.jsonl"
        self._begun = False
        digest = hashlib.sha256()
        for row in rows:
            digest.update(row.size.to_bytes(8, "little") + row.tobytes())
        self._header = {"prompts": digest.hexdigest(), "num_prompts": len(rows)}

    def read(self) -> dict[int, Recommendation]:
        """Everything that any process has written."""
        done: dict[int, Recommendation] = {}
        for path in sorted(self._folder.glob("part-*.jsonl")):
            # What an interrupted write left behind the last line break is no line.
            lines = path.read_bytes().split(b"\n")[:-1]
            if not lines:
                continue
            if json.loads(lines[0]) != self._header:
                raise ValueError(f"folder: {path} holds results of other prompts")
            for line in lines[1:]:
                entry = json.loads(line)
                done[entry["prompt"]] = Recommendation(entry["item_ids"], entry["scores"])
        return done

    def write(self, found: dict[int, Recommendation]) -> None:
        """Append a batch, and wait until it is on the disk."""
        lines = [] if self._begin() else [json.dumps(self._header)]
        for number, one in found.items():
            lines.append(json.dumps({"prompt": number, "item_ids": one.item_ids, "scores": one.scores}))
        with open(self._own, "ab") as file:
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())

    def _begin(self) -> bool:
        """Whether the file has a header; the first time, what an interrupted write left behind is cut off."""
        if not self._begun:
            self._begun = True
            if not self._own.exists():
                return False
            whole = self._own.read_bytes().rfind(b"\n") + 1
            os.truncate(self._own, whole)
            return whole > 0
        return True
