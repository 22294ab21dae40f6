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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_figures_of_each_batch_and_beam(device: str) -> None:
    found = measure(
        device,
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
    kinds = ["request", "step", "our share of a step"]
    kinds += ["our part of a step in a CUDA graph"] if device == "cuda" else []
    assert [figure["name"] for figure in found] == [f"{kind}, {name}" for name in names for kind in kinds]
    assert all(0 < figure["p50"] <= figure["p95"] <= figure["p99"] for figure in found)
    for at in range(0, len(found), len(kinds)):
        request, step, share = found[at : at + 3]
        assert 0 < 2 * step["p50"] < request["p99"]  # two steps behind the prompt's
        assert share["p99"] < 100
        assert request["note"] == "500 ids of 3 codes of 16, prompt 7, torch.float32, 2 requests"
        assert [figure["unit"] for figure in (request, step, share)] == ["ms", "ms", "%"]
