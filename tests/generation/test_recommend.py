"""Many prompts: order, resumption, processes."""

from __future__ import annotations

import errno
import functools
import importlib.util
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import BEGIN, END, PAD, TURN_END, VOCAB_SIZE, tiny_model

from gentrie import TokenTrie
from gentrie.generation import (
    Recommendation,
    RecommendationStore,
    TrieLogitsProcessor,
    beam_rollouts,
    best_first_search,
    generate_with_items,
    recommend,
    sample_items,
)
from gentrie.generation.beam_search import beam_search
from gentrie.generation.custom_generate import trie_beam_search

ROWS = [[20, 21, 22], [20, 21, 30, 31], [20, 23], [24], [25, 26], [24]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = [[33] * length + [34 + length % 3] for length in (1, 5, 2, 7, 3, 1, 6)]
SEARCH = functools.partial(best_first_search, tiny_model("llama"), trie=TRIE, num_results=3)


class Recorder:
    """Searches, counts, and breaks off after some batches."""

    def __init__(self, batches: int = 100) -> None:
        self.lengths: list[list[int]] = []
        self._batches = batches

    def __call__(self, input_ids: torch.Tensor, *, attention_mask: torch.Tensor) -> Any:
        if len(self.lengths) == self._batches:
            raise KeyboardInterrupt
        self.lengths.append(attention_mask.sum(1).tolist())
        return SEARCH(input_ids, attention_mask=attention_mask)


def one_by_one() -> list[list[list[int]]]:
    results = [SEARCH(torch.tensor([prompt])) for prompt in PROMPTS]
    return [[item.tolist() for item in result.item_ids[0]] for result in results]


def test_results_in_the_order_of_the_prompts_and_batches_by_length() -> None:
    search = Recorder()
    found = recommend(PROMPTS, search, batch_size=3, progress=False)
    assert [one.item_ids for one in found] == one_by_one()
    assert search.lengths == [[8, 7, 6], [4, 3, 2], [2]]
    assert all(one.scores == sorted(one.scores, reverse=True) and len(one.scores) == 3 for one in found)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        recommend(PROMPTS, Recorder(2), batch_size=2, folder=tmp_path / "new", progress=False)
    part = tmp_path / "new" / "part-0.jsonl"
    part.write_bytes(part.read_bytes() + b'{"prompt": 0, "item_')  # a write that was cut off
    search = Recorder()
    found = recommend(PROMPTS, search, batch_size=2, folder=tmp_path / "new", progress=False)
    assert search.lengths == [[3, 2], [2]]
    assert [one.item_ids for one in found] == one_by_one()
    again = Recorder()
    assert recommend(PROMPTS, again, folder=tmp_path / "new", progress=False) == found
    assert again.lengths == []
    with pytest.raises(ValueError, match="holds results of other prompts"):
        recommend(PROMPTS[1:], again, folder=tmp_path / "new", progress=False)
    with pytest.raises(ValueError, match=r"under another label.*'label': 'ten beams'"):
        recommend(PROMPTS, again, folder=tmp_path / "new", label="ten beams", progress=False)
    store = RecommendationStore(tmp_path / "new", PROMPTS)
    assert store.read() == dict(enumerate(found))


@pytest.mark.parametrize("begun", [False, True])
def test_a_write_that_failed_is_replaced_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool
) -> None:
    one, two = (Recommendation([[number]], [0.5]) for number in (1, 2))
    store = RecommendationStore(tmp_path, PROMPTS)
    before = {0: one} if begun else {}
    if begun:
        store.write(before)

    def full(_: int) -> None:
        part = tmp_path / "part-0.jsonl"
        os.truncate(part, part.stat().st_size - 9)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            store.write({1: one, 2: one})
    read = RecommendationStore(tmp_path, PROMPTS).read
    assert read() == {**before, 1: one}
    store.write({1: two, 2: two})
    store.write({3: one})
    assert read() == {**before, 1: two, 2: two, 3: one}


def test_stores_that_write_at_the_same_time(tmp_path: Path) -> None:
    one = Recommendation([[1]], [0.5])
    stores = [RecommendationStore(tmp_path, PROMPTS) for _ in range(3)]
    for number, store in enumerate([*stores, *stores]):
        store.write({number: one})
    assert stores[0].read() == dict.fromkeys(range(6), one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0.1.jsonl", "part-0.2.jsonl", "part-0.jsonl"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "line 2 of .*part-0.jsonl is not a JSON object"),
        ("[1]", "line 2 of .*part-0.jsonl is not a JSON object"),
        ('{"prompt": 1}', "line 2 of .*part-0.jsonl holds no recommendation"),
        ('{"item_ids": [], "scores": []}', "line 2 of .*part-0.jsonl holds no recommendation"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, line: str, message: str) -> None:
    store = RecommendationStore(tmp_path, PROMPTS)
    store.write({})
    with open(tmp_path / "part-0.jsonl", "a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(ValueError, match=message):
        store.read()


MODEL: Any = tiny_model("llama")
GENERATE = {
    "max_new_tokens": TRIE.max_depth,
    "num_beams": 3,
    "num_return_sequences": 3,
    "return_dict_in_generate": True,
}
SEARCHES = {
    "best_first_search": SEARCH,
    "beam_search": functools.partial(beam_search, MODEL, trie=TRIE, beam_width=3),
    "custom_generate": functools.partial(MODEL.generate, custom_generate=trie_beam_search, trie=TRIE, **GENERATE),
    "beam_rollouts": functools.partial(beam_rollouts, MODEL, trie=TRIE, num_samples=3),
    "sample_items": functools.partial(sample_items, MODEL, trie=TRIE, num_samples=5, seed=1),  # all of them
}


@pytest.mark.parametrize("name", SEARCHES)
def test_every_search_serves(name: str) -> None:
    search = SEARCHES[name]
    found = recommend(PROMPTS, search, batch_size=3, progress=False)
    for prompt, one in zip(PROMPTS, found, strict=True):
        alone = search(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64))
        alone = alone.items if name == "custom_generate" else alone
        scores = alone.log_probs if hasattr(alone, "log_probs") else alone.sequences_scores
        expected = {tuple(items.tolist()): score for items, score in zip(alone.item_ids[0], scores[0], strict=True)}
        assert {tuple(items): score for items, score in zip(one.item_ids, one.scores, strict=True)} == pytest.approx(
            expected, abs=1e-5
        )
        assert len(one.item_ids) == len(expected) == (5 if name == "sample_items" else 3)
        assert [TRIE.resolve(tokens).tolist() for tokens in one.sequences] == one.item_ids
        for tokens, scores, total in zip(one.sequences, one.token_scores, one.scores, strict=True):
            over = len(tokens) if name in ("beam_search", "custom_generate") else 1  # their length penalty
            assert len(scores) == len(tokens)
            assert sum(scores) / over == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("scored", [False, True])
def test_text_with_items_has_items_and_their_scores_on_request(scored: bool) -> None:
    settings: dict[str, Any] = {"begin_token_id": BEGIN, "eos_token_id": TURN_END, "pad_token_id": PAD}
    prompts = [[*prompt, BEGIN] for prompt in PROMPTS]  # an item follows at once
    settings |= {"max_new_tokens": TRIE.max_depth, "output_scores": scored}
    search = functools.partial(generate_with_items, MODEL, trie=TRIE, **settings)
    found = recommend(prompts, search, batch_size=3, progress=False)
    for prompt, one in zip(prompts, found, strict=True):
        processor = TrieLogitsProcessor(TRIE, begin_token_id=BEGIN, eos_token_id=TURN_END)
        said = MODEL.generate(
            torch.tensor([prompt]),
            logits_processor=[processor],
            max_new_tokens=TRIE.max_depth,
            eos_token_id=TURN_END,
            pad_token_id=PAD,
        )[0, len(prompt) :].tolist()
        assert one.item_ids[0] == TRIE.resolve(said[: said.index(END) + 1]).tolist()
        assert len(one.scores) == (len(one.item_ids) if scored else 0)
        assert all(score < 0 for score in one.scores)
        assert one.sequences == one.token_scores == []


def test_what_is_no_search_is_refused() -> None:
    with pytest.raises(TypeError, match="search returned a Tensor, without item_ids"):
        recommend(PROMPTS, lambda ids, attention_mask: ids, progress=False)
    with pytest.raises(ValueError, match="search returned 1 results for 7 prompts"):
        recommend(PROMPTS, lambda ids, attention_mask: SEARCH(ids[:1]), progress=False)


def _process(rank: int, folder: str, port: int | None, queue: Any) -> None:
    torch.set_num_threads(1)
    if port is None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    else:  # what `accelerate launch` sets
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        from accelerate import PartialState

        assert PartialState(cpu=True).num_processes == 2
    search = Recorder()
    found = recommend(PROMPTS, search, batch_size=2, folder=f"{folder}/results", progress=False)
    queue.put((rank, len(search.lengths), [one.item_ids for one in found]))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_share_the_batches_and_return_everything(tmp_path: Path) -> None:
    port = None
    if importlib.util.find_spec("accelerate") is not None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(rank, str(tmp_path), port, queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    answers = sorted(queue.get(timeout=120) for _ in workers)
    for worker in workers:
        worker.join()
    assert [(rank, batches) for rank, batches, _ in answers] == [(0, 2), (1, 2)]
    assert all(found == one_by_one() for _, _, found in answers)


def test_bad_prompts_are_named() -> None:
    with pytest.raises(ValueError, match=r"prompts\[1\] is empty"):
        recommend([[3], []], Recorder(), progress=False)
    with pytest.raises(ValueError, match="batch_size=0"):
        recommend([[3]], Recorder(), batch_size=0, progress=False)
