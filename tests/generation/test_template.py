"""The fixed text around the items of a response."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BEGIN, END, PAD, TURN_END, VOCAB_SIZE, tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gentrie import TokenTrie
from gentrie.generation import ResponseTemplate, generate_with_items

ROWS = [[20, 21, 22, 23], [20, 21, 30], [20, 23], [24], [25, 26, 27, 28]]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
TEMPLATE = ResponseTemplate([[40, 41], [42, 43], [], [44]])


def expected(model: Any, prompt: list[int], template: ResponseTemplate) -> list[int]:
    """One whole forward pass a token, and no item twice."""
    said: list[int] = []
    left = {(*row, END) for row in ROWS}
    for part in template.parts[:-1]:
        said += [*part, BEGIN]
        item: tuple[int, ...] = ()
        while item not in left:
            logits = model(torch.tensor([prompt + said])).logits[0, -1]
            item += (max((row[len(item)] for row in left if row[: len(item)] == item), key=lambda t: logits[t]),)
            said.append(item[-1])
        left.remove(item)
    return [*said, *template.parts[-1], TURN_END]


@pytest.mark.parametrize("num_prompts", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_fixed_text_items_and_the_end_are_as_the_template_says(kind: str, num_prompts: int) -> None:
    for seed in range(3):
        model = tiny_model(kind, seed)
        prompts = torch.randint(31, 40, (num_prompts, 5), generator=torch.Generator().manual_seed(seed))
        output = generate_with_items(
            model,
            prompts,
            trie=TRIE,
            begin_token_id=BEGIN,
            eos_token_id=TURN_END,
            pad_token_id=PAD,
            unique=True,
            template=TEMPLATE,
            max_new_tokens=60,
        )
        for row, prompt in zip(output.sequences[:, 5:].tolist(), prompts.tolist(), strict=True):
            said = expected(model, prompt, TEMPLATE)
            assert row[: len(said)] == said
            assert set(row[len(said) :]) <= {PAD}
        assert [len(items) for items in output.items] == [3] * num_prompts


def test_a_template_cut_off_by_the_length_and_one_without_an_end_token() -> None:
    model = tiny_model("llama")
    prompt = torch.tensor([[31, 32, 33]])
    whole = expected(model, [31, 32, 33], TEMPLATE)
    for length in range(1, len(whole) + 1):
        output = generate_with_items(
            model, prompt, trie=TRIE, begin_token_id=BEGIN, template=TEMPLATE, unique=True, max_new_tokens=length,
            eos_token_id=TURN_END,
        )  # fmt: skip
        assert output.sequences[0, 3:].tolist() == whole[:length]
    before, model.generation_config.eos_token_id = model.generation_config.eos_token_id, None
    try:
        output = generate_with_items(
            model, prompt, trie=TRIE, begin_token_id=BEGIN, template=TEMPLATE, max_new_tokens=90, pad_token_id=PAD
        )
    finally:
        model.generation_config.eos_token_id = before
    assert len(output.items[0]) == 3
    assert output.sequences[0, -1] == 44


def test_a_template_of_more_items_than_are_left_is_refused() -> None:
    arguments = {"trie": TRIE, "begin_token_id": BEGIN, "eos_token_id": TURN_END, "max_new_tokens": 60}
    model, prompt = tiny_model("llama"), torch.tensor([[31, 32]])
    with pytest.raises(ValueError, match=r"row 0: the template has 3 items, but .* leave only 2"):
        generate_with_items(model, prompt, template=TEMPLATE, unique=True, item_filter=[0, 3], **arguments)
    for part, message in (([99], "is outside"), ([BEGIN], "begin token"), ([TURN_END], "eos token"), ([END], "item's")):
        with pytest.raises(ValueError, match=message):
            generate_with_items(model, prompt, template=ResponseTemplate([[31], part]), **arguments)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<unk>", "<SOI>", "<EOI>", *"0123456789.", " ", "\n", "item"]
    base = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    base.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made = PreTrainedTokenizerFast(tokenizer_object=base, unk_token="<unk>")
    made.add_tokens(["<SOI>", "<EOI>"], special_tokens=True)
    return made


def test_numbered_lists_are_encoded_around_the_items(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ResponseTemplate.numbered(11, tokenizer, begin_token="<SOI>", end_token="<EOI>")
    assert template.num_items == 11
    assert tokenizer.decode(template.parts[0]).replace(" ", "") == "1."
    assert tokenizer.convert_ids_to_tokens(template.parts[10]) == ["\n", "1", "1", ".", " "]
    assert template.parts[11] == ()
    text = ResponseTemplate.from_text("1{item}{item}.", tokenizer, begin_token="<SOI>", end_token="<EOI>")
    assert [len(part) for part in text.parts] == [1, 0, 1]


@pytest.mark.parametrize(
    ("text", "begin", "message"),
    [
        ("no place", "<SOI>", "holds no {item}"),
        ("<SOI>{item}", "<SOI>", "which {item} stands for"),
        ("{item}", "12", "is 2 tokens"),
    ],
)
def test_texts_that_are_no_templates_are_refused(
    tokenizer: PreTrainedTokenizerFast, text: str, begin: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ResponseTemplate.from_text(text, tokenizer, begin_token=begin, end_token="<EOI>")


def test_parts_are_checked() -> None:
    with pytest.raises(ValueError, match="parts has 1 entries"):
        ResponseTemplate([[1]])
    with pytest.raises(ValueError, match=r"parts\[1\]\[0\]=-3"):
        ResponseTemplate([[1], [-3]])
    with pytest.raises(TypeError, match=r"parts\[0\]\[1\]='a'"):
        ResponseTemplate([[1, "a"], []])  # type: ignore[list-item]
