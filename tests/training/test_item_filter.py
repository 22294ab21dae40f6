"""Losses under an item filter are those of a catalog that holds the allowed items only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import END, assert_same, gradients

from gentrie import ItemFilter, TokenTrie
from gentrie.training import (
    TrieLoss,
    bear_loss,
    linear_bear_loss,
    linear_masked_softmax_loss,
    linear_sdpo_loss,
    linear_sequence_logprobs,
    masked_softmax_loss,
    sdpo_loss,
    sequence_logprobs,
    token_logprobs,
)

VOCAB, HIDDEN = 8, 3
ROWS = st.lists(st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=12)


def catalog(rows: list[list[int]], item_ids: list[int] | None = None) -> TokenTrie:
    return TokenTrie.from_sequences(rows, vocab_size=VOCAB, end_token_id=END, item_ids=item_ids)


def with_head(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of hidden states, of the logits' tensor: its first columns are the states."""
    weight = torch.randn(VOCAB, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return lambda logits, *arguments, **options: loss(logits[..., :HIDDEN], weight, *arguments, **options)


def preferences(loss: Callable[..., Any]) -> Callable[..., Any]:
    """A loss of pairs, of a batch whose every row is preferred to the next."""

    def paired(logits: torch.Tensor, labels: torch.Tensor, **options: Any) -> torch.Tensor:
        pairs = torch.stack([torch.arange(len(labels)), torch.arange(len(labels)).roll(-1)], 1)
        reference = torch.zeros(len(labels), 2, dtype=torch.float64)
        value: torch.Tensor = loss(logits[pairs], labels[pairs], reference, reg_weight=0.5, **options)
        return value

    return paired


LOSSES: dict[str, Callable[..., Any]] = {
    "bear": bear_loss,
    "linear bear": with_head(linear_bear_loss),
    "msl": masked_softmax_loss,
    "linear scope mask": with_head(lambda *a, **o: linear_masked_softmax_loss(*a, variant="scope_mask_1", **o)),
    "logprobs": lambda *a, **o: token_logprobs(*a, **o).sum(),
    "sequences": lambda *a, **o: sequence_logprobs(*a, **o).square().sum(),
    "linear sequences": with_head(lambda *a, **o: linear_sequence_logprobs(*a, **o).square().sum()),
    "sdpo": preferences(sdpo_loss),
    "trainer": lambda logits, labels, *, trie, **o: TrieLoss(trie, bear_loss, shift=False, **o)([logits], labels),
}


@pytest.mark.parametrize("name", LOSSES)
@settings(max_examples=15)
@given(rows=ROWS, data=st.data())
def test_a_filtered_catalog_is_the_catalog_of_the_rest(name: str, rows: list[list[int]], data: st.DataObject) -> None:
    allowed = sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)))
    chosen = data.draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=4))
    whole, rest = catalog(rows), catalog([rows[i] for i in allowed], allowed)
    sequences = [[*rows[i], END] for i in chosen]
    length = max(map(len, sequences))
    labels = torch.tensor([row + [-100] * (length - len(row)) for row in sequences])
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = torch.randn(*labels.shape, VOCAB, dtype=torch.float64, generator=generator).requires_grad_()
    expected = LOSSES[name](logits, labels, trie=rest)
    for item_filter in (allowed, ItemFilter.from_item_ids(whole, allowed)):
        found = LOSSES[name](logits, labels, trie=whole, item_filter=item_filter)
        assert_same(found, expected)
        assert_same(*gradients(found, logits), *gradients(expected, logits))


def test_statistics_follow_the_filter() -> None:
    rows = [[2, 3], [2, 4], [2, 5, 6], [7, 3]]
    labels, logits = torch.tensor([[2, 5, 6, END]]), torch.randn(1, 4, VOCAB, dtype=torch.float64)
    _, found = bear_loss(logits, labels, trie=catalog(rows), item_filter=[1, 2], return_stats=True)
    _, expected = bear_loss(logits, labels, trie=catalog(rows[1:3]), return_stats=True)
    assert found.first_logits.num_tokens == 2
    for name in ("num_rows", "total", "squares", "target_total"):
        assert getattr(found.first_logits, name) == getattr(expected.first_logits, name)


def test_refused() -> None:
    trie = catalog([[2, 3], [2, 4], [5]])
    labels, logits = torch.tensor([[2, 4, END]]), torch.zeros(1, 3, VOCAB)
    with pytest.raises(ValueError, match=r"labels\[0\]\[1\]=4 is not a valid token at state \d+ of what item_filter"):
        bear_loss(logits, labels, trie=trie, item_filter=[0, 2])
    assert bear_loss(logits, labels, trie=trie, item_filter=[0, 2], on_invalid="ignore") == 0
    with pytest.raises(ValueError, match="belongs to the trie"):
        masked_softmax_loss(logits, labels, trie=trie, item_filter=ItemFilter.all_items(catalog([[2]])))
    with pytest.raises(TypeError, match="trie is a list"):
        token_logprobs(logits, labels, trie=[[2, 3]], item_filter=[0])  # type: ignore[arg-type]
    hidden, weight = torch.zeros(2, 2, 3, HIDDEN), torch.zeros(VOCAB, HIDDEN)
    pairs = torch.tensor([[[2, 3, END], [2, 4, END]]] * 2)
    with pytest.raises(ValueError, match=r"labels\[0\]\[1\]\[1\]=4 is not a valid token"):
        linear_sdpo_loss(hidden, weight, pairs, torch.zeros(2, 2), trie=trie, item_filter=[0])
