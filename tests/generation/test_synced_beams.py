"""Beam search on ranks that must call their model equally often, each with searches of different lengths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny_models import END, VOCAB_SIZE, tiny_model
from torch.distributed import fsdp

from gentrie import TokenTrie
from gentrie.generation import beam_search, trie_beam_search

TITLES = [[a, b, c, 20, 21][: 3 + a % 3] for a in range(4, 9) for b in range(9, 13) for c in range(13, 17)]
TRIE = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = [torch.tensor([[30, 31, 32]]), torch.tensor([[33, 34], [35, 36]])]
FILTERS = [[7], None]  # of the first rank's prompt one item is left, of which all is known


def by_beam_search(model: Any, rank: int, **arguments: Any) -> list[list[list[int]]]:
    found = beam_search(model, PROMPTS[rank], TRIE, beam_width=4, item_filter=FILTERS[rank], **arguments)
    return found.sequences


def by_generate(model: Any, rank: int) -> list[list[int]]:
    rows: list[list[int]] = model.generate(
        PROMPTS[rank],
        attention_mask=torch.ones_like(PROMPTS[rank]),
        custom_generate=trie_beam_search,
        trie=TRIE,
        item_filter=FILTERS[rank],
        num_beams=4,
        num_return_sequences=4,
        max_new_tokens=TRIE.max_depth,
    ).tolist()
    return rows


def on_rank(rank: int, folder: str) -> None:
    """Three searches in which the first rank has nothing to ask for; a call that only one made would hang."""
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found: dict[str, Any] = {}
    plain = tiny_model("t5")
    calls = []
    hook = plain.register_forward_pre_hook(lambda *_: calls.append(dist.all_reduce(torch.ones(1))))
    found["t5"] = by_beam_search(plain, rank, synced_gpus=True, scope="vocab")
    found["calls"] = len(calls)
    hook.remove()
    sharded: Any = tiny_model("llama", seed=1)
    for layer in sharded.model.layers:
        fsdp.fully_shard(layer)
    fsdp.fully_shard(sharded)
    sharded._is_fsdp_managed_module = True
    found["llama"] = by_beam_search(sharded, rank, synced_gpus=True)
    found["generate"] = by_generate(sharded, rank)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="this version of torch keeps FSDP2 elsewhere")
@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_ranks_with_different_numbers_of_steps(tmp_path: Path) -> None:
    mp.spawn(on_rank, args=(str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0]["calls"] == found[1]["calls"] > 1
    for rank in range(2):
        assert found[rank]["t5"] == by_beam_search(tiny_model("t5"), rank, scope="vocab")
        assert found[rank]["llama"] == by_beam_search(tiny_model("llama", seed=1), rank)
        assert found[rank]["generate"] == by_generate(tiny_model("llama", seed=1), rank)
    assert [len(items) for items in found[0]["llama"]] == [1]


def test_the_whole_model_gives_what_its_layers_and_head_give(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        for kind in ("llama", "gpt2", "t5"):
            for scope in ("trie", "vocab"):
                arguments: dict[str, Any] = {"scope": scope, "temperature": 2.0}
                whole = by_beam_search(tiny_model(kind), 1, synced_gpus=True, **arguments)
                assert whole == by_beam_search(tiny_model(kind), 1, **arguments)
    finally:
        dist.destroy_process_group()


def test_ranks_that_have_not_met_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch.distributed is not initialised"):
        by_beam_search(tiny_model("llama"), 1, synced_gpus=True)
