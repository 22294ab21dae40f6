"""Lock-step beam search on a device against the one that the host drives: the same items and scores."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_waits import NoWaits

pytest.importorskip("transformers")
sys.path.append(str(Path(__file__).parents[1] / "generation"))

from catalog_strategies import catalogs
from hypothesis import given
from hypothesis import strategies as st
from strategies import examples
from tiny_models import END, PAD, VOCAB_SIZE, tiny_model
from tree_models import tree_model

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceBeamStepper, DeviceFilter, DeviceTrie, TrieBank, device_beam_search
from gentrie.device._lockstep_decoder import LockstepDecoder
from gentrie.generation import beam_search

TOLERANCE = 1e-4
PROMPTS = [[30, 31, 32, 33], [34], [35, 36, 37]]


def padded(*, on_the_left: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, PROMPTS))
    fill = [[0] * (width - len(prompt)) for prompt in PROMPTS]
    pairs = list(zip(fill, PROMPTS, strict=True))
    ids = [none + prompt if on_the_left else prompt + none for none, prompt in pairs]
    ones = [[1] * len(prompt) for prompt in PROMPTS]
    mask = [none + one if on_the_left else one + none for none, one in zip(fill, ones, strict=True)]
    assert PAD == 0
    return torch.tensor(ids), torch.tensor(mask)


def same(found: Any, expected: Any) -> None:
    """The same scores, and the same items wherever a score is not shared."""
    assert found.num_found.tolist() == expected.num_found.tolist()
    for prompt, scores in enumerate(expected.sequences_scores):
        np.testing.assert_allclose(found.sequences_scores[prompt], scores, rtol=TOLERANCE, atol=TOLERANCE)
        for at, score in enumerate(scores):
            if (np.abs(np.delete(scores, at) - score) > 10 * TOLERANCE).all():
                assert found.sequences[prompt][at] == expected.sequences[prompt][at]
                assert found.item_ids[prompt][at].tolist() == expected.item_ids[prompt][at].tolist()
                np.testing.assert_allclose(
                    found.token_scores[prompt][at], expected.token_scores[prompt][at], rtol=TOLERANCE, atol=TOLERANCE
                )


@examples(40)
@given(
    kind=st.sampled_from(["llama", "Qwen3", "Gemma2", "gpt2"]),
    rows=catalogs(max_items=20, max_length=5),
    has_end=st.booleans(),
    width=st.sampled_from([1, 2, 5, 24]),
    options=st.fixed_dictionaries(
        {
            "scope": st.sampled_from(["trie", "vocab"]),
            "length_penalty": st.sampled_from([0.0, 1.0, 2.0]),
            "early_stopping": st.sampled_from([False, True, "never"]),
            "temperature": st.sampled_from([1.0, 0.7]),
            "max_length": st.sampled_from([None, 2]),
        }
    ),
    filters=st.sampled_from(["none", "one", "each"]),
    on_the_left=st.booleans(),
)
def test_items_and_scores_of_the_host_driven_search(
    kind: str,
    rows: list[list[int]],
    has_end: bool,
    width: int,
    options: dict[str, Any],
    filters: str,
    on_the_left: bool,
) -> None:
    rows = rows if has_end else [(row * 3)[:3] for row in rows]
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END if has_end else None)
    allowed: Any = {
        "none": None,
        "one": list(range(0, len(rows), 2)),
        "each": [list(range(first % len(rows), len(rows), first + 1)) for first in range(len(PROMPTS))],
    }[filters]
    ids, mask = padded(on_the_left=on_the_left)
    arguments = {"attention_mask": mask, "beam_width": width, "item_filter": allowed, **options}
    model = tree_model(kind)
    found = device_beam_search(model, ids, trie, **arguments)
    expected = beam_search(model, ids, trie, **arguments)
    same(found, expected)
    if (expected.num_found == found.num_found).all() and found.sequences == expected.sequences:
        assert found.stats.tokens_forced == expected.stats.tokens_forced
    steps = min(trie.max_depth, options["max_length"] or trie.max_depth)
    assert found.stats.model_calls == steps
    assert found.stats.rows == 3 + 3 * width * (steps - 1)
    assert found.stats.tokens_computed + found.stats.padded_slots == 3 * width * (steps - 1)


def test_prompts_with_tries_of_their_own() -> None:
    tries = [
        TokenTrie.from_sequences([[a, b] for a in range(start, 12) for b in range(a, 16)], vocab_size=VOCAB_SIZE)
        for start in (4, 8)
    ]
    bank = TrieBank("cpu", capacity=2)
    rows = [bank.add(DeviceTrie(trie, "cpu")) for trie in tries]
    ids, mask = padded()
    model = tiny_model("llama")
    found = device_beam_search(model, ids, bank, attention_mask=mask, beam_width=6, trie_index=[rows[1], *rows])
    for prompt, trie in enumerate([tries[1], *tries]):
        alone = beam_search(
            model, ids[prompt : prompt + 1], trie, attention_mask=mask[prompt : prompt + 1], beam_width=6
        )
        np.testing.assert_allclose(found.sequences_scores[prompt], alone.sequences_scores[0], rtol=TOLERANCE)
        assert found.sequences[prompt] == alone.sequences[0]


def test_keys_and_values_of_prompts_are_held_once() -> None:
    model, (ids, mask) = tiny_model("llama"), padded()
    config = model.config
    decoder = LockstepDecoder(model, ids, mask, beam_width=5, max_length=3, token_ids=None, over_vocab=False)
    decoder.extend(torch.full((3, 5), 7), torch.zeros(3, 5, dtype=torch.int64))
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert decoder.nbytes == (ids.numel() * per_token, 3 * 5 * 2 * per_token)


def searched(advance: Callable[[], object], decoder: LockstepDecoder, stepper: DeviceBeamStepper) -> list[Any]:
    """Items of all prompts, from logits behind the prompts on."""
    stepper.reset()
    stepper.step(decoder.prompt_logits()[0])
    for _ in range(stepper.max_length - 1):
        advance()
    return stepper.result()


@pytest.mark.parametrize(
    ("device", "in_graph"),
    [
        ("cpu", False),
        pytest.param("cuda", False, marks=pytest.mark.gpu),
        pytest.param("cuda", True, marks=pytest.mark.gpu),
    ],
)
def test_prompts_in_the_place_of_others(device: str, in_graph: bool) -> None:
    """In the same memory, also from a step that was captured for the former ones."""
    codes = np.random.default_rng(0).integers(4, 40, size=(300, 4))
    trie = TokenTrie.from_sequences(codes, vocab_size=VOCAB_SIZE)
    ids, mask = (part.to(device) for part in padded())
    pairs = [(ids, mask), (ids.flip(0), mask.flip(0)), (ids, mask)]
    model = tree_model("Qwen3").to(device)

    def advance() -> None:
        stepper.step(decoder.extend(stepper.tokens, stepper.parents)[0])

    try:
        stepper = DeviceBeamStepper(DeviceTrie(trie, device), num_prompts=3, beam_width=5)
        expected = []
        for pair in pairs:
            decoder = LockstepDecoder(model, *pair, beam_width=5, max_length=4, token_ids=None, over_vocab=False)
            expected.append(searched(advance, decoder, stepper))
        again: Callable[[], object] = advance
        if in_graph:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                advance()
            again = graph.replay
        for pair, wanted in zip(pairs, expected, strict=True):
            decoder.replace_prompts(*pair)
            for found, items in zip(searched(again, decoder, stepper), wanted, strict=True):
                assert found.sequences == items.sequences
                np.testing.assert_allclose(found.scores, items.scores, rtol=TOLERANCE)
    finally:
        model.cpu()


def test_prompts_that_do_not_fit_in_the_place_of_others() -> None:
    ids, mask = padded()
    decoder = LockstepDecoder(
        tiny_model("llama"), ids, mask, beam_width=2, max_length=2, token_ids=None, over_vocab=False
    )
    before = decoder.prompt_logits()[0]
    for wrong in (ids[:2], ids[:, 1:]):
        with pytest.raises(ValueError, match="expected 3 of at most 4"):
            decoder.replace_prompts(wrong)
    assert torch.equal(decoder.prompt_logits()[0], before)


@pytest.mark.parametrize("scope", ["trie", "vocab"])
@pytest.mark.parametrize("kind", ["Qwen3", "Gemma2"])
def test_no_step_of_the_model_looks_at_values(kind: str, scope: str) -> None:
    ids, mask = padded()
    decoder = LockstepDecoder(
        tree_model(kind),
        ids,
        mask,
        beam_width=4,
        max_length=3,
        token_ids=torch.arange(4, 40),
        over_vocab=scope == "vocab",
    )
    tokens, parents = torch.full((3, 4), 7), torch.tensor([[0, 0, 1, -1]] * 3)
    with NoWaits():
        shapes = [decoder.prompt_logits()[0].shape, *(decoder.extend(tokens, parents)[0].shape for _ in range(2))]
    assert shapes == [(3, 36), (12, 36), (12, 36)]


def test_bad_arguments_are_named() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=VOCAB_SIZE)
    bank = TrieBank("cpu", capacity=1)
    bank.add(DeviceTrie(trie, "cpu"))
    ids = torch.tensor([[30], [31]])
    for message, options in (
        ("num_return_sequences=3 is outside", {"beam_width": 2, "num_return_sequences": 3}),
        ("beam_width=0 is outside", {"beam_width": 0}),
        ("temperature=0 is outside", {"temperature": 0}),
        ("input_ids must be a tensor", {"input_ids": ids[:0]}),
        ("item_filter has 3 entries for 2 prompts", {"item_filter": [[0], [1], [0]]}),
        ("item_filter: with a bank", {"trie": bank, "trie_index": [0, 0], "item_filter": [0]}),
        ("attention_mask: row 1 has no token", {"attention_mask": torch.tensor([[1], [0]])}),
        ("does not call the attention interface", {"model": tree_model("Bloom")}),
    ):
        arguments: dict[str, Any] = {"model": tiny_model("llama"), "input_ids": ids, "trie": trie} | options
        with pytest.raises(ValueError, match=message):
            device_beam_search(**arguments)


def test_a_device_filter_for_all_prompts() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [7, 8], [7, 9]], vocab_size=VOCAB_SIZE)
    chosen = DeviceFilter(ItemFilter.from_item_ids(trie, [0, 2]), "cpu")
    ids, mask = padded()
    found = device_beam_search(tiny_model("llama"), ids, trie, attention_mask=mask, item_filter=chosen)
    assert [sorted(rows) for rows in found.sequences] == [[[5, 6], [7, 9]]] * 3
    assert found.stats.tokens_forced == 3 * 2


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_no_step_of_the_model_waits_for_the_device(scope: Any) -> None:
    codes = np.random.default_rng(0).integers(4, 40, size=(300, 3))
    trie = TokenTrie.from_sequences(codes, vocab_size=VOCAB_SIZE)
    ids, mask = (part.cuda() for part in padded())
    model = tree_model("Qwen3").cuda()
    resident, arguments = DeviceTrie(trie, "cuda"), {"attention_mask": mask, "beam_width": 7, "scope": scope}
    try:
        same(device_beam_search(model, ids, resident, **arguments), beam_search(model, ids, trie, **arguments))
        columns = torch.from_numpy(trie.vocabulary).long().cuda()
        decoder = LockstepDecoder(
            model, ids, mask, beam_width=7, max_length=3, token_ids=columns, over_vocab=scope == "vocab"
        )
        tokens, parents = columns[:21].view(3, 7), torch.zeros(3, 7, dtype=torch.int64, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        decoder.prompt_logits()
        for _ in range(2):
            decoder.extend(tokens, parents)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        model.cpu()
