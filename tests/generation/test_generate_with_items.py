"""Text with items inside, forced tokens skipped, against ``generate`` with a ``TrieLogitsProcessor``."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from catalog_strategies import catalogs
from compiled_models import SOME_WAYS, compiled, still_compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import BEGIN, END, FIRST_TOKEN, PAD, TURN_END, VOCAB_SIZE, ScriptedModel, markov_logits, tiny_model
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    MistralConfig,
    MistralForCausalLM,
    SequenceBiasLogitsProcessor,
    StaticCache,
    StoppingCriteriaList,
)
from transformers.generation.streamers import BaseStreamer

from gentrie import TokenTrie
from gentrie.generation import TrieLogitsProcessor, generate_with_items
from gentrie.model.cache_names import cache_name
from gentrie.model.ragged_cache import RaggedCache

ROWS = [[20, 21, 22, 23, 24, 25], [20, 21, 30, 31, 32], [20, 23], [24], [25, 26, 27, 28], [24]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
SETTINGS: dict[str, Any] = {"max_new_tokens": 40, "eos_token_id": TURN_END, "pad_token_id": PAD, "do_sample": False}


def talkative(strength: float = 6.0) -> LogitsProcessorList:
    """Makes any model like to begin items."""
    return LogitsProcessorList([SequenceBiasLogitsProcessor({(BEGIN,): strength})])


def prompts(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Free text of 6 tokens, row i shortened by up to i of them."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(33, VOCAB_SIZE, (rows, 6), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, : row % 4] = 0
    return ids.masked_fill(mask == 0, PAD), mask


def plain(model: Any, trie: TokenTrie, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    constraint = {name: options[name] for name in ("unique", "item_filter") if name in options}
    rest = {name: value for name, value in options.items() if name not in constraint}
    processor = TrieLogitsProcessor(trie, begin_token_id=BEGIN, eos_token_id=TURN_END, **constraint)
    output: torch.Tensor = model.generate(
        ids, attention_mask=mask, logits_processor=[*talkative(), processor], **{**SETTINGS, **rest}
    )
    return output


def ours(model: Any, trie: TokenTrie, ids: torch.Tensor, mask: torch.Tensor, options: dict[str, Any]) -> Any:
    return generate_with_items(
        model,
        ids,
        trie=trie,
        begin_token_id=BEGIN,
        attention_mask=mask,
        logits_processor=talkative(),
        **{**SETTINGS, **options},
    )


# --- greedy text ---


@given(
    kind=st.sampled_from(["llama", "gpt2"]),
    seed=st.integers(0, 3),
    rows=catalogs(),
    num_prompts=st.sampled_from([1, 2, 4]),
    unique=st.sampled_from([False, True, "item"]),
    length=st.integers(1, 40),
)
@settings(max_examples=25)
def test_greedy_text_is_that_of_generate(
    kind: str, seed: int, rows: list[list[int]], num_prompts: int, unique: Any, length: int
) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    ids, mask = prompts(num_prompts, seed)
    model, options = tiny_model(kind, seed), {"unique": unique, "max_new_tokens": length}
    expected = plain(model, trie, ids, mask, options)
    assert torch.equal(ours(model, trie, ids, mask, options).sequences, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.4, "no_repeat_ngram_size": 3},
        {"bad_words_ids": [[21], [25]]},
        {"min_new_tokens": 30},
        {"forced_eos_token_id": TURN_END},
        {"item_filter": [[1], None, [0, 3], [4]]},
        {"renormalize_logits": True},
        {"prefix_allowed_tokens_fn": lambda row, ids: [t for t in range(VOCAB_SIZE) if t % 4 != row]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_processors_and_filters_are_honoured(options: dict[str, Any]) -> None:
    ids, mask = prompts(4)
    for seed in range(3):
        model = tiny_model("llama", seed)
        assert torch.equal(ours(model, TRIE, ids, mask, options).sequences, plain(model, TRIE, ids, mask, options))


def test_custom_generate_is_the_same_and_returns_what_generate_does() -> None:
    ids, mask = prompts(3)
    model = tiny_model("llama")
    arguments = {"attention_mask": mask, "logits_processor": talkative(), **SETTINGS}
    direct = generate_with_items(model, ids, trie=TRIE, begin_token_id=BEGIN, **arguments)
    output = model.generate(ids, custom_generate=generate_with_items, trie=TRIE, begin_token_id=BEGIN, **arguments)
    assert torch.equal(output, direct.sequences)
    for row, items in zip(output[:, ids.shape[1] :].tolist(), direct.items, strict=True):
        begins = [at for at, token in enumerate(row) if token == BEGIN]
        whole = [TRIE.resolve(row[at + 1 : row.index(END, at) + 1]) for at in begins if END in row[at:]]
        assert [item.tolist() for item in items] == [item.tolist() for item in whole]
    assert sum(map(len, direct.items)) > 6


def test_a_prompt_s_items_and_its_open_item_count() -> None:
    """Given items are closed under ``unique``, and a prompt may end inside an item, at a forced token even."""
    ids = torch.tensor(
        [
            [40, 41, BEGIN, 24, END, 42, BEGIN, 20, 21, 22],
            [BEGIN, 24, END, TURN_END, BEGIN, 25, 26, 27, 28, END],
            [40, BEGIN, 20, 23, END, BEGIN, 24, END, 42, BEGIN],
        ]
    )
    mask = torch.ones_like(ids)
    for seed in range(4):
        model = tiny_model("llama", seed)
        output = ours(model, TRIE, ids, mask, {"unique": True})
        assert torch.equal(output.sequences, plain(model, TRIE, ids, mask, {"unique": True}))
        assert output.items[0][0].tolist() == [0]
    with pytest.raises(ValueError, match=r"input_ids\[0\] ends inside an item, \[20, 20\]"):
        ours(model, TRIE, torch.tensor([[40, BEGIN, 20, 20]]), torch.ones(1, 4), {})


def test_sliding_windows_and_embedded_prompts() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MistralConfig(
        vocab_size=VOCAB_SIZE, num_key_value_heads=1, sliding_window=8, initializer_range=0.5, pad_token_id=PAD, **sizes
    )
    model = MistralForCausalLM(config).eval()
    ids, mask = prompts(4)
    expected = plain(model, TRIE, ids, mask, {})
    output = ours(model, TRIE, ids, mask, {})
    assert torch.equal(output.sequences, expected)
    assert output.stats.padded_slots == int((mask == 0).sum())

    model = tiny_model("llama", 2)
    embedded = {
        "inputs_embeds": model.get_input_embeddings()(ids),
        "attention_mask": mask,
        "logits_processor": talkative(),
        **SETTINGS,
    }
    output = generate_with_items(model, trie=TRIE, begin_token_id=BEGIN, **embedded)
    assert torch.equal(output.sequences, plain(model, TRIE, ids, mask, {})[:, ids.shape[1] :])


def test_holes_are_squeezed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    squeezed = []
    original = RaggedCache._squeeze
    monkeypatch.setattr(
        RaggedCache, "_squeeze", lambda self, longest: squeezed.append(longest) or original(self, longest)
    )
    monkeypatch.setattr("gentrie.model.ragged_cache._SPARE", 0)
    monkeypatch.setattr("gentrie.model.ragged_cache._SLACK", 0.1)
    ids, mask = prompts(4)
    for kind in ("llama", "gpt2"):
        model = tiny_model(kind)
        assert torch.equal(ours(model, TRIE, ids, mask, {}).sequences, plain(model, TRIE, ids, mask, {}))
    assert len(squeezed) > 2


def test_the_model_is_called_for_choices_only() -> None:
    ids, mask = prompts(1)
    calls = []
    model = tiny_model("llama")
    hook = model.register_forward_hook(lambda module, args, output: calls.append(output.logits.shape[1]))
    output = ours(model, TRIE, ids, mask, {"unique": True})
    hook.remove()
    stats, said = output.stats, output.sequences.shape[1] - ids.shape[1]
    assert calls == [1] * stats.model_calls
    assert stats.tokens_chosen == stats.model_calls
    assert stats.tokens_chosen + stats.tokens_forced == said
    assert stats.tokens_forced >= 15
    assert stats.padded_slots == 0
    assert stats.tokens_computed == output.sequences.shape[1] - 1


# --- sampling ---


@pytest.mark.parametrize("warpers", [{}, {"temperature": 2.0, "top_k": 4}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_samples_are_distributed_as_those_of_generate(warpers: dict[str, Any]) -> None:
    """Every continuation of five tokens, by enumeration, against how often it is drawn."""
    size, draws, length = 10, 2500, 5
    trie = TokenTrie.from_sequences(
        [[FIRST_TOKEN, 5, 6], [FIRST_TOKEN, 7, 8, 9], [5, 6]], vocab_size=size, end_token_id=END
    )
    model = tiny_model("llama", 1, size)
    prompt = torch.tensor([[8, 9, BEGIN]])
    options = {"pad_token_id": PAD, "eos_token_id": TURN_END, "top_k": 0, "temperature": 3.0, "max_new_tokens": length}
    options.update(warpers)
    probabilities = continuations(model, trie, prompt, length, options)
    assert sum(probabilities.values()) == pytest.approx(1, abs=1e-4)
    torch.manual_seed(0)
    output = generate_with_items(
        model, prompt, trie=trie, begin_token_id=BEGIN, do_sample=True, num_return_sequences=draws, **options
    )
    drawn: dict[tuple[int, ...], int] = {}
    for row in output.sequences[:, prompt.shape[1] :].tolist():
        drawn[tuple(row)] = drawn.get(tuple(row), 0) + 1
    assert drawn.keys() <= probabilities.keys()
    rare = sum(p for p in probabilities.values() if p * draws < 8) * draws
    often = {key: p * draws for key, p in probabilities.items() if p * draws >= 8}
    statistic = sum((drawn.get(key, 0) - mean) ** 2 / mean for key, mean in often.items())
    seldom = sum(count for key, count in drawn.items() if key not in often)
    statistic += (seldom - rare) ** 2 / max(rare, 1)
    freedom = len(often)
    assert freedom >= 5
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5


def continuations(
    model: Any, trie: TokenTrie, prompt: torch.Tensor, length: int, options: dict[str, Any]
) -> dict[tuple[int, ...], float]:
    """Probability of each continuation as ``generate`` would sample it: its own scores, one prefix after the other."""
    processor = TrieLogitsProcessor(trie, begin_token_id=BEGIN, eos_token_id=TURN_END)
    level: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        following: dict[tuple[int, ...], float] = {}
        for prefix, probability in level.items():
            if TURN_END in prefix:
                following[(*prefix, PAD)] = probability
                continue
            ids = torch.cat([prompt, torch.tensor([prefix], dtype=torch.int64)], dim=1)
            scores = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=[processor],
                do_sample=True,
                return_dict_in_generate=True,
                output_scores=True,
                **{**options, "max_new_tokens": 1},
            ).scores[0]
            for token, share in enumerate(scores.softmax(-1)[0].tolist()):
                if share > 0:
                    following[(*prefix, token)] = probability * share
        level = {prefix: p for prefix, p in following.items() if p > 1e-7}
    return level


def test_the_same_seed_gives_the_same_text() -> None:
    ids, mask = prompts(3)
    model, texts = tiny_model("gpt2"), []  # made first: that takes a seed of its own
    for _ in range(2):
        torch.manual_seed(5)
        texts.append(ours(model, TRIE, ids, mask, {"do_sample": True}).sequences)
    assert torch.equal(*texts)


# --- scores ---

SCORED = {"output_scores": True, "return_dict_in_generate": True}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4}, {"unique": True, "max_new_tokens": 13}], ids=str)
def test_token_scores_are_those_of_generate(kind: str, options: dict[str, Any]) -> None:
    """Greedy text: the transition scores of ``transformers``; forced tokens have 0."""
    ids, mask = prompts(4)
    for seed in range(2):
        model = tiny_model(kind, seed)
        expected: Any = plain(model, TRIE, ids, mask, {**options, **SCORED})
        theirs = model.compute_transition_scores(expected.sequences, expected.scores, normalize_logits=True)
        output = ours(model, TRIE, ids, mask, {**options, **SCORED})
        assert torch.equal(output.sequences, expected.sequences)
        check_sums(output, ids.shape[1])
        assert sum(int((scores == 0).sum()) for scores in output.token_scores) == output.stats.tokens_forced
        for scores, row in zip(output.token_scores, theirs.tolist(), strict=True):
            assert scores.dtype == np.float64
            assert scores.tolist() == pytest.approx(row[: scores.size], abs=1e-4)


def check_sums(output: Any, start: int) -> None:
    """As many scores as tokens, and for each item the sum of those between begin and end token."""
    for row, scores, sums, items in zip(
        output.sequences[:, start:].tolist(), output.token_scores, output.item_log_probs, output.items, strict=True
    ):
        assert all(token == PAD for token in row[scores.size :])
        begins = [at for at in range(scores.size) if row[at] == BEGIN and END in row[at : scores.size]]
        expected = [scores[at + 1 : row.index(END, at) + 1].sum() for at in begins]
        assert len(items) == len(expected)
        assert sums.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("warpers", [{}, {"temperature": 2.0, "top_k": 4}], ids=str)
def test_sampled_tokens_have_the_scores_of_their_distribution(warpers: dict[str, Any]) -> None:
    """Each prefix by itself, through ``generate`` with one more token."""
    ids, _ = prompts(1)
    model = tiny_model("llama", 2)
    options = {"do_sample": True, "top_k": 0, **warpers, **SCORED}
    torch.manual_seed(3)
    output = ours(model, TRIE, ids, torch.ones_like(ids), {**options, "max_new_tokens": 14})
    check_sums(output, ids.shape[1])
    (row,) = output.sequences
    assert output.token_scores[0].size >= 5
    for at, score in enumerate(output.token_scores[0], start=ids.shape[1]):
        prefix = row[None, :at]
        step: Any = plain(model, TRIE, prefix, torch.ones_like(prefix), {**options, "max_new_tokens": 1})
        assert score == pytest.approx(step.scores[0].log_softmax(-1)[0, row[at]].item(), abs=1e-4)


def test_an_item_begun_in_the_prompt_counts_from_there() -> None:
    """And nothing is scored unasked, through ``generate`` neither."""
    ids = torch.tensor([[40, 41, BEGIN, 20], [40, 41, 42, BEGIN]])
    model = tiny_model("llama")
    arguments = {"attention_mask": torch.ones_like(ids), "logits_processor": talkative(), **SETTINGS}
    output: Any = model.generate(
        ids, custom_generate=generate_with_items, trie=TRIE, begin_token_id=BEGIN, **arguments, **SCORED
    )
    for row, scores, sums in zip(output.sequences.tolist(), output.token_scores, output.item_log_probs, strict=True):
        assert sums[0] == pytest.approx(scores[: row.index(END) + 1 - 4].sum())
        assert sums[0] < 0
    unasked = ours(model, TRIE, ids, torch.ones_like(ids), {})
    assert torch.equal(unasked.sequences, output.sequences)
    assert unasked.token_scores is None
    assert unasked.item_log_probs is None


# --- where a text ends, and who is told ---


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[list[int]] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.given.append(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


def test_a_streamer_gets_what_generate_gives_it() -> None:
    ids, mask = prompts(1)
    model = tiny_model("llama", 3)
    streamed, expected = Recorder(), Recorder()
    plain(model, TRIE, ids, mask, {"streamer": expected})
    ours(model, TRIE, ids, mask, {"streamer": streamed})
    assert streamed.given == expected.given
    assert streamed.ended == 1
    with pytest.raises(ValueError, match="streamer: one row can be streamed, input_ids has 2"):
        ours(model, TRIE, *prompts(2), {"streamer": Recorder()})


@pytest.mark.parametrize("rows", [1, 3])
def test_stopping_criteria_are_asked_after_every_token(rows: int) -> None:
    ids, mask = prompts(rows)

    def seen(history: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return (history[:, ids.shape[1] :] == 22).any(dim=1)

    options = {"stopping_criteria": StoppingCriteriaList([seen])}
    stopped = 0
    for seed in range(4):
        model = tiny_model("llama", seed)
        output = ours(model, TRIE, ids, mask, options)
        expected = plain(model, TRIE, ids, mask, options)
        assert torch.equal(output.sequences, expected)
        stopped += int((output.sequences == 22).sum())
    assert stopped


# --- refusals ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 3}, "asks for beam_search"),
        ({"output_logits": True, "return_dict_in_generate": True}, "output_logits=True"),
        ({"use_cache": False}, "use_cache=False"),
        ({"cache_implementation": "static"}, "cache_implementation='static'"),
        ({"guidance_scale": 2.0}, "UnbatchedClassifierFreeGuidanceLogitsProcessor has to see every step"),
        ({"synced_gpus": True}, "synced_gpus=True"),
        ({"token_type_ids": torch.zeros(2, 6, dtype=torch.int64)}, "token_type_ids is not passed on"),
        ({"position_ids": torch.full((2, 6), 3)}, "position_ids other than those"),
        ({"eos_token_id": None, "unique": True}, "eos_token_id is missing"),
        ({"item_filter": [[1], [2], [3]]}, "item_filter has 3 entries, input_ids has 2 rows"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_honoured_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    ids, mask = prompts(2)
    model = tiny_model("gpt2" if "token_type_ids" in options else "llama")
    before = model.generation_config.eos_token_id
    if "eos_token_id" in options:
        model.generation_config.eos_token_id = None
    try:
        with pytest.raises(ValueError, match=message):
            ours(model, TRIE, ids, mask, options)
    finally:
        model.generation_config.eos_token_id = before


def test_models_and_caches_that_cannot_be_served_are_refused() -> None:
    ids, mask = prompts(1)
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        ours(tiny_model("t5"), TRIE, ids, mask, {})
    model = tiny_model("llama")
    name = cache_name(model.forward)
    with pytest.raises(ValueError, match=f"{name} is a StaticCache"):
        ours(model, TRIE, ids, mask, {name: StaticCache(model.config, max_cache_len=64)})
    cache = DynamicCache(config=model.config)
    model(ids[:, :2], **{name: cache}, use_cache=True)
    with pytest.raises(ValueError, match=f"{name} holds 2 tokens"):
        ours(model, TRIE, ids, mask, {name: cache})
    scripted = ScriptedModel(markov_logits(0), VOCAB_SIZE, TURN_END)
    with pytest.raises(ValueError, match="use_cache=False"):
        ours(scripted, TRIE, ids, mask, {})


@pytest.mark.parametrize("way", SOME_WAYS)
def test_a_compiled_model_runs_with_one_warning(way: str) -> None:
    """Whichever way it is compiled and called; and it stays compiled."""
    ids, mask = prompts(2)
    model = compiled(tiny_model("llama"), way)
    arguments = {"attention_mask": mask, "logits_processor": talkative(), **SETTINGS}
    expected = ours(tiny_model("llama"), TRIE, ids, mask, {}).sequences
    with pytest.warns(UserWarning, match="the compiled model runs uncompiled") as warned:
        output = ours(model, TRIE, ids, mask, {})
    assert sum("uncompiled" in str(entry.message) for entry in warned) == 1
    assert torch.equal(output.sequences, expected)
    assert still_compiled(model, ids)
    if way != "wrapper":  # whose `generate` is that of the model inside
        with pytest.warns(UserWarning, match="the compiled model runs uncompiled") as warned:
            through = model.generate(
                ids, custom_generate=generate_with_items, trie=TRIE, begin_token_id=BEGIN, **arguments
            )
        assert sum("uncompiled" in str(entry.message) for entry in warned) == 1
        assert torch.equal(through, expected)


def test_nothing_but_items_in_long_samples() -> None:
    ids, mask = prompts(4)
    for seed in range(3):
        torch.manual_seed(seed)
        output = ours(tiny_model("llama", seed), TRIE, ids, mask, {"do_sample": True, "unique": "item"})
        for items in output.items:
            given = list(itertools.chain.from_iterable(item.tolist() for item in items))
            assert max((given.count(item) for item in {0, 1, 2, 4} & set(given)), default=0) <= 1
