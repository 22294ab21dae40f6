"""Losses straight from hidden states through heads with PEFT's adapters, against the logits of those heads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import VOCAB_SIZE, tiny_model

from gentrie import TokenTrie
from gentrie.training import bear_loss, linear_bear_loss, linear_sft_loss, linear_token_logprobs, sft_loss
from gentrie.training._adapters import head_parts

peft = pytest.importorskip("peft")

TRIE = TokenTrie.from_sequences([[a, b] for a in range(2, 14) for b in range(a, 20, 3)], vocab_size=VOCAB_SIZE)
LABELS = torch.tensor([[2, 5], [7, 13], [11, 17]])


def adapted(kind: str = "llama", *, add_bias: bool = False, **options: Any) -> Any:
    model = copy.deepcopy(tiny_model(kind))
    if add_bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCAB_SIZE))
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **options))


def lora(**options: Any) -> Any:
    model = adapted(target_modules=["lm_head"], init_lora_weights=False, r=3, lora_alpha=5, **options)
    return model.train()


def trainable_tokens(kind: str) -> Any:
    tokens = [3, 5, 17]
    if kind == "gpt2":  # whose head is tied to its embedding
        options: dict[str, Any] = {"trainable_token_indices": tokens, "fan_in_fan_out": True}
    else:
        options = {"trainable_token_indices": {"lm_head": tokens}}
    model = adapted(kind, target_modules=["c_attn" if kind == "gpt2" else "q_proj"], **options)
    for name, weight in model.named_parameters():
        if "trainable_tokens_delta" in name:
            weight.data.add_(1.0)
    return model


def two_adapters() -> Any:
    model = lora()
    model.add_adapter("other", peft.LoraConfig(target_modules=["lm_head"], init_lora_weights=False, r=2))
    model.base_model.set_adapter(["default", "other"])
    return model


def merged(model: Any) -> Any:
    model.merge_adapter()
    return model


HEADS: dict[str, Callable[[], Any]] = {
    "lora": lora,
    "rank-stabilised, with a bias": lambda: lora(add_bias=True, use_rslora=True, lora_bias=True),
    "dora": lambda: lora(use_dora=True, add_bias=True),
    "two adapters": two_adapters,
    "merged": lambda: merged(lora()),
    "tokens of a tied head": lambda: trainable_tokens("gpt2"),
    "tokens of a head": lambda: trainable_tokens("llama"),
    "merged tokens": lambda: merged(trainable_tokens("gpt2")),
    "modules_to_save": lambda: adapted(target_modules=["q_proj"], modules_to_save=["lm_head"]),
}


@pytest.mark.parametrize("kind", HEADS)
def test_losses_and_gradients_are_those_of_the_heads_own_logits(kind: str) -> None:
    model = HEADS[kind]()
    head = model.get_output_embeddings()
    hidden = torch.randn(*LABELS.shape, 16, requires_grad=True)
    leaves = [hidden, *(weight for weight in head.parameters() if weight.requires_grad)]
    assert len(leaves) > 1 or "merged" in kind
    for by_head, by_logits in (
        (lambda: linear_bear_loss(hidden, head, LABELS, trie=TRIE), lambda x: bear_loss(x, LABELS, trie=TRIE)),
        (lambda: linear_sft_loss(hidden, head, LABELS), lambda x: sft_loss(x, LABELS)),
    ):
        ours, theirs = by_head(), by_logits(head(hidden))
        torch.testing.assert_close(ours, theirs)
        for one, other in zip(
            torch.autograd.grad(ours, leaves, allow_unused=True),
            torch.autograd.grad(theirs, leaves, allow_unused=True),
            strict=True,
        ):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", HEADS)
def test_switched_off(kind: str) -> None:
    model = HEADS[kind]()
    hidden = torch.randn(*LABELS.shape, 16)
    with torch.no_grad():
        on = linear_token_logprobs(hidden, model.get_output_embeddings(), LABELS, trie=TRIE)
        if kind == "modules_to_save":
            model.get_output_embeddings().original_module.weight.data.mul_(2)
        with model.disable_adapter():
            head = model.get_output_embeddings()
            off = linear_token_logprobs(hidden, head, LABELS, trie=TRIE)  # before the head has undone a merge itself
            wanted = bear_loss(head(hidden), LABELS, trie=TRIE, reg_weight=0, reduction="none")
    torch.testing.assert_close(off, -wanted)
    assert not torch.allclose(on, off)


def test_dropout_of_an_adapter_is_the_heads_own() -> None:
    head = lora(lora_dropout=0.5).get_output_embeddings()
    hidden = torch.randn(200, 16)
    torch.manual_seed(0)
    states, weight, _ = head_parts(head, hidden)
    torch.manual_seed(0)
    torch.testing.assert_close(states @ weight.T, head(hidden))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (lambda: lora(use_dora=True, lora_dropout=0.5), "lora_dropout above 0"),
        (
            lambda: peft.get_peft_model(
                copy.deepcopy(tiny_model("llama")), peft.LoHaConfig(target_modules=["lm_head"], r=2)
            ),
            "an adapter that is not LoRA",
        ),
    ],
)
def test_what_cannot_be_right_is_refused(head: Callable[[], Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        linear_bear_loss(torch.randn(*LABELS.shape, 16), head().train().get_output_embeddings(), LABELS, trie=TRIE)
