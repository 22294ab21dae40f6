"""Table A2: its baselines against gentrie, its scripted answers, its harness, and a short run."""

from __future__ import annotations

import importlib
import io
import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from transformers import PrefixConstrainedLogitsProcessor

import gentrie
from gentrie.bench import measure, models
from gentrie.bench.baselines.dict_trie import DictTrie
from gentrie.bench.baselines.published import PublishedLookup, PublishedProcessor
from gentrie.bench.baselines.transformers_prefix import DictTriePrefix
from gentrie.bench.catalogs import TokenisedCatalog, tokenised_catalogs
from gentrie.bench.harness import Spread, compare, in_turns, write_json
from gentrie.bench.responses import OUTER_TOKENS, ControlTokens, ScriptProcessor, write_answers
from gentrie.bench.table_a2 import GENTRIE, METHODS, PAPER, SKIPPING, UNCONSTRAINED, Settings
from gentrie.bench.table_a2_report import beam_table, table
from gentrie.bench.table_a2_run import run, write
from gentrie.generation import TrieLogitsProcessor

VOCAB_SIZE = 12
CONTROL = ControlTokens(begin=8, end=9, eos=10, decoy=11)

titles_of_a_catalog = st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple), min_size=1, max_size=12)


@st.composite
def catalogs_and_histories(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], list[int]]:
    """A catalog, repeats among its titles, and a history: finished turns, and one in which no item is given
    more often than it is listed, ending anywhere inside an item or outside."""
    titles = draw(titles_of_a_catalog)
    outer = st.lists(st.integers(0, 7), max_size=2)
    history: list[int] = []
    for last_turn in (False, True):
        order = draw(st.permutations(titles))
        for title in order[: draw(st.integers(0, len(titles) - 1))]:
            history += [*draw(outer), CONTROL.begin, *title, CONTROL.end]
        if not last_turn:
            history += [*draw(outer), CONTROL.eos]
        elif draw(st.booleans()):
            next_title = order[-1]
            history += [*draw(outer), CONTROL.begin, *next_title[: draw(st.integers(0, len(next_title)))]]
    return titles, [*history, *draw(outer)] if not _inside(history) else history


def _inside(history: list[int]) -> bool:
    controls = [token for token in history if token in (CONTROL.begin, CONTROL.end, CONTROL.eos)]
    return bool(controls) and controls[-1] == CONTROL.begin


def _trie(titles: list[tuple[int, ...]]) -> gentrie.TokenTrie:
    return gentrie.TokenTrie.from_sequences(
        [list(title) for title in titles], vocab_size=VOCAB_SIZE, end_token_id=CONTROL.end
    )


def _allowed(processor: measure.Processor, history: list[int]) -> list[int]:
    scores = processor(torch.tensor([history], dtype=torch.int64), torch.zeros(1, VOCAB_SIZE))
    return torch.isfinite(scores[0]).nonzero().flatten().tolist()


@given(catalogs_and_histories())
def test_published_approach_allows_what_gentrie_allows(
    drawn: tuple[list[tuple[int, ...]], list[int]],
) -> None:
    titles, history = drawn
    lookup = PublishedLookup(
        DictTrie([*title, CONTROL.end] for title in titles),
        begin_token_id=CONTROL.begin,
        end_token_id=CONTROL.end,
        eos_token_id=CONTROL.eos,
    )
    ours = TrieLogitsProcessor(_trie(titles), begin_token_id=CONTROL.begin, eos_token_id=CONTROL.eos, unique="item")
    history = [0, *history]
    assert _allowed(PublishedProcessor(lookup), history) == _allowed(ours, history)


@given(catalogs_and_histories())
def test_transformers_prefix_allows_what_gentrie_allows(
    drawn: tuple[list[tuple[int, ...]], list[int]],
) -> None:
    titles, history = drawn
    lookup = DictTriePrefix(
        DictTrie([*title, CONTROL.end] for title in titles),
        begin_token_id=CONTROL.begin,
        end_token_id=CONTROL.end,
        eos_token_id=CONTROL.eos,
        vocab_size=VOCAB_SIZE,
    )
    ours = TrieLogitsProcessor(_trie(titles), begin_token_id=CONTROL.begin, eos_token_id=CONTROL.eos)
    history = [0, *history]
    assert _allowed(PrefixConstrainedLogitsProcessor(lookup, 1), history) == _allowed(ours, history)


def test_published_approach_raises_where_nothing_is_left() -> None:
    lookup = PublishedLookup(
        DictTrie([[1, CONTROL.end]]),
        begin_token_id=CONTROL.begin,
        end_token_id=CONTROL.end,
        eos_token_id=CONTROL.eos,
    )
    history = torch.tensor([[CONTROL.begin, 1, CONTROL.end, CONTROL.begin]])
    with pytest.raises(ValueError, match="row 0"):
        PublishedProcessor(lookup)(history, torch.zeros(1, VOCAB_SIZE))


# --- scripted answers ---


def test_answers_have_the_paper_s_counts_and_distinct_titles() -> None:
    titles = [[n % 5, n // 5] for n in range(15)] * 2
    answers = write_answers(titles, CONTROL, answers=3, prompt_tokens=20, seed=1)
    for answer in answers:
        assert len(answer.prompt) == 20
        assert (~answer.inside).sum() == OUTER_TOKENS
        said = [tuple(answer.tokens[answer.item == number].tolist()) for number in range(10)]
        assert len(set(said)) == 10
        assert {title[:-1] for title in said} <= {tuple(title) for title in titles}
        assert {title[-1] for title in said} == {CONTROL.end}
        assert (answer.tokens == CONTROL.begin).sum() == 10
    assert PAPER["steam"].tokens_outside == OUTER_TOKENS * 128


def test_script_leads_to_the_answer_only_if_the_decoy_is_removed() -> None:
    titles = [[n % 5, n // 5] for n in range(15)]
    (answer,) = write_answers(titles, CONTROL, answers=1, prompt_tokens=20, seed=1)
    free = ScriptProcessor(answer, CONTROL)
    constrained = ScriptProcessor(answer, CONTROL)
    for step, token in enumerate(answer.tokens):
        history = torch.from_numpy(np.concatenate([answer.prompt, answer.tokens[:step]]))[None]
        assert free(history, torch.zeros(1, VOCAB_SIZE)).argmax() == answer.unconstrained(CONTROL)[step]
        scores = constrained(history, torch.zeros(1, VOCAB_SIZE))
        scores[0, CONTROL.decoy] = -torch.inf
        assert scores.argmax() == token


def test_control_tokens_are_in_no_title() -> None:
    assert ControlTokens.unused(np.array([0, 6, 3]), 8) == ControlTokens(7, 5, 4, 2)
    with pytest.raises(ValueError, match="vocab_size: 6 leaves 3 ids"):
        ControlTokens.unused(np.arange(3), 6)


# --- the run ---


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Two repetitions of one answer, over a tiny vocabulary and a made-up catalog."""
    shape = {**models.MODELS["small"], "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16}
    monkeypatch.setitem(models.MODELS, "small", shape)
    rows = np.array([[n % 7, 7 + n % 3, 10 + n // 7] for n in range(200)], dtype=np.int32)
    catalog = TokenisedCatalog("steam", rows.ravel(), np.arange(0, 601, 3), vocab_size=48)
    monkeypatch.setattr(measure, "tokenised_catalogs", lambda *_, **__: [catalog])
    return Settings(("steam",), answers=1, repetitions=2, warmup=1, prompt_tokens=16, beams=3)


def rendered(shown: Table) -> str:
    console = Console(width=400, record=True, file=io.StringIO())
    console.print(shown)
    return console.export_text()


def test_a_run_gives_every_figure_and_writes_json_and_plot(tiny: Settings, tmp_path) -> None:
    result = run(tiny)
    catalog = result.catalogs["steam"]
    assert (catalog.items, catalog.tokens_per_item) == (200, 4.0)
    assert (catalog.tokens_inside, catalog.tokens_outside) == (40, 59)
    # Titles are [n % 7, 7 + n % 3, 10 + n // 7]: a choice of each token but the end token.
    assert catalog.tokens_branching == 30
    assert catalog.bound == pytest.approx(99 / 89)
    assert tuple(catalog.methods) == METHODS
    for method, figures in catalog.methods.items():
        assert len(figures.tokens_per_second.rounds) == 2
        if method not in (UNCONSTRAINED, SKIPPING):
            assert figures.call_ms_inside is not None
            assert figures.lookup_ms_last_item is not None
    times = catalog.methods[SKIPPING].speedup.rounds
    assert catalog.share_of_bound.rounds == pytest.approx([value / (99 / 89) for value in times])
    shown = rendered(table(result))
    assert shown.count("steam") == 1
    assert "constrained, forced runs skipped" in shown
    assert f"1.11 times, {catalog.share_of_bound.median:.0%} reached" in shown

    assert tuple(catalog.beam_search) == ("trie", "vocab")
    for beams in catalog.beam_search.values():
        assert (beams.prompts, beams.beams, beams.same_items, beams.padded_slots) == (2, 3, 1.0, 0)
        assert len(beams.speedup.rounds) == 2
        assert (beams.generate_calls, beams.generate_rows) == (4, 24)  # two prompts of three beams, four steps
    assert catalog.beam_search["trie"].rows < catalog.beam_search["vocab"].rows <= 24
    assert "2 x 3" in rendered(beam_table(result))

    figures, plot = write(result, tmp_path / "results")
    written = json.loads(figures.read_text())
    assert written["catalogs"]["steam"]["methods"][GENTRIE]["tokens_per_second"]["rounds"]
    assert written["catalogs"]["steam"]["bound"] == pytest.approx(99 / 89)
    assert written["catalogs"]["steam"]["beam_search"]["vocab"]["speedup"]["median"] > 0
    assert written["circumstances"]["versions"]["torch"]
    assert len(written["cuts"]) == 3
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in figures.parent.iterdir()) == sorted((figures.name, plot.name))


def test_a_written_run_gives_the_figures_that_are_promised(
    tiny: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(benchmarks)
    rows = importlib.import_module("_table_a2")
    result = run(tiny)
    found = {figure.name: figure for figure in rows.saved_rows(write(result, tmp_path)[0])}
    speed = found["text with items, steam (small, cpu): speed over free text"]
    share = found["text with items, steam (small, cpu): share of the bound"]
    assert (speed.goal, speed.at_least, share.goal, share.at_least) == (1, True, 75, True)
    catalog = result.catalogs["steam"]
    assert speed.median == catalog.methods[SKIPPING].speedup.median
    assert share.median == pytest.approx(100 * catalog.share_of_bound.median)
    slower = found["Table A2, steam (small, cpu): gentrie, slower than free by"]
    assert slower.low == pytest.approx(100 * (1 - catalog.methods[GENTRIE].speedup.high))
    beams = found["Table A2, steam (small, cpu): beam search, scope=vocab, generate over ours"]
    assert beams.median == catalog.beam_search["vocab"].speedup.median
    assert len(found) == 2 + 3 + 2


def test_a_method_with_a_wrong_mask_is_found_out(tiny: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PublishedProcessor, "__call__", lambda self, input_ids, scores: scores)
    with pytest.raises(RuntimeError, match="published approach: token 5 of an answer"):
        run(tiny)


def test_settings_are_checked_and_cuts_are_named() -> None:
    assert Settings().cuts() == []
    assert any(cut.startswith("answers: ") for cut in Settings().quick().cuts())
    with pytest.raises(ValueError, match="repetitions must be at least 1, got 0"):
        replace(Settings(), repetitions=0)
    with pytest.raises(ValueError, match="beams must not be negative, got -1"):
        replace(Settings(), beams=-1)
    with pytest.raises(ValueError, match="'books' is not one of steam, movies, toys"):
        Settings(catalogs=("books",))
    with pytest.raises(ValueError, match="'gpt' is not one of small, llama-3-8b"):
        models.build_model("gpt", torch.device("cpu"))


def test_an_absent_real_catalog_is_left_out_with_a_warning(tmp_path, caplog) -> None:
    with caplog.at_level(logging.WARNING, logger="gentrie"):
        assert tokenised_catalogs((), 64, tmp_path / "catalog.jsonl") == []
    assert "is absent" in caplog.text


# --- the harness ---


def test_in_turns_runs_every_name_once_a_round_and_shifts() -> None:
    turns = list(in_turns("abc", 4))
    assert [name for _, name in turns] == list("abcbcacababc")
    assert [number for number, _ in turns] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_compare_counts_calls_and_keeps_rounds() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1

    taken = compare({"a": lambda: count("a"), "b": lambda: count("b")}, rounds=7, number=3, warmup=2)
    assert calls == {"a": 27, "b": 27}
    assert [len(spread.rounds) for spread in taken.values()] == [7, 7]


def test_spread_and_its_json(tmp_path) -> None:
    spread = Spread.of([3.0, 1.0, 5.0])
    assert (spread.median, spread.mean, spread.low, spread.high) == (3.0, 3.0, 1.0, 5.0)
    assert spread.format(1, 10) == "30.0 (10.0-50.0)"
    write_json(tmp_path / "a.json", {"figure": spread})
    assert json.loads((tmp_path / "a.json").read_text())["figure"]["rounds"] == [3.0, 1.0, 5.0]


def test_a_result_that_cannot_be_written_leaves_the_old_file(tmp_path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"old": 1})
    with pytest.raises(TypeError, match="cannot write a set"):
        write_json(target, {"new": {1}})
    with pytest.raises(OSError, match="absent"):
        write_json(tmp_path / "absent" / "a.json", {})
    assert json.loads(target.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
