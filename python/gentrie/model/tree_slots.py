"""Which positions of the token tree are stored where: parents, depths, free rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64Array = npt.NDArray[np.int64]

_FREE = -1


class TreeSlots:
    """A forest on the host: each prompt's last token is a root, every decoded token a child.

    A slot is a row of the stored keys and values. Slots of dropped positions are given out again.
    """

    def __init__(self) -> None:
        self._parent = np.empty(0, dtype=np.int64)
        self._depth = np.empty(0, dtype=np.int64)
        self._prompt = np.empty(0, dtype=np.int64)
        self._token = np.empty(0, dtype=np.int64)
        self._free = np.empty(0, dtype=np.int64)
        self._root = 0
        self.prompt_lengths = np.empty(0, dtype=np.int64)
        """int64 [prompts], tokens of each prompt."""

    @property
    def capacity(self) -> int:
        """Slots given out or free."""
        return self._parent.size

    @property
    def num_live(self) -> int:
        """Slots given out."""
        return self.capacity - self._free.size

    def add_prompts(self, lengths: Int64Array) -> Int64Array:
        """Slots [prompts] of new roots."""
        slots = self._take(lengths.size)
        self._root = int(slots[0])
        self._prompt[slots] = self.prompt_lengths.size + np.arange(lengths.size)
        self.prompt_lengths = np.concatenate([self.prompt_lengths, lengths])
        self._parent[slots] = slots
        self._depth[slots] = 0
        return slots

    def check(self, name: str, slots: object) -> Int64Array:
        """Slots that are in use, as int64 [N]; ValueError otherwise."""
        array = np.asarray(slots)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
            raise ValueError(f"{name} has shape {array.shape} and dtype {array.dtype}, expected integers [N]")
        array = array.astype(np.int64)
        live = (array >= 0) & (array < self.capacity)
        live[live] = self._depth[array[live]] != _FREE
        if not live.all():
            row = int(np.argmin(live))
            raise ValueError(f"{name}[{row}] is {array[row]}, not a slot in use")
        return array

    def add_rows(self, parents: Int64Array, tokens: Int64Array) -> Int64Array:
        """Slots [N] of new positions; a parent is a slot, or ``~j`` for row j of the same call."""
        inside = np.flatnonzero(parents < 0)
        late = inside[~parents[inside] >= inside]
        if late.size:
            row = int(late[0])
            raise ValueError(
                f"parents[{row}] is {parents[row]}: row {~parents[row]} of this call is not an earlier row"
            )
        outside = parents.copy()
        outside[inside] = self._root
        self.check("parents", outside)
        slots = self._take(parents.size)
        above = parents.copy()
        above[inside] = slots[~parents[inside]]
        self._parent[slots] = above
        self._token[slots] = tokens
        direct = parents >= 0
        self._depth[slots[direct]] = self._depth[above[direct]] + 1
        self._prompt[slots[direct]] = self._prompt[above[direct]]
        for row in inside:
            self._depth[slots[row]] = self._depth[above[row]] + 1
            self._prompt[slots[row]] = self._prompt[above[row]]
        return slots

    def ancestors(self, slots: Int64Array) -> Int64Array:
        """Int64 [N, deepest]: column s is the position s tokens before, itself included; -1 at and above the root."""
        columns = np.full((slots.size, int(self._depth[slots].max(initial=0))), -1, dtype=np.int64)
        at = slots
        for step in range(columns.shape[1]):
            columns[:, step] = np.where(self._depth[at] > 0, at, -1)
            at = self._parent[at]
        return columns

    def keep(self, slots: Int64Array) -> None:
        """Free every slot but these, what is above them, and the prompts."""
        kept = self._depth == 0
        kept[slots] = True
        above = self.ancestors(slots)
        kept[above[above >= 0]] = True
        self.drop(np.flatnonzero(~kept & (self._depth != _FREE)))

    def drop(self, slots: Int64Array) -> None:
        """Free these slots, behind which nothing may stand."""
        self._depth[slots] = _FREE
        self._free = np.concatenate([self._free, slots])

    def prompts_of(self, slots: Int64Array) -> Int64Array:
        """The prompt's number of each slot."""
        return self._prompt[slots]

    def depths_of(self, slots: Int64Array) -> Int64Array:
        """Tokens between the prompt and each slot, itself included; 0 for a prompt."""
        return self._depth[slots]

    def tokens_of(self, slots: Int64Array) -> Int64Array:
        """The token at each slot; meaningless for prompts."""
        return self._token[slots]

    def positions_of(self, slots: Int64Array) -> Int64Array:
        """Index of each slot's token in its own sequence, prompt included."""
        return self.prompt_lengths[self._prompt[slots]] - 1 + self._depth[slots]

    def _take(self, count: int) -> Int64Array:
        if count > self._free.size:
            old = self.capacity
            new = max(count - self._free.size, old // 2, 16)
            self._free = np.concatenate([self._free, np.arange(old, old + new)])
            for name in ("_parent", "_prompt", "_token"):
                setattr(self, name, np.concatenate([getattr(self, name), np.zeros(new, dtype=np.int64)]))
            self._depth = np.concatenate([self._depth, np.full(new, _FREE)])
        taken, self._free = self._free[:count], self._free[count:]
        return taken
