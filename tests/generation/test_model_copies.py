"""Searches leave the model alone: other threads use it meanwhile, and nothing of it has changed afterwards."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import END, VOCAB_SIZE
from tree_models import tree_model

from gentrie import TokenTrie
from gentrie.generation import TreeDecoder, beam_search

ROWS = [[a, b, c, 20, 21][: 3 + a % 3] for a in range(4, 9) for b in range(9, 13) for c in range(13, 17)]
TRIE = TokenTrie.from_sequences(ROWS, vocab_size=VOCAB_SIZE, end_token_id=END)
IDS = torch.tensor([[30, 31, 32], [33, 34, 35]])


def attributes(model: Any) -> list[tuple[str, Any]]:
    """Everything that modules and configs hold, and what stands in their dictionaries."""
    modules = list(model.modules())
    held = [entry for holder in [*modules, *map(config_of, modules)] for entry in vars(holder).items()]
    inside = [entry for _, value in held if isinstance(value, dict) for entry in value.items()]
    return held + inside


def config_of(module: Any) -> Any:
    return getattr(module, "config", module)


def same(before: list[tuple[str, Any]], after: list[tuple[str, Any]]) -> bool:
    return len(before) == len(after) and all(
        name == other and own is value for (name, own), (other, value) in zip(before, after, strict=True)
    )


@pytest.mark.parametrize("kind", ["llama", "Gemma2"])
def test_threads_search_with_one_model_and_call_it(kind: str) -> None:
    model: Any = copy.deepcopy(tree_model(kind))
    expected, plain = beam_search(model, IDS, TRIE).sequences, model(IDS).logits
    before = attributes(model)
    wrong: list[Any] = []
    begin = threading.Barrier(3)

    def repeat(check: Callable[[], bool]) -> None:
        begin.wait()
        for _ in range(5):
            try:
                if not check():
                    wrong.append("another result")
            except Exception as error:
                wrong.append(error)

    def searched() -> bool:
        return beam_search(model, IDS, TRIE).sequences == expected

    def called() -> bool:
        return torch.equal(model(IDS).logits, plain)

    threads = [threading.Thread(target=repeat, args=(check,)) for check in (searched, searched, called)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert same(before, attributes(model))


@pytest.mark.parametrize("kind", ["llama", "Gemma2", "Bloom", "t5"])
@pytest.mark.parametrize("whole_model", [False, True])
def test_the_model_is_as_it_was_during_a_search_and_after_an_interrupt(kind: str, whole_model: bool) -> None:
    model: Any = copy.deepcopy(tree_model(kind))
    calls: list[bool] = []
    leaf = [module for module in model.modules() if type(module).__name__.endswith("Norm")][-1]

    class Interrupting(type(leaf)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Any:
            calls.append(same(before, attributes(model)))
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().forward(*arguments, **named)

    def search() -> None:
        decoder = TreeDecoder(model, IDS, whole_model=whole_model)
        for _ in range(3):
            decoder.extend(decoder.prompt_slots, [5, 6])

    leaf.__class__ = Interrupting
    before = attributes(model)
    with pytest.raises(KeyboardInterrupt):
        search()
    assert calls == [True] * 3
    assert same(before, attributes(model))


def test_forwards_that_hooks_have_replaced_see_the_copy() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    model: Any = copy.deepcopy(tree_model("llama"))
    plain = TreeDecoder(model, IDS)
    seen = []

    class Hook(hooks.ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: Any, *arguments: Any, **named: Any) -> Any:
            seen.append(module)
            return arguments, named

    for module in model.modules():
        hooks.add_hook_to_module(module, Hook())
    TreeDecoder(model, IDS)
    seen.clear()  # of the head's check
    hooked = TreeDecoder(model, IDS)
    assert hooked.packed
    torch.testing.assert_close(hooked.prompt_hidden, plain.prompt_hidden)
    attention = [module for module in seen if type(module).__name__ == "LlamaAttention"]
    assert len(attention) == 2
    assert not set(attention) & set(model.modules())
