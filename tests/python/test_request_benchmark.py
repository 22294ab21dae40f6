"""The benchmark of whole requests, at a size at which it takes no time."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch

from gentrie.bench.gpu.request import QWEN3_1_7B, measure

TINY = {
    **QWEN3_1_7B,
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def test_figures_of_each_batch_and_beam() -> None:
    found = measure(
        "cpu",
        beams=(3, 5),
        batches=(1, 2),
        rounds=2,
        num_items=500,
        length=3,
        num_codes=16,
        prompt_length=7,
        shape=TINY,
        dtype=torch.float32,
    )
    names = [f"batch {batch}, beam {width}" for batch in (1, 2) for width in (3, 5)]
    kinds = ("request", "step", "our share of a step")
    assert [figure["name"] for figure in found] == [f"{kind}, {name}" for name in names for kind in kinds]
    for request, step, share in zip(found[::3], found[1::3], found[2::3], strict=True):
        assert 0 < 2 * step["p50"] < request["p99"]  # two steps behind the prompt's
        assert 0 < share["p50"] <= share["p95"] <= share["p99"] < 100
        assert request["note"] == "500 ids of 3 codes of 16, prompt 7, torch.float32, 2 requests"
        assert [figure["unit"] for figure in (request, step, share)] == ["ms", "ms", "%"]
