"""Many prompts: order, resumption, processes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import END, VOCAB_SIZE, tiny_model

from gentrie import TokenTrie
from gentrie.generation import best_first_search, recommend

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


def _process(rank: int, folder: str, queue: Any) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    search = Recorder()
    found = recommend(PROMPTS, search, batch_size=2, folder=f"{folder}/results", progress=False)
    queue.put((rank, len(search.lengths), [one.item_ids for one in found]))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_share_the_batches_and_return_everything(tmp_path: Path) -> None:
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=_process, args=(rank, str(tmp_path), queue)) for rank in range(2)]
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
