"""Real titles in a vocabulary of 131,072: sparse against dense, and how little the valid sets take."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gentrie import TokenTrie
from gentrie.bench.baselines.dense_losses import dense_bear_loss
from gentrie.datasets import Catalog
from gentrie.training import bear_loss, linear_bear_loss
from gentrie.training._rows import FilteredTrie, LabelRows

DATA = Path(os.environ.get("GENTRIE_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
TITLES = DATA / "toy" / "catalog.jsonl"
VOCAB_SIZE = 131_072


@pytest.fixture(scope="module")
def trie() -> TokenTrie:
    if not TITLES.is_file():
        pytest.skip("the real titles are not at hand")
    mistral = pytest.importorskip("mistral_common.tokens.tokenizers.mistral")
    tekken = mistral.MistralTokenizer.v3(is_tekken=True)
    titles = Catalog.from_jsonl(TITLES).titles
    return TokenTrie.from_titles(titles, tekken, template='"{title}"', end_token_id=2)


def test_against_the_published_form(trie: TokenTrie) -> None:
    values, indptr, _, _ = trie.to_sequences()
    titles = [values[indptr[i] : indptr[i + 1]] for i in (5, 4000, 11_000)]
    width = max(map(len, titles))
    labels = torch.full((3, 1 + width), -100)
    for row, title in zip(labels, titles, strict=True):
        row[1 : 1 + len(title)] = torch.from_numpy(title.astype(np.int64))
    mask = torch.ones(3, width, VOCAB_SIZE, dtype=torch.bool)
    for row, title in enumerate(titles):
        mask[row, : len(title)] = False
        for column in range(len(title)):
            mask[row, column, trie.next_tokens(trie.walk(title[:column])).tolist()] = True
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 1 + width, 16, generator=generator).requires_grad_()
    head = torch.randn(VOCAB_SIZE, 16, generator=generator)
    logits = hidden @ head.T
    expected = dense_bear_loss(logits.clone(), labels, mask)
    (wanted,) = torch.autograd.grad(expected, hidden, retain_graph=True)
    shifted = torch.cat([labels[:, 1:], torch.full((3, 1), -100)], 1)
    for loss in (
        bear_loss(logits, shifted, trie=trie, form="reweighted"),
        linear_bear_loss(hidden, head, shifted, trie=trie, form="reweighted"),
    ):
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(loss, hidden, retain_graph=True)[0], wanted)


def test_states_and_valid_sets_of_ten_thousand_samples(trie: TokenTrie) -> None:
    """Ten megabytes in all, where masks of the vocabulary take nineteen gigabytes."""
    values, indptr, _, _ = trie.to_sequences()
    chosen = np.random.default_rng(0).integers(trie.num_sequences, size=10_000)
    lengths = np.diff(indptr)[chosen]
    labels = np.full((len(chosen), int(lengths.max())), -100)
    for row, title in zip(labels, chosen, strict=True):
        row[: indptr[title + 1] - indptr[title]] = values[indptr[title] : indptr[title + 1]]
    rows = LabelRows.of(
        FilteredTrie(trie), torch.from_numpy(labels), None, ignore_index=-100, width=VOCAB_SIZE, on_invalid="error"
    )
    arrays = (rows.row, rows.label, rows.node, rows.place, rows.num_valid, rows.states, rows.tokens, rows.indptr)
    assert sum(array.nbytes for array in arrays) < 10e6
    assert len(rows.row) == lengths.sum()
    for i in np.random.default_rng(1).integers(len(rows.row), size=200):
        row, column = divmod(int(rows.row[i]), labels.shape[1])
        valid = trie.next_tokens(trie.walk(labels[row, :column]))
        node = rows.node[i]
        assert np.array_equal(rows.tokens[rows.indptr[node] : rows.indptr[node + 1]], valid)
        assert valid[rows.place[i]] == rows.label[i]
