"""The benchmark of whole requests: what it reports, with its step in a CUDA graph and without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from gpu_check_sizes import TINY  # noqa: E402

from gentrie.bench.gpu import request  # noqa: E402

SIZES = replace(TINY["request"], beams=(3, 5), batches=(1, 2), length=3, requests=2)
NAMES = [f"batch {batch}, beam {width}" for batch in (1, 2) for width in (3, 5)]
KINDS = {"request": "ms", "step": "ms", "our part of a step": "us", "our share of a step": "%"}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_figures_of_each_batch_and_beam(device: str) -> None:
    found = request.measure(SIZES, device=device, rounds=3)
    assert [(figure.name, figure.unit) for figure in found] == [
        (f"{kind}, {name}", unit) for name in NAMES for kind, unit in KINDS.items()
    ]
    assert all(0 < figure.median <= figure.p95 <= figure.p99 <= max(figure.rounds) for figure in found)
    assert [figure.note for figure in found] == [""] * len(found)  # no step had to run outside a graph
    for at in range(0, len(found), len(KINDS)):
        whole, step, ours, _ = found[at : at + len(KINDS)]
        assert (len(whole.rounds), len(step.rounds), len(ours.rounds)) == (2, 2, 3)
        assert all(2 * one < all_of_it for one, all_of_it in zip(step.rounds, whole.rounds, strict=True))


def test_a_step_that_cannot_be_captured_runs_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(method: object, device: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(request, "captured", refuses)
    found = request.measure(SIZES, device="cpu", rounds=3)
    assert len(found) == len(NAMES) * len(KINDS)
    assert {figure.note for figure in found} == {"not in a CUDA graph: operation not permitted"}
    shares = [figure for figure in found if figure.unit == "%"]
    assert all(0 < share < 100 for figure in shares for share in figure.rounds)


@pytest.mark.parametrize(
    ("instead", "why"),
    [
        (lambda step: lambda: None, "prompt 0 is not finished after 1 steps"),
        (lambda step: lambda: (step(), step.__self__.stepper.scores.mul_(1.1)), "other items"),
    ],
)
def test_a_graph_that_gives_other_items_is_not_used(monkeypatch: pytest.MonkeyPatch, instead: Any, why: str) -> None:
    monkeypatch.setattr(request, "captured", lambda method, device: instead(method))
    found = request.measure(replace(SIZES, beams=(3,), batches=(1,)), device="cpu", rounds=1)
    assert len({figure.note for figure in found}) == 1
    assert found[0].note.startswith("not in a CUDA graph: ")
    assert why in found[0].note
