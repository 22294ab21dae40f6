"""``trie_beam_search`` inside ``generate`` against ``generate`` with a TrieLogitsProcessor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import END, PAD, VOCAB_SIZE, tiny_model
from transformers import StoppingCriteria, StoppingCriteriaList, TemperatureLogitsWarper

from gentrie import TokenTrie
from gentrie.generation import TrieBeamOutput, TrieLogitsProcessor, trie_beam_search

TITLES = [[a, b, c, 20, 21, 22][: 4 + a % 3] for a in range(4, 9) for b in range(9, 13) for c in range(13, 17)]
TRIE = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
IDS = torch.tensor([[30, 31, 32, 33], [PAD, PAD, PAD, 34], [PAD, 35, 36, 37]])
MASK = (IDS != PAD).long()


def generate(*, kind: str = "llama", **arguments: Any) -> Any:
    model: Any = tiny_model(kind)
    settings = {"attention_mask": MASK, "num_beams": 4, "num_return_sequences": 3, "do_sample": False}
    if "inputs_embeds" not in arguments:
        settings["input_ids"] = IDS
    return model.generate(**{**settings, "max_new_tokens": TRIE.max_depth, **arguments})


def ours(**arguments: Any) -> Any:
    return generate(custom_generate=trie_beam_search, trie=TRIE, **arguments)


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
        {"eos_token_id": [END, 47]},
    ],
)
def test_the_rows_of_generate(renormalize: bool, arguments: dict[str, Any]) -> None:
    arguments = {"renormalize_logits": renormalize, **arguments}
    expected = generate(
        logits_processor=[TrieLogitsProcessor(TRIE, prompt_length=IDS.shape[1])],
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


def test_missing_rows_are_padding_at_minus_infinity() -> None:
    found = ours(item_filter=[[0], [999], [1, 2]], return_dict_in_generate=True)
    assert len(found.sequences) == 9
    assert found.items.num_found.tolist() == [1, 0, 2]
    assert torch.isinf(found.sequences_scores).tolist() == [False, True, True, True, True, True, False, False, True]
    assert (found.sequences[3:6, IDS.shape[1] :] == PAD).all()
    assert found.sequences[:, : IDS.shape[1]].tolist() == IDS.repeat_interleave(3, dim=0).tolist()


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
        ({"cache_implementation": "static"}, "past_key_values is a StaticCache"),
        ({"kind": "t5"}, "encoder-decoder"),
    ],
)
def test_what_would_be_ignored_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(**arguments)
