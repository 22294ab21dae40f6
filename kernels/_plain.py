"""Rows and their valid tokens in plain torch: for tensors on the CPU, and where Triton cannot run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_CHUNK = 1 << 20
"""Most logits that are held at a time beside those given."""


@dataclass(frozen=True)
class Block:
    """Rows [m] taken at a time.

    Attributes
    ----------
    at
        int64 [m], their numbers.
    row
        int64 [m], where they stand in the logits; None in a ragged array.
    column
        int64 [m, w], the place of each value in its row (in a ragged array: in all of it), 0 beyond a row's end; None
        where the whole rows are meant.
    inside
        bool [m, w], False beyond a row's end; None where no row is shorter.
    count
        int64 [m].
    """

    at: torch.Tensor
    row: torch.Tensor | None
    column: torch.Tensor | None
    inside: torch.Tensor | None
    count: torch.Tensor

    def pick(self, logits: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The logits [m, w], -inf beyond a row's end."""
        if self.row is None:
            values = logits[self.column]
        elif self.column is None:
            values = logits.index_select(0, self.row)
        else:
            values = logits[self.row[:, None], self.column]
        values = values.to(dtype)
        return values if self.inside is None else values.masked_fill(~self.inside, -torch.inf)

    def is_label(self, labels: torch.Tensor) -> torch.Tensor:
        """bool [m, w], which value is the label's; in a ragged array labels are places in their rows."""
        wanted = labels[self.at, None]
        if self.row is None or self.column is None:
            width = int(self.count.max()) if self.column is None else self.column.shape[1]
            return torch.arange(width, device=labels.device) == wanted
        assert self.inside is not None
        return (self.column == wanted) & self.inside

    def put(self, values: torch.Tensor, into: torch.Tensor) -> None:
        """Write values [m, w] where :meth:`pick` took them from."""
        values = values.to(into.dtype)
        if self.column is None or self.inside is None:
            assert self.row is not None
            into.index_copy_(0, self.row, values)
        elif self.row is None:
            into[self.column[self.inside]] = values[self.inside]
        else:
            row = self.row[:, None].expand_as(values)
            into[row[self.inside], self.column[self.inside]] = values[self.inside]


def blocks(
    logits: torch.Tensor,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
) -> Iterator[Block]:
    """All rows in blocks of similar width; arguments as in ``topb_threshold``."""
    every = torch.arange(num_rows(logits, rows, indptr, tokens), device=logits.device)
    row = every if rows is None else rows
    step = max(1, _CHUNK // max(1, logits.shape[-1]))
    if indptr is None:
        yield from _whole_rows(every, row, logits.shape[-1], step)
        return
    number = every if node is None else node
    whole = number < 0
    yield from _whole_rows(every[whole], row[whole], logits.shape[-1], step)
    at, row, number = every[~whole], row[~whole], number[~whole]
    start, count = indptr[number], indptr[number + 1] - indptr[number]
    count, order = count.sort(descending=True, stable=True)
    at, row, start = at[order], row[order], start[order]
    counts, first = count.tolist(), 0
    while first < len(counts):
        widest = max(1, counts[first])
        last = min(len(counts), first + max(1, _CHUNK // widest))
        part = slice(first, last)
        place = torch.arange(widest, device=logits.device)
        inside = place < count[part, None]
        column = torch.where(inside, start[part, None] + place, 0)
        if tokens is None:
            yield Block(at[part], None, column, inside, count[part])
        else:
            column = tokens[column].long() if len(tokens) else column
            yield Block(at[part], row[part], torch.where(inside, column, 0), inside, count[part])
        first = last


def _whole_rows(at: torch.Tensor, row: torch.Tensor, width: int, step: int) -> Iterator[Block]:
    for part, place in zip(torch.split(at, step), torch.split(row, step), strict=True):
        if len(part):
            yield Block(part, place, None, None, torch.full_like(part, width))


def topb_threshold(
    logits: torch.Tensor,
    beam_width: int,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    tau: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``topb_threshold`` by torch's topk and logsumexp."""
    dtype = sum_dtype(logits)
    total = num_rows(logits, rows, indptr, tokens)
    thresholds = logits.new_full((total if beam_width else 0,), -torch.inf, dtype=dtype)
    totals = logits.new_full((total,), -torch.inf, dtype=dtype)
    for block in blocks(logits, rows, indptr, tokens, node):
        values = block.pick(logits, dtype)
        totals[block.at] = (values / temperatures(block.at, node, tau, dtype)).logsumexp(1)
        if beam_width:
            thresholds[block.at] = kth_largest(values, block.count, beam_width)
    return thresholds, totals


def temperatures(
    at: torch.Tensor, node: torch.Tensor | None, tau: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """[m, 1], the temperature of each row: 1 in free text."""
    ones = torch.ones(len(at), 1, dtype=dtype, device=at.device)
    if tau is None:
        return ones
    hot = ones * tau.to(dtype)
    return hot if node is None else torch.where(node[at][:, None] == -2, ones, hot)


def kth_largest(values: torch.Tensor, count: torch.Tensor, k: int) -> torch.Tensor:
    """The ``min(k, count)``-th largest of each row; -inf for a row of none."""
    top = values.topk(min(k, values.shape[1]), dim=1).values
    return top.gather(1, count.clamp(max=k, min=1)[:, None] - 1)[:, 0]


def slots(rows: torch.Tensor, num_rows: int) -> torch.Tensor:
    """int64 [num_rows], which entry of ``rows`` a row is, -1 for none."""
    numbers = torch.full((num_rows,), -1, dtype=torch.int64, device=rows.device)
    numbers[rows] = torch.arange(rows.shape[0], device=rows.device)
    return numbers


def sum_dtype(*tensors: torch.Tensor) -> torch.dtype:
    """In which sums are formed: float64 if any tensor is, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def num_rows(
    logits: torch.Tensor, rows: torch.Tensor | None, indptr: torch.Tensor | None, tokens: torch.Tensor | None
) -> int:
    """How many rows are meant."""
    if rows is not None:
        return rows.shape[0]
    return indptr.shape[0] - 1 if indptr is not None and tokens is None else logits.shape[0]


def check_rows(
    logits: torch.Tensor,
    rows: torch.Tensor | None,
    indptr: torch.Tensor | None,
    tokens: torch.Tensor | None,
    node: torch.Tensor | None,
    labels: torch.Tensor | None = None,
) -> None:
    """Raise ValueError for shapes that do not fit; nothing here looks at a value."""
    ragged = indptr is not None and tokens is None
    if logits.dim() != (1 if ragged else 2):
        raise ValueError(
            f"logits has shape {tuple(logits.shape)}, expected "
            + ("[values] with indptr and no tokens" if ragged else "[rows, vocabulary]")
        )
    if ragged and (rows is not None or node is not None):
        raise ValueError("rows and node have no meaning for a ragged array of logits: leave them out")
    if tokens is not None and indptr is None:
        raise ValueError("tokens is given without indptr")
    if indptr is not None and (indptr.dim() != 1 or indptr.shape[0] < 1):
        raise ValueError(f"indptr has shape {tuple(indptr.shape)}, expected [rows + 1]")
    total = num_rows(logits, rows, indptr, tokens)
    if node is not None and node.shape != (total,):
        raise ValueError(f"node has shape {tuple(node.shape)}, expected [{total}]")
    if node is None and tokens is not None and indptr is not None and indptr.shape[0] != total + 1:
        raise ValueError(f"indptr has shape {tuple(indptr.shape)}, expected [{total + 1}]")
    if labels is not None and labels.shape != (total,):
        raise ValueError(f"labels has shape {tuple(labels.shape)}, expected [{total}]")
    for name, tensor in (("rows", rows), ("indptr", indptr), ("node", node), ("labels", labels)):
        if tensor is not None and tensor.dtype != torch.int64:
            raise ValueError(f"{name} has dtype {tensor.dtype}, expected torch.int64")
