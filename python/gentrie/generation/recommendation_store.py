"""Recommendations kept in files as they are found, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from gentrie import _validate


@dataclass(frozen=True)
class Recommendation:
    """The items of one prompt, best first.

    Attributes
    ----------
    item_ids
        For each sequence found, the items that share it.
    scores
        The score of each sequence; empty where the search gives none.
    sequences
        The tokens of each sequence; empty where the search does not give them by item, as text with items inside.
    token_scores
        The score of each of these tokens; empty where the search gives none.
    """

    item_ids: list[list[int | str]]
    scores: list[float]
    sequences: list[list[int]] = field(default_factory=list)
    token_scores: list[list[float]] = field(default_factory=list)


class RecommendationStore:
    """Results in a folder: JSON lines, a header that names the run and then one line a prompt.

    A store writes to a file that it has made itself, ``part-RANK.jsonl`` or where that is there already
    ``part-RANK.1.jsonl`` and so on, so that runs may be interrupted at any time and even go on at the same time.

    :func:`recommend` keeps its results here; a runner of one's own (Ray Data in ``examples/recommend_ray.py``) can do
    the same, and then either goes on with what the other left.

    Parameters
    ----------
    folder
        For the files; made where missing.
    prompts
        Token ids of each prompt. A folder belongs to these prompts, in this order.
    label
        What else the results depend on, in words of one's own: model, catalog, search.
    rank
        Number of the process.

    Raises
    ------
    OSError
        If the folder cannot be made.
    ValueError, TypeError
        For prompts that are no rows of token ids.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        prompts: Sequence[Sequence[int] | _validate.Int64Array],
        *,
        label: str = "",
        rank: int = 0,
    ) -> None:
        digest = hashlib.sha256()
        for number, prompt in enumerate(prompts):
            row = _validate.token_row(f"prompts[{number}]", prompt)
            digest.update(row.size.to_bytes(8, "little") + row.tobytes())
        self._header = {"prompts": digest.hexdigest(), "num_prompts": len(prompts), "label": label}
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._rank = rank
        self._own: Path | None = None
        self._end = 0  # bytes of the own file that are known to be complete

    def read(self) -> dict[int, Recommendation]:
        """Everything that any process has written, by the number of the prompt.

        Raises
        ------
        ValueError
            A file holds results of other prompts or under another label, or a line that is none of a store's.
        """
        done: dict[int, Recommendation] = {}
        for path in sorted(self._folder.glob("part-*.jsonl")):
            # What an interrupted write left behind the last line break is no line.
            lines = path.read_bytes().split(b"\n")[:-1]
            if not lines:
                continue
            if (header := _entry(path, 1, lines[0])) != self._header:
                raise ValueError(
                    f"folder: {path} holds results of other prompts or under another label: its header is {header}, "
                    f"expected {self._header}"
                )
            for number, line in enumerate(lines[1:], start=2):
                entry = _entry(path, number, line)
                try:
                    prompt = entry.pop("prompt")
                    done[prompt] = Recommendation(**entry)
                except (KeyError, TypeError):
                    raise ValueError(f"folder: line {number} of {path} holds no recommendation") from None
        return done

    def write(self, found: Mapping[int, Recommendation]) -> None:
        """Append results by the number of their prompt, and wait until they are on the disk.

        Raises
        ------
        OSError
            If the file cannot be written. What the write has left behind is no result, and the next one replaces it.
        """
        lines = [] if self._end else [json.dumps(self._header)]
        for number, one in found.items():
            lines.append(json.dumps({"prompt": number, **asdict(one)}))
        data = "".join(f"{line}\n" for line in lines).encode()
        with self._opened() as file:
            file.truncate(self._end)
            file.seek(self._end)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._end += len(data)

    def _opened(self) -> BinaryIO:
        """The own file; the first time it is made, under a name that no other store has."""
        names = itertools.count()
        while self._own is None:
            number = next(names)
            path = self._folder / f"part-{self._rank}{f'.{number}' if number else ''}.jsonl"
            with contextlib.suppress(FileExistsError):
                path.touch(exist_ok=False)
                self._own = path
        return open(self._own, "r+b")


def _entry(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, dict):
        raise ValueError(f"folder: line {number} of {path} is not a JSON object")
    return entry
