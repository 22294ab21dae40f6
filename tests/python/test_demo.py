"""The demonstration: what its lists hold, and that its figures are those of the lists."""

from __future__ import annotations

import dataclasses
import re
import sys
from functools import cache
from io import StringIO
from typing import Any

import pytest
import torch
from rich.console import Console

from gentrie import TokenTrie
from gentrie.demo import DemoResult, ListStatistics, render, run
from gentrie.demo._lists import ListWriter, Way

BEGIN, END, PAD, EOS = 20, 21, 0, 1
WAYS = ["greedy, free", "greedy, constrained", "sampled, free", "sampled, constrained"]


@cache
def result() -> DemoResult:
    return run(items=100, users=16, epochs=8)


def test_constrained_lists_hold_only_the_catalog_and_nothing_twice() -> None:
    assert list(result().ways) == WAYS
    for name in ("greedy, constrained", "sampled, constrained"):
        way = result().ways[name]
        assert way.items > 0
        assert way.out_of_catalog == way.repeats == 0


def test_the_model_recommends_better_than_popularity_and_errs_when_free() -> None:
    ways = result().ways
    assert ways["greedy, constrained"].hit_rate > result().popular_hit_rate
    assert ways["sampled, free"].out_of_catalog + ways["sampled, free"].repeats > 0
    assert result().training_loss < 2


def test_result_describes_the_run() -> None:
    found = result()
    assert (found.num_items, found.num_users, found.num_training_users) == (100, 16, 100)
    assert found.num_sequences <= 100
    assert 4 < found.tokens_per_item < 20
    assert min(found.trie_bytes, found.build_seconds, found.num_parameters, found.training_seconds) > 0
    for way in found.ways.values():
        assert way.lists == 16
        assert way.items <= 16 * found.list_length
        assert way.tokens_per_second == way.tokens / way.seconds > 0
    assert list(found.examples) == WAYS
    for name in ("greedy, constrained", "sampled, constrained"):
        assert all(in_catalog for _, in_catalog in found.examples[name])


def test_result_is_printed_as_tables() -> None:
    text = StringIO()
    Console(file=text, width=150).print(render(result()))
    for expected in (*WAYS, "outside the catalog", "hit rate", "tokens/s", "trie of"):
        assert expected in text.getvalue()
    constrained = next(line for line in text.getvalue().splitlines() if "sampled, constrained" in line)
    assert "0.0%" in constrained


def test_runs_are_repeatable_and_leave_torch_as_it_was() -> None:
    torch.manual_seed(5)
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = (_without_timings(run(items=60, users=4, epochs=1, seed=2)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == num_threads


def test_progress_is_shown_on_request() -> None:
    text = StringIO()
    run(items=60, users=4, epochs=1, console=Console(file=text, force_terminal=True, width=100))
    assert re.search(r"train.*100%", text.getvalue())
    assert re.search(r"recommend.*100%", text.getvalue())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": 49}, "items must be at least 50, got 49"),
        ({"items": 20_000}, r"num_items must be in \[1, 11726\] for 'steam', got 20000"),
        ({"users": 0}, "users must be at least 1, got 0"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seed": -1}, "seed must not be negative, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(**arguments)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"gentrie\[demo\]"):
        run()


# ------------------------------------------------------------------------------------- lists, by hand


class ScriptedModel:
    """Continues each prompt with what is written down for it."""

    def __init__(self, scripts: list[list[int]]) -> None:
        self.scripts = scripts
        self.arguments: dict[str, Any] = {}

    def generate(self, **arguments: Any) -> torch.Tensor:
        self.arguments = arguments
        return torch.cat([arguments["input_ids"], torch.tensor(self.scripts)], dim=1)


def writer(scripts: list[list[int]]) -> tuple[ListWriter, ScriptedModel]:
    trie = TokenTrie.from_sequences([[5, 6], [5, 7], [8]], vocab_size=30, end_token_id=END)
    model = ScriptedModel(scripts)
    return (
        ListWriter(model, trie, begin_id=BEGIN, end_id=END, pad_id=PAD, eos_id=EOS, list_length=2),  # type: ignore[arg-type]
        model,
    )


def test_items_are_what_begins_and_ends() -> None:
    lists, _ = writer([])
    tokens = [3, END, BEGIN, 5, 6, END, 4, BEGIN, END, BEGIN, 8, BEGIN, END, 9, BEGIN, 5]
    assert lists.items(tokens) == [(5, 6, END), (END,), (8, BEGIN, END)]
    assert [lists.in_catalog(item) for item in lists.items(tokens)] == [True, False, False]


def test_lists_end_with_the_response_or_when_they_are_full() -> None:
    lists, model = writer([[BEGIN, 8, END, EOS, PAD, PAD, PAD], [BEGIN, 8, END, BEGIN, 5, 6, END]])
    written = lists.write([[9], [9, 9]], Way("scripted", sample=False, processor=None))
    assert written == [[BEGIN, 8, END, EOS], [BEGIN, 8, END, BEGIN, 5, 6, END]]
    assert model.arguments["input_ids"].tolist() == [[PAD, 9], [9, 9]]
    assert model.arguments["attention_mask"].tolist() == [[0, 1], [1, 1]]
    assert model.arguments["logits_processor"] == []
    full = model.arguments["stopping_criteria"][0](
        torch.tensor([[9, END, END, 4], [END, END, END, END]]), torch.zeros(2, 30)
    )
    assert full.tolist() == [False, True]


def test_statistics_count_what_lists_hold() -> None:
    lists, _ = writer([])
    histories = [[BEGIN, 8, END], [BEGIN, 8, END]]
    written = [
        [BEGIN, 5, 6, END, BEGIN, 8, END],  # the second one was bought before
        [BEGIN, 9, END, BEGIN, 9, END, BEGIN, 5],  # neither is in the catalog, one is a repeat, one is open
    ]
    assert lists.statistics(histories, [(5, 6, END), (5, 7, END)], written, 2.0) == ListStatistics(
        lists=2,
        items=4,
        unfinished=1,
        out_of_catalog=0.5,
        repeats=0.5,
        hit_rate=0.5,
        tokens=15,
        seconds=2.0,
    )


def _without_timings(found: DemoResult) -> dict[str, Any]:
    fields = dataclasses.asdict(found)
    for way in fields["ways"].values():
        del way["seconds"]
    return {name: value for name, value in fields.items() if not name.endswith("_seconds")}
