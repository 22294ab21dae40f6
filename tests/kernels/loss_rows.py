"""Random rows of logits with valid tokens, labels and temperatures, for the kernels of the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class RowCase:
    """Logits [N, V] of some strides, and what is asked of n of their rows; fields as the operations name them."""

    logits: torch.Tensor
    rows: torch.Tensor | None
    labels: torch.Tensor
    indptr: torch.Tensor | None
    tokens: torch.Tensor | None
    node: torch.Tensor | None
    tau: float | None
    weights: torch.Tensor | None

    @property
    def sums(self) -> torch.dtype:
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32

    @property
    def largest(self) -> float:
        """Of the logits over their temperature."""
        return float(self.logits.abs().max()) / min(1.0, self.tau or 1.0)

    def on(self, device: str) -> dict[str, torch.Tensor | None]:
        """The tensors by name, but logits, labels and weights."""
        tau = None if self.tau is None else torch.tensor(self.tau, dtype=self.sums)
        named = {"rows": self.rows, "indptr": self.indptr, "tokens": self.tokens, "node": self.node, "tau": tau}
        return {name: None if tensor is None else tensor.to(device) for name, tensor in named.items()}

    def placed(self, device: str) -> torch.Tensor:
        """The logits on a device, with their strides."""
        copy = torch.empty_strided(self.logits.shape, self.logits.stride(), dtype=self.logits.dtype, device=device)
        return copy.copy_(self.logits)

    def meant(self, logits: torch.Tensor) -> torch.Tensor:
        """The rows that are asked for."""
        return logits if self.rows is None else logits[self.rows]

    def poisoned(self, device: str) -> torch.Tensor:
        return torch.full((len(self.labels),), torch.nan, dtype=self.sums, device=device)


@st.composite
def row_cases(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES) -> RowCase:
    """Widths on either side of a block, nodes of one token and of hundreds, free text, equal logits."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(dtypes))
    num_rows, width = draw(st.integers(1, 4)), draw(st.sampled_from([2, 7, 130, 700, 4500]))
    spread = draw(st.sampled_from([1.0, 4.0]))
    step = draw(st.sampled_from([1, 2]))
    wide = spread * torch.randn(num_rows, width * step + 3, generator=generator, dtype=torch.float64)
    if draw(st.booleans()):
        wide = wide.round()  # ties everywhere
    logits = wide.to(dtype)[:, 3::step]
    if draw(st.booleans()):
        logits = logits.t().contiguous().t()
    rows = None
    if draw(st.booleans()):
        rows = torch.randperm(num_rows, generator=generator)[: draw(st.integers(1, num_rows))]
    count = num_rows if rows is None else len(rows)
    labels = torch.randint(0, width, (count,), generator=generator)
    indptr = tokens = node = None
    if draw(st.booleans()):
        sizes = [draw(st.integers(1, width)) for _ in range(draw(st.integers(1, 3)))]
        sizes[0] = draw(st.sampled_from([1, min(2, width), width]))
        chosen = [torch.randperm(width, generator=generator)[:size].sort().values for size in sizes]
        indptr = torch.tensor([0, *sizes]).cumsum(0)
        tokens = torch.cat(chosen).to(draw(st.sampled_from([torch.int32, torch.int64])))
        kinds = draw(st.lists(st.integers(-2, len(sizes) - 1), min_size=count, max_size=count))
        node = torch.tensor(kinds)
        for i, kind in enumerate(kinds):
            if kind >= 0:
                labels[i] = chosen[kind][int(labels[i]) % sizes[kind]]
    elif draw(st.booleans()):
        node = torch.tensor(draw(st.lists(st.integers(-2, -1), min_size=count, max_size=count)))
    weights = torch.rand(count, generator=generator) if draw(st.booleans()) else None
    return RowCase(logits, rows, labels, indptr, tokens, node, draw(st.sampled_from([None, 0.5, 2.0])), weights)


def assert_within(actual: torch.Tensor, naive: torch.Tensor, truth: torch.Tensor, largest: float = 1.0) -> None:
    """Ours may be as wrong as the naive path in the same dtype, and by a rounding of the largest number there is.

    ``largest`` bounds the numbers that are summed on the way.
    """
    truth = truth.detach().double().cpu()
    if not truth.numel():
        assert actual.shape == truth.shape
        return
    actual_error = (actual.detach().double().cpu() - truth).abs().max()
    naive_error = (naive.detach().double().cpu() - truth).abs().max()
    # In 16 bits one unit roundoff of the result: sums are formed in float32. In 32 bits the naive path sums in the same
    # precision, in another order: its error is a draw that may be 0, so that ours may err by the roundings of a tree of
    # 16 additions, of what is summed or of the sum. In 64 bits the truth is the naive path, whose sums of thousands of
    # numbers err by hundreds of roundings, where ours do not.
    roundings = {2: 1, 4: 16, 8: 2**12}[naive.dtype.itemsize]
    size = max(1.0, float(truth.abs().max()), 0.0 if roundings == 1 else largest)
    assert actual_error <= naive_error + torch.finfo(actual.dtype).eps / 2 * roundings * size
