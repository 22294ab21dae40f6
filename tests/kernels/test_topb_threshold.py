"""The B-th largest logit and the logsumexp against sorting, as kernel and as plain torch."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_rows import RowCase, assert_within, row_cases
from strategies import examples

from gentrie.kernels import reference_losses
from gentrie.kernels._scan_rows import MOST_RANKS
from gentrie.kernels.topb_threshold import launch_topb_threshold, topb_threshold, topb_threshold_op


def launched(
    logits: torch.Tensor, beam_width: int, count: int, *arguments: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel into poisoned results."""
    sums = torch.float64 if logits.dtype == torch.float64 else torch.float32
    threshold = torch.full((count,), torch.nan, dtype=sums, device=logits.device)
    total = threshold.clone()
    launch_topb_threshold(logits, beam_width, *(arguments or (None,) * 5), threshold, total)
    return threshold.cpu(), total.cpu()


def expected(case: RowCase, beam_width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    meant = case.meant(case.logits).to(dtype)
    return reference_losses.topb_threshold(
        meant, beam_width, case.indptr, case.tokens, case.node, 1.0 if case.tau is None else case.tau
    )


@examples(15)
@given(row_cases(), st.sampled_from([1, 2, 10, 70]))
def test_kernel(device: str, case: RowCase, beam_width: int) -> None:
    truth, naive = (expected(case, beam_width, dtype) for dtype in (torch.float64, case.sums))
    threshold, total = launched(case.placed(device), beam_width, len(case.labels), *case.on(device).values())
    assert torch.equal(threshold.double(), truth[0])
    assert_within(total, naive[1], truth[1], case.largest)


@examples(40)
@given(row_cases(), st.sampled_from([1, 2, 10, 3000]))
def test_plain(case: RowCase, beam_width: int) -> None:
    truth, naive = (expected(case, beam_width, dtype) for dtype in (torch.float64, case.sums))
    threshold, total = topb_threshold(case.logits, beam_width, **case.on("cpu"))
    assert torch.equal(threshold.double(), truth[0])
    assert_within(total, naive[1], truth[1], case.largest)


WIDTH, LANES = 9000, 4096
ROWS = {
    "the largest in one lane": torch.zeros(WIDTH).index_fill(0, torch.arange(5, WIDTH, LANES), 9.0),
    "two lanes of one thread": torch.arange(WIDTH).remainder(LANES).div(2, rounding_mode="floor").neg(),
    "ascending": torch.arange(WIDTH),
    "descending": torch.arange(WIDTH).neg(),
    "all equal": torch.full((WIDTH,), 2.5),
    "three values": torch.arange(WIDTH).remainder(3),
    "fewer finite ones than B": torch.full((WIDTH,), -torch.inf).index_fill(0, torch.tensor([7, 4103, 8199]), 1.0),
    "nothing finite": torch.full((WIDTH,), -torch.inf),
    "infinite": torch.zeros(WIDTH).index_fill(0, torch.tensor([11, 4107]), torch.inf),
}


@pytest.mark.parametrize("beam_width", [1, 3, 10])
@pytest.mark.parametrize("name", ROWS)
def test_order_and_ties(device: str, name: str, beam_width: int) -> None:
    """Where lanes and groups of lanes do not hold one of the largest each, the row is read again."""
    row = ROWS[name].float()[None]
    threshold, total = launched(row.to(device), beam_width, 1)
    assert torch.equal(threshold, row.sort(descending=True).values[:, beam_width - 1])
    if name != "infinite":
        torch.testing.assert_close(total, row.logsumexp(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ragged_rows(device: str, dtype: torch.dtype) -> None:
    """Rows of 0, 1, 3 and 2000 values one after the other."""
    counts = torch.tensor([3, 0, 1, 2000, 1])
    indptr = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    values = torch.randn(int(indptr[-1])).to(dtype)
    rows = [values[start:stop].double() for start, stop in pairwise(indptr.tolist())]
    wanted = torch.tensor([float(row.sort().values[-min(2, len(row))]) if len(row) else -torch.inf for row in rows])
    totals = torch.stack([(row / 2).logsumexp(0) for row in rows]).float()
    tau = torch.tensor(2.0)
    for threshold, total in (
        launched(values.to(device), 2, len(counts), None, indptr.to(device), None, None, tau.to(device)),
        topb_threshold(values, 2, indptr=indptr, tau=tau),
    ):
        assert torch.equal(threshold, wanted)
        torch.testing.assert_close(total, totals)


def test_no_threshold_wanted_and_no_rows(device: str) -> None:
    logits = torch.randn(2, 5)
    total = torch.full((2,), torch.nan, device=device)
    launch_topb_threshold(logits.to(device), 0, None, None, None, None, None, total[:0], total)
    threshold, plain = topb_threshold(logits, 0)
    torch.testing.assert_close(total.cpu(), plain)
    assert threshold.shape == (0,)
    for empty in (logits[:0], torch.zeros(0, 0)):
        launched(empty.to(device), 3, 0)
        assert [tuple(result.shape) for result in topb_threshold(empty, 3)] == [(0,), (0,)]


def test_operation() -> None:
    """Schema, fake and torch.compile on CPU tensors."""
    logits, indptr = torch.randn(3, 40), torch.tensor([0, 2, 20, 21])
    tokens, node = torch.arange(21, dtype=torch.int32), torch.tensor([1, -1, 2])
    arguments = (logits, 4, None, indptr, tokens, node, torch.tensor(2.0))
    torch.library.opcheck(topb_threshold_op, arguments)
    named = dict(zip(("rows", "indptr", "tokens", "node", "tau"), arguments[2:], strict=True))
    compiled = torch.compile(lambda logits: topb_threshold(logits, 4, **named), fullgraph=True, backend="aot_eager")
    for actual, wanted in zip(compiled(logits), topb_threshold(logits, 4, **named), strict=True):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"tokens": torch.zeros(3)}, "without indptr"),
        ({"indptr": torch.zeros(4, dtype=torch.int64)}, "with indptr and no tokens"),
        ({"indptr": torch.zeros(2, dtype=torch.int64), "tokens": torch.zeros(3)}, r"expected \[3\]"),
        ({"node": torch.zeros(3, dtype=torch.int64)}, r"node has shape \(3,\), expected \[2\]"),
        ({"node": torch.zeros(2)}, "node has dtype torch.float32"),
    ],
)
def test_shapes_that_do_not_fit(named: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        topb_threshold(torch.randn(2, 5), 3, **named)
    with pytest.raises(ValueError, match="beam_width=-1"):
        topb_threshold(torch.randn(2, 5), -1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("beam_width", [10, 50, MOST_RANKS + 1])
def test_on_a_gpu(dtype: torch.dtype, beam_width: int) -> None:
    logits = torch.randn(64, 131072, device="cuda", dtype=dtype)
    torch.cuda.set_sync_debug_mode("error")
    try:
        threshold, total = topb_threshold(logits, beam_width)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(threshold, logits.topk(beam_width).values[:, -1].float())
    assert_within(total, logits.float().logsumexp(1), logits.double().logsumexp(1))


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    """A replay sees changed logits, and gives equal bits for equal ones."""
    logits = torch.randn(32, 131072, device="cuda", dtype=torch.bfloat16)
    topb_threshold(logits, 10)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        threshold, total = topb_threshold(logits, 10)
    for _ in range(3):
        logits.normal_()
        graph.replay()
        wanted = topb_threshold(logits, 10)
        assert torch.equal(threshold, wanted[0])
        assert torch.equal(total, wanted[1])
