"""add_item_tokens: two control tokens in a tokenizer and its model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tokenizers import byte_level_bpe, fast_tokenizer
from transformers import (
    AutoModelForCausalLM,
    ByT5Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from gentrie import TokenTrie
from gentrie.generation.item_tokens import add_item_tokens


def tiny_llama(vocab_size: int, *, tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)


def tiny_gpt2(vocab_size: int) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, n_embd=8, n_layer=1, n_head=2, n_positions=32))


MODELS = {
    "llama": lambda vocab_size: tiny_llama(vocab_size, tied=False),
    "llama tied": lambda vocab_size: tiny_llama(vocab_size, tied=True),
    "gpt2": tiny_gpt2,
}


def mean_of_words(tokenizer: Any, weight: torch.Tensor, words: str) -> torch.Tensor:
    return weight[tokenizer(words, add_special_tokens=False)["input_ids"]].mean(dim=0)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("padding", [0, 1, 2, 64])
def test_new_rows_are_the_means_of_the_words(kind: str, padding: int) -> None:
    tokenizer = fast_tokenizer()
    old_size = len(tokenizer)
    model = MODELS[kind](old_size + padding)
    old_input = model.get_input_embeddings().weight.detach().clone()
    old_output = model.get_output_embeddings().weight.detach().clone()

    begin_id, end_id = add_item_tokens(tokenizer, model)

    assert (begin_id, end_id) == (old_size, old_size + 1)
    assert tokenizer.convert_ids_to_tokens([begin_id, end_id]) == ["<SOI>", "<EOI>"]
    rows = max(old_size + padding, old_size + 2)
    for old, module in (
        (old_input, model.get_input_embeddings()),
        (old_output, model.get_output_embeddings()),
    ):
        new = module.weight
        assert new.shape == (rows, 8)
        torch.testing.assert_close(new[:old_size], old[:old_size], rtol=0, atol=0)
        torch.testing.assert_close(new[begin_id], mean_of_words(tokenizer, old, "start of an item"))
        torch.testing.assert_close(new[end_id], mean_of_words(tokenizer, old, "end of an item"))
        if padding > 2:
            torch.testing.assert_close(new[old_size + 2 :], old[old_size + 2 :], rtol=0, atol=0)
    assert model.config.vocab_size == rows
    assert model.get_input_embeddings().weight.requires_grad
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == (kind != "llama")


def test_both_are_special_tokens() -> None:
    tokenizer = fast_tokenizer()
    begin_id, end_id = add_item_tokens(tokenizer, tiny_gpt2(len(tokenizer)))
    ids = tokenizer("we like<SOI>red box<EOI>.", add_special_tokens=False)["input_ids"]
    assert ids.count(begin_id) == 1
    assert ids.count(end_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "we likered box."


def test_the_model_still_runs_and_generates() -> None:
    tokenizer = fast_tokenizer()
    model = tiny_llama(len(tokenizer), tied=False).eval()
    begin_id, end_id = add_item_tokens(tokenizer, model)
    ids = torch.tensor([[5, begin_id, 6, end_id]])
    assert model(ids).logits.shape == (1, 4, len(tokenizer))
    out = model.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert out.shape[1] > ids.shape[1]


def test_names_can_be_chosen() -> None:
    tokenizer = fast_tokenizer()
    model = tiny_gpt2(len(tokenizer))
    first = add_item_tokens(tokenizer, model)
    second = add_item_tokens(tokenizer, model, begin="[ITEM]", end="[/ITEM]")
    assert len({*first, *second}) == 4
    assert tokenizer.convert_ids_to_tokens(list(second)) == ["[ITEM]", "[/ITEM]"]
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[second[0]], weight[first[0]])


def test_slow_tokenizer_and_head_in_half_precision() -> None:
    tokenizer = ByT5Tokenizer()
    model = tiny_llama(len(tokenizer), tied=False).to(torch.bfloat16)
    old = model.get_output_embeddings().weight.detach().clone()
    begin_id, _ = add_item_tokens(tokenizer, model)
    expected = mean_of_words(tokenizer, old.float(), "start of an item").to(torch.bfloat16)
    torch.testing.assert_close(model.get_output_embeddings().weight[begin_id], expected, rtol=0, atol=0)


def test_head_with_a_bias_and_encoder_decoder() -> None:
    tokenizer = fast_tokenizer()
    model = tiny_gpt2(len(tokenizer))
    bias = torch.arange(len(tokenizer), dtype=torch.float32)
    model.lm_head.bias = torch.nn.Parameter(bias.clone())
    begin_id, end_id = add_item_tokens(tokenizer, model)
    assert model.lm_head.bias.shape == (len(tokenizer),)
    torch.testing.assert_close(model.lm_head.bias[begin_id], mean_of_words(tokenizer, bias, "start of an item"))
    torch.testing.assert_close(model.lm_head.bias[end_id], mean_of_words(tokenizer, bias, "end of an item"))

    tokenizer = fast_tokenizer()
    sizes = {"d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **sizes)
    t5 = T5ForConditionalGeneration(config)
    old = t5.shared.weight.detach().clone()
    begin_id, end_id = add_item_tokens(tokenizer, t5)
    for weight in (t5.shared.weight, t5.encoder.embed_tokens.weight, t5.decoder.embed_tokens.weight):
        torch.testing.assert_close(weight[end_id], mean_of_words(tokenizer, old, "end of an item"))


# ------------------------------------------------------------------------------- trained rows stay


def train(model: Any, *token_ids: int) -> None:
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            module.weight[list(token_ids)] = 7.0


def is_trained(model: Any, *token_ids: int) -> bool:
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    return all(bool((module.weight[list(token_ids)] == 7.0).all()) for module in modules)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("padding", [0, 64])
def test_a_second_call_changes_nothing(kind: str, padding: int, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = fast_tokenizer()
    model = MODELS[kind](len(tokenizer) + padding)
    ids = add_item_tokens(tokenizer, model)
    train(model, *ids)
    size, rows = len(tokenizer), model.get_input_embeddings().weight.shape[0]
    with caplog.at_level(logging.WARNING):
        assert add_item_tokens(tokenizer, model) == ids
    assert is_trained(model, *ids)
    assert len(tokenizer) == size
    assert model.get_input_embeddings().weight.shape[0] == rows
    assert caplog.text == ""


@pytest.mark.parametrize("padding", [0, 64])
@pytest.mark.parametrize("tokenizer_saved", [True, False])
def test_a_trained_model_that_is_loaded_again_keeps_its_rows(
    padding: int, tokenizer_saved: bool, tmp_path: Path
) -> None:
    tokenizer = fast_tokenizer()
    model = tiny_llama(len(tokenizer) + padding, tied=False)
    ids = add_item_tokens(tokenizer, model)
    train(model, *ids)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    same = PreTrainedTokenizerFast.from_pretrained(tmp_path) if tokenizer_saved else fast_tokenizer()
    assert add_item_tokens(same, loaded) == ids
    assert is_trained(loaded, *ids)


def test_saved_tokenizer_with_a_fresh_model() -> None:
    tokenizer = fast_tokenizer()
    size = len(tokenizer)
    ids = add_item_tokens(tokenizer, tiny_gpt2(size))
    fresh = tiny_llama(size, tied=False)
    old = fresh.get_input_embeddings().weight.detach().clone()
    assert add_item_tokens(tokenizer, fresh) == ids
    weight = fresh.get_input_embeddings().weight
    torch.testing.assert_close(weight[ids[0]], mean_of_words(tokenizer, old, "start of an item"))


def test_rows_that_may_be_trained_are_left_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tokenizer = fast_tokenizer()
    tokenizer.add_tokens(["<SOI>", "<EOI>"], special_tokens=True)
    model = tiny_llama(len(tokenizer) + 64, tied=False)
    own = (len(tokenizer) - 2, len(tokenizer) - 1)
    train(model, *own)
    with caplog.at_level(logging.WARNING, logger="gentrie"):
        assert add_item_tokens(tokenizer, model) == own
    assert is_trained(model, *own)
    assert caplog.text.count("left as it is") == 2
    old = model.get_input_embeddings().weight.detach().clone()
    assert add_item_tokens(tokenizer, model, overwrite=True) == own
    weight = model.get_input_embeddings().weight
    torch.testing.assert_close(weight[own[1]], mean_of_words(tokenizer, old, "end of an item"))


def test_reserved_tokens_can_be_used() -> None:
    tokenizer = fast_tokenizer()
    tokenizer.add_tokens(["<|reserved_0|>", "<|reserved_1|>"], special_tokens=True)
    size = len(tokenizer)
    model = tiny_llama(size, tied=True)
    reserved = {"begin": "<|reserved_0|>", "end": "<|reserved_1|>"}
    assert add_item_tokens(tokenizer, model, **reserved, overwrite=True) == (size - 2, size - 1)
    assert len(tokenizer) == size
    assert model.get_input_embeddings().weight.shape[0] == size


# -------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ["begin", "end"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "non-empty string"),
        (" <SOI>", "without white space at its ends, got ' <SOI>'"),
        ("<SOI>\n", "without white space"),
        (None, "non-empty string .*, got None"),
        (5, "non-empty string .*, got 5"),
        ("e", "'e' is an ordinary token"),
    ],
)
def test_bad_names_are_refused_before_anything_changes(name: str, value: Any, message: str) -> None:
    tokenizer = fast_tokenizer()
    model = tiny_gpt2(len(tokenizer))
    size = len(tokenizer)
    with pytest.raises(ValueError, match=message):
        add_item_tokens(tokenizer, model, **{name: value})
    assert len(tokenizer) == size
    assert model.get_input_embeddings().weight.shape[0] == size


def test_equal_names_are_refused() -> None:
    tokenizer = fast_tokenizer()
    with pytest.raises(ValueError, match="begin and end must differ, both are '<X>'"):
        add_item_tokens(tokenizer, tiny_gpt2(len(tokenizer)), begin="<X>", end="<X>")


def test_other_kinds_of_tokenizer_and_model_are_refused() -> None:
    tokenizer = fast_tokenizer()
    with pytest.raises(TypeError, match="tokenizer must be a tokenizer of transformers, got Tokenizer"):
        add_item_tokens(byte_level_bpe(), tiny_gpt2(10))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model must be a model of transformers, got Linear"):
        add_item_tokens(tokenizer, torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_tokenizer_of_another_model_is_refused_before_anything_changes() -> None:
    tokenizer = fast_tokenizer()
    size = len(tokenizer)
    with pytest.raises(ValueError, match="outside the model's embeddings, which have 20 rows"):
        add_item_tokens(tokenizer, tiny_gpt2(20))
    assert len(tokenizer) == size


def test_a_trie_built_before_still_goes_with_the_tokenizer() -> None:
    tokenizer = fast_tokenizer()
    trie = TokenTrie.from_titles(["red box", "blue box"], tokenizer, end_token_id=tokenizer.eos_token_id)
    begin_id, end_id = add_item_tokens(tokenizer, tiny_gpt2(len(tokenizer)))
    trie.check_tokenizer(tokenizer)
    assert not {begin_id, end_id} & set(trie.vocabulary.tolist())
