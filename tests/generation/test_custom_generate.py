"""``trie_beam_search`` inside ``generate`` against ``generate`` with a TrieLogitsProcessor."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from catalog_strategies import catalogs
from compiled_models import WAYS, compiled, still_compiled
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import END, PAD, VOCAB_SIZE, tiny_model
from transformers import StoppingCriteria, StoppingCriteriaList, TemperatureLogitsWarper

from gentrie import TokenTrie
from gentrie.generation import TrieBeamOutput, TrieLogitsProcessor, beam_search, trie_beam_search
from gentrie.model.cache_names import find_cache

TITLES = [[a, b, c, 20, 21, 22][: 4 + a % 3] for a in range(4, 9) for b in range(9, 13) for c in range(13, 17)]
TRIE = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
IDS = torch.tensor([[30, 31, 32, 33], [PAD, PAD, PAD, 34], [PAD, 35, 36, 37]])
MASK = (IDS != PAD).long()
OWN = ("item_filter", "item_scores", "alpha", "lookahead_scores")


def generate(*, kind: str = "llama", **arguments: Any) -> Any:
    model: Any = tiny_model(kind)
    settings = {"attention_mask": MASK, "num_beams": 4, "num_return_sequences": 3, "do_sample": False}
    if "inputs_embeds" not in arguments:
        settings["input_ids"] = IDS
    return model.generate(**{**settings, "max_new_tokens": TRIE.max_depth, **arguments})


def ours(**arguments: Any) -> Any:
    own = {name: arguments.pop(name) for name in OWN if name in arguments}
    return generate(custom_generate=trie_beam_search, trie=TRIE, **own, **arguments)


def items(sequences: torch.Tensor) -> list[list[int]]:
    """Rows up to their end token: beam search of transformers pads with that where the padding token is 0."""
    return [row[: row.index(END) + 1] for row in sequences.tolist()]


@pytest.mark.parametrize("renormalize", [True, False])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"length_penalty": 0.0},
        {"length_penalty": 2.0, "early_stopping": "never"},
        {"num_beams": 1, "num_return_sequences": 1},
        {"kind": "gpt2", "num_return_sequences": 1},
        {"kind": "t5"},
        {"kind": "t5", "length_penalty": 0.0, "num_beams": 2, "num_return_sequences": 2},
        {"eos_token_id": [END, 47]},
    ],
)
def test_the_rows_of_generate(renormalize: bool, arguments: dict[str, Any]) -> None:
    arguments = {"renormalize_logits": renormalize, **arguments}
    start = 1 if arguments.get("kind") == "t5" else IDS.shape[1]
    expected = generate(
        logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=start)],
        return_dict_in_generate=True,
        output_scores=True,
        **arguments,
    )
    assert items(ours(**arguments)) == items(expected.sequences)
    found = ours(return_dict_in_generate=True, **arguments)
    assert isinstance(found, TrieBeamOutput)
    if arguments.get("num_beams") != 1:  # greedy search has no scores of sequences
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
    assert found.items.num_found.tolist() == [arguments.get("num_return_sequences", 3)] * 3
    assert found.items.stats.rows < 3 * arguments.get("num_beams", 4) * TRIE.max_depth


@given(
    rows=catalogs(max_items=15),
    kind=st.sampled_from(["llama", "gpt2", "t5"]),
    beams=st.sampled_from([1, 1, 2, 5, 18]),
    renormalize=st.booleans(),
    length_penalty=st.sampled_from([0.0, 1.0, 2.0, -1.0]),
    early_stopping=st.sampled_from([False, "never"]),
)
@settings(max_examples=30)
def test_any_catalog_and_number_of_beams(
    rows: list[list[int]],
    kind: str,
    beams: int,
    renormalize: bool,
    length_penalty: float,
    early_stopping: Any,
) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    start = 1 if kind == "t5" else IDS.shape[1]
    arguments: dict[str, Any] = {
        "num_beams": beams,
        "num_return_sequences": beams,
        "renormalize_logits": renormalize,
        "max_new_tokens": trie.max_depth,
        "return_dict_in_generate": True,
    }
    if beams > 1:
        arguments |= {"length_penalty": length_penalty, "early_stopping": early_stopping}
    processor = TrieLogitsProcessor(trie, prompt_length=start)
    expected = generate(kind=kind, logits_processor=[processor], output_scores=True, **arguments)
    found = generate(kind=kind, custom_generate=trie_beam_search, trie=trie, **arguments)
    written = [item_of(row[start:].tolist(), trie) for row in found.sequences]
    if beams == 1:
        assert written == [item_of(row[start:].tolist(), trie) for row in expected.sequences]
        return
    theirs, own = expected.sequences_scores.view(3, beams), found.sequences_scores.view(3, beams)
    for prompt in range(3):
        real = int(found.items.num_found[prompt])
        torch.testing.assert_close(own[prompt, :real], theirs[prompt, :real], rtol=1e-4, atol=1e-4)
        assert (theirs[prompt, real:] < -1e6).all()  # what only fills up
        assert torch.isinf(own[prompt, real:]).all()
        assert all(written[prompt * beams : prompt * beams + real])


def item_of(row: list[int], trie: TokenTrie) -> list[int]:
    """Items of a row up to its end token; none where it only fills up."""
    return trie.resolve(row[: row.index(END) + 1]).tolist() if END in row else []


def test_prompts_as_embeddings_and_folded_temperature() -> None:
    model: Any = tiny_model("llama")
    embedded = ours(inputs_embeds=model.get_input_embeddings()(IDS))
    assert embedded.tolist() == ours()[:, IDS.shape[1] :].tolist()
    arguments: dict[str, Any] = {"renormalize_logits": True, "return_dict_in_generate": True}
    expected = generate(
        logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=IDS.shape[1]), TemperatureLogitsWarper(3.0)],
        output_scores=True,
        **arguments,
    )
    found = ours(logits_processor=[TemperatureLogitsWarper(3.0)], **arguments)
    assert items(found.sequences) == items(expected.sequences)
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)


def test_its_own_arguments_may_be_bound() -> None:
    bound = functools.partial(trie_beam_search, trie=TRIE, item_filter=range(20))
    assert generate(custom_generate=bound).tolist() == ours(item_filter=range(20)).tolist()


def test_missing_rows_are_padding_at_minus_infinity() -> None:
    found = ours(item_filter=[[0], [999], [1, 2]], return_dict_in_generate=True)
    assert len(found.sequences) == 9
    assert found.items.num_found.tolist() == [1, 0, 2]
    assert torch.isinf(found.sequences_scores).tolist() == [False, True, True, True, True, True, False, False, True]
    assert (found.sequences[3:6, IDS.shape[1] :] == PAD).all()
    assert found.sequences[:, : IDS.shape[1]].tolist() == IDS.repeat_interleave(3, dim=0).tolist()


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_groups_item_scores_and_filters_of_beam_search(kind: str) -> None:
    model = tiny_model(kind)
    for arguments in (
        {"num_beam_groups": 2, "diversity_penalty": 3.0},
        {"item_scores": torch.arange(3.0 * len(TITLES)).view(3, -1), "alpha": 0.3, "length_penalty": 0.0},
        {"lookahead_scores": torch.arange(3.0 * len(TITLES)).view(3, -1), "length_penalty": 0.0},
        {"item_filter": [[0], [1, 2], range(20)]},
    ):
        found = ours(kind=kind, renormalize_logits=True, return_dict_in_generate=True, **arguments)
        direct = beam_search(
            model,
            IDS,
            TRIE,
            attention_mask=MASK,
            beam_width=4,
            num_return_sequences=3,
            **arguments,  # type: ignore[arg-type]
        )
        assert found.items.sequences == direct.sequences
        assert found.sequences_scores.tolist() == pytest.approx(
            [score for own in direct.sequences_scores for score in [*own, *[-float("inf")] * (3 - len(own))]]
        )


@pytest.mark.parametrize("kind", ["llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_static_caches_and_compiled_models_run_with_one_warning(kind: str) -> None:
    with pytest.warns(UserWarning, match="StaticCache stays empty") as warned:
        static = ours(kind=kind, cache_implementation="static")
    assert sum("stays empty" in str(entry.message) for entry in warned) == 1
    assert static.tolist() == ours(kind=kind).tolist()
    for way in WAYS:
        model = compiled(tiny_model(kind), way)
        with pytest.warns(UserWarning, match="the compiled model runs uncompiled") as warned:
            result = beam_search(model, IDS, TRIE, attention_mask=MASK)
        assert sum("uncompiled" in str(entry.message) for entry in warned) == 1
        assert result.sequences == beam_search(tiny_model(kind), IDS, TRIE, attention_mask=MASK).sequences
        assert still_compiled(model, IDS)


def test_a_cache_that_holds_tokens_is_refused() -> None:
    model: Any = tiny_model("llama")
    name, held = find_cache(model(IDS.repeat_interleave(4, dim=0)[:, :2], use_cache=True))
    with pytest.raises(ValueError, match=f"{name} holds 2 tokens already"):
        ours(**{name: held})


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_harmless_arguments_of_other_releases_are_ignored(kind: str) -> None:
    """A later release may hand over more, and call its cache something else again."""

    def later_release(model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        name, cache = find_cache(given)
        del given[name]
        later = {"keys_and_values": cache, "not_set": None, "nothing": {}, "labels": None, "use_cache": True}
        return trie_beam_search(model, input_ids, **{**given, **later}, trie=TRIE)

    assert torch.equal(generate(kind=kind, custom_generate=later_release), ours(kind=kind))


@pytest.mark.parametrize("value", [torch.zeros(3, 4), torch.zeros(0), 2.5, True, [1]])
def test_unknown_arguments_with_a_meaning_are_refused_by_name(value: Any) -> None:
    def later_release(model: Any, input_ids: torch.Tensor, **given: Any) -> Any:
        return trie_beam_search(model, input_ids, **given, novelty=value, trie=TRIE)

    with pytest.raises(ValueError, match="novelty is not passed on to the model here"):
        generate(custom_generate=later_release)


def test_more_beams_than_items() -> None:
    found = ours(num_beams=80, num_return_sequences=80, return_dict_in_generate=True, renormalize_logits=True)
    assert found.sequences.shape[0] == 3 * 80
    assert found.items.num_found.tolist() == [len(TITLES)] * 3
    scores = found.sequences_scores.view(3, 80)
    assert torch.isinf(scores[:, len(TITLES) :]).all()
    assert torch.isfinite(scores[:, : len(TITLES)]).all()


class _Never(StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"do_sample": True}, "asks for beam_sample"),
        ({"output_scores": True, "return_dict_in_generate": True}, "output_scores=True"),
        ({"repetition_penalty": 1.5}, "RepetitionPenaltyLogitsProcessor"),
        ({"logits_processor": [TemperatureLogitsWarper(2.0)]}, "TemperatureLogitsWarper needs"),
        ({"stopping_criteria": StoppingCriteriaList([_Never()])}, "_Never"),
        ({"eos_token_id": 47}, "lacks the catalog's end token"),
        ({"eos_token_id": [END, 20]}, "20 is a token of the catalog"),
        ({"use_cache": False}, "use_cache=False"),
        ({"max_time": 3.0}, "MaxTimeCriteria"),
        ({"min_new_tokens": 3}, "MinLengthLogitsProcessor|MinNewTokensLength"),
        ({"prefix_allowed_tokens_fn": lambda batch, ids: [END]}, "PrefixConstrainedLogitsProcessor"),
        ({"logits_processor": [TrieLogitsProcessor(TRIE, prompt_length=4)]}, "TrieLogitsProcessor"),
        ({"token_type_ids": IDS}, "token_type_ids"),
        ({"force_words_ids": [[5]]}, "asks for constrained_beam_search"),
        (
            {"num_beam_groups": 3, "diversity_penalty": 1.0},
            "num_beam_groups=3 does not divide|divisible by `num_beam_groups`",
        ),
        ({"item_scores": torch.ones(3, len(TITLES))}, "item_scores and alpha go together"),
        ({"kind": "t5", "decoder_input_ids": torch.tensor([[PAD, 5]] * 3)}, "decoder_input_ids other than one"),
        ({"kind": "t5", "decoder_input_ids": torch.tensor([[5]] * 3)}, "decoder_input_ids other than"),
    ],
)
def test_what_would_be_ignored_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(**arguments)
