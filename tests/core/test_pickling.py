"""Tries and what is made of them go to spawned processes and are copied."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gentrie import ItemFilter, LiveCatalog, TokenTrie, prefix_allowed_tokens_fn

ROWS = [[5, 6], [5, 7], [8], [8], [9, 5]]
IDS = [10, 11, 12, 13, 13]


def build(**options: Any) -> TokenTrie:
    return TokenTrie.from_sequences(ROWS, vocab_size=40, end_token_id=4, item_ids=IDS, **options)


def again(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def test_a_trie_in_memory_is_copied():
    trie = build()
    other = again(trie)
    assert other is not trie
    assert other.fingerprint == trie.fingerprint
    assert other.metadata == trie.metadata
    assert other.items_below(0).tolist() == trie.items_below(0).tolist()
    assert again(other).fingerprint == trie.fingerprint
    assert copy.copy(trie) is copy.deepcopy(trie) is trie


def test_a_file_is_named_and_another_one_in_its_place_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "catalog.safetensors"
    trie = build()
    monkeypatch.chdir(tmp_path)
    trie.save(path.name, {"codebook": "v7"})
    saved, loaded = pickle.dumps(trie), pickle.dumps(TokenTrie.load(path.name))
    assert str(path).encode() not in saved  # the file holds more than this trie does
    assert str(path).encode() in loaded
    monkeypatch.chdir("/")
    assert pickle.loads(saved).metadata == {}
    assert pickle.loads(loaded).metadata == {"codebook": "v7"}
    unpickled = pickle.loads(loaded)
    TokenTrie.from_sequences([[1]], vocab_size=40).save(path)
    with pytest.raises(ValueError, match=f"catalog.safetensors holds the trie .*pickled is {trie.fingerprint}"):
        pickle.loads(loaded)
    assert again(unpickled).metadata == {"codebook": "v7"}  # copied, now that its file is another
    path.unlink()
    with pytest.raises(OSError, match=r"catalog\.safetensors"):
        pickle.loads(loaded)


def test_a_saved_trie_is_named(tmp_path: Path):
    trie = build()
    trie.save(tmp_path / "x")
    assert again(trie)._path == str(tmp_path / "x")
    shutil.rmtree(tmp_path)
    assert again(trie).fingerprint == trie.fingerprint


@pytest.mark.parametrize("denied", [[], [11, 13]])
def test_filters(denied: list[int]):
    trie = build()
    mask = np.array([True, False, True, True, True])
    made = ItemFilter.from_leaf_order(trie, mask, name="stock").deny(denied)
    other, same_trie = again((made, trie))
    assert other.trie is same_trie
    assert other.name == "stock"
    assert (other.num_items, other.num_sequences) == (made.num_items, made.num_sequences)
    assert other.items_below(0).tolist() == made.items_below(0).tolist()
    assert copy.deepcopy(made) is made


def test_a_version_goes_and_its_catalog_does_not():
    catalog = LiveCatalog(build(), filters={"some": [10, 12]})
    catalog.remove([12])
    now = again(catalog.current)
    assert now.number == 2
    assert now.filters["some"].items_below(0).tolist() == [10]
    assert now.allowed.trie is now.trie
    with pytest.raises(TypeError, match="current"):
        pickle.dumps(catalog)


RULES = [
    {"prompt_length": [2, 2], "item_filter": [[10, 12], None]},
    {"after": [20, 21], "item_filter": [10, 12], "on_dead": "mask"},
    {"begin_token_id": 20, "eos_token_id": [21, 22], "unique": True},
    {"prompt_length": 2},
]


@pytest.mark.parametrize("arguments", RULES, ids=["lengths", "after", "triggered", "length"])
@pytest.mark.parametrize("copied", [again, copy.deepcopy, copy.copy])
def test_processors(arguments: dict[str, Any], copied: Any):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from gentrie.generation import TrieLogitsProcessor

    trie = build()
    histories = torch.tensor([[20, 21, 8, 4], [20, 21, 5, 6], [20, 8, 4, 20], [20, 5, 20, 21]])
    processor = TrieLogitsProcessor(trie, **arguments)
    other = copied(processor)
    prefix_fn = copied(prefix_allowed_tokens_fn(trie, **arguments))
    for length in (2, 3, 4):
        scores = torch.randn(2, 40)
        ids = histories[:2, :length]
        assert torch.equal(other(ids, scores), processor(ids, scores))
        for row in range(2):
            expected = prefix_allowed_tokens_fn(trie, **arguments)(row, ids[row])
            assert prefix_fn(row, ids[row]) == expected


def collated(pipe: Any, collate: Any, processor: Any, allowed: Any) -> None:
    import torch

    batch = collate([{"prompt_ids": [20], "response_ids": [5, 7, 4]}])
    masked = processor(batch["input_ids"][:, :2], torch.zeros(1, 40))
    pipe.send((batch["states"].tolist(), torch.isfinite(masked[0]).nonzero().flatten().tolist(), allowed.num_items))
    pipe.close()


@pytest.mark.slow
def test_workers_that_are_not_forked(tmp_path: Path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from gentrie.generation import TrieLogitsProcessor
    from gentrie.training import ItemCollator

    trie = build()
    trie.save(tmp_path / "catalog.safetensors")
    trie = TokenTrie.load(tmp_path / "catalog.safetensors")
    given = (
        ItemCollator(trie, pad_token_id=0),
        TrieLogitsProcessor(trie, prompt_length=1, item_filter=[10, 12]),
        ItemFilter.from_item_ids(trie, [10, 12]),
    )
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    worker = context.Process(target=collated, args=(theirs, *given))
    worker.start()
    theirs.close()
    assert mine.recv() == ([[-2, *trie_states(trie, [5, 7, 4])]], [6], 2)
    worker.join()
    assert worker.exitcode == 0


def trie_states(trie: TokenTrie, tokens: list[int]) -> list[int]:
    return [trie.walk(tokens[:length]) for length in range(len(tokens))]
