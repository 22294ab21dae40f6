"""Recommendations kept in files as they are found, so that an interrupted evaluation goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

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

    item_ids: list[list[int]]
    scores: list[float]
    sequences: list[list[int]] = field(default_factory=list)
    token_scores: list[list[float]] = field(default_factory=list)


class RecommendationStore:
    """Results in a folder: JSON lines, one file a process, a header that names the run and then one line a prompt.

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
        Number of the process, which writes a file of its own.

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
        self._own = self._folder / f"part-{rank}.jsonl"
        self._begun = False

    def read(self) -> dict[int, Recommendation]:
        """Everything that any process has written, by the number of the prompt.

        Raises
        ------
        ValueError
            A file holds results of other prompts or under another label.
        """
        done: dict[int, Recommendation] = {}
        for path in sorted(self._folder.glob("part-*.jsonl")):
            # What an interrupted write left behind the last line break is no line.
            lines = path.read_bytes().split(b"\n")[:-1]
            if not lines:
                continue
            if (header := json.loads(lines[0])) != self._header:
                raise ValueError(
                    f"folder: {path} holds results of other prompts or under another label: its header is {header}, "
                    f"expected {self._header}"
                )
            for line in lines[1:]:
                entry = json.loads(line)
                number = entry.pop("prompt")
                done[number] = Recommendation(**entry)
        return done

    def write(self, found: Mapping[int, Recommendation]) -> None:
        """Append results by the number of their prompt, and wait until they are on the disk.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        lines = [] if self._begin() else [json.dumps(self._header)]
        for number, one in found.items():
            lines.append(json.dumps({"prompt": number, **asdict(one)}))
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
