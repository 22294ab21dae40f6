"""Micro-benchmarks of the trie's verbs: ``pytest benchmarks`` (pytest-benchmark)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from _figures import VOCAB_SIZE
from _response import PROMPT_LENGTH, Setting, setting
from pytest_benchmark.fixture import BenchmarkFixture

import gentrie
from gentrie import TokenTrie, TrieMatcher
from gentrie.generation import TrieLogitsProcessor


@pytest.fixture(scope="module")
def toys() -> Setting:
    return setting()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def states(toys: Setting) -> np.ndarray:
    """10,000 places on random titles, a few tokens in."""
    rng = np.random.default_rng(0)
    values, indptr, _, _ = toys.trie.to_sequences()
    rows = rng.integers(0, len(indptr) - 1, 10_000)
    return np.array([toys.trie.walk(values[indptr[i] : indptr[i] + rng.integers(0, 5)]) for i in rows])


def test_build(benchmark: BenchmarkFixture, toys: Setting) -> None:
    rows = (toys.catalog.values, toys.catalog.indptr)
    built = benchmark(lambda: TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=toys.end))
    assert built.fingerprint == toys.trie.fingerprint


@pytest.mark.parametrize("verify", [True, False])
def test_load(benchmark: BenchmarkFixture, toys: Setting, tmp_path: Path, verify: bool) -> None:
    toys.trie.save(tmp_path / "toys.safetensors")
    loaded = benchmark(lambda: TokenTrie.load(tmp_path / "toys.safetensors", verify=verify))
    assert loaded.fingerprint == toys.trie.fingerprint


def test_next_tokens_batch(benchmark: BenchmarkFixture, toys: Setting, states: np.ndarray) -> None:
    tokens, indptr = benchmark(lambda: toys.trie.next_tokens_batch(states))
    assert len(indptr) == len(states) + 1
    assert len(tokens) == indptr[-1]


def test_advance_batch(benchmark: BenchmarkFixture, toys: Setting, states: np.ndarray) -> None:
    tokens, indptr = toys.trie.next_tokens_batch(states)
    chosen = tokens[indptr[:-1]]
    assert (benchmark(lambda: toys.trie.advance_batch(states, chosen)) >= 0).all()


def test_matcher(benchmark: BenchmarkFixture, toys: Setting) -> None:
    matcher, mask = TrieMatcher(toys.trie), gentrie.allocate_token_bitmask(1, VOCAB_SIZE)
    title = [*toys.catalog.titles()[0], toys.end]

    def write() -> None:
        matcher.reset()
        for token in title:
            matcher.fill_next_token_bitmask(mask)
            matcher.accept_token(token)

    benchmark(write)
    assert matcher.is_terminated()


@pytest.mark.parametrize("rows", [1, 80])
def test_apply_bitmask(benchmark: BenchmarkFixture, toys: Setting, rows: int) -> None:
    mask = gentrie.allocate_token_bitmask(rows, VOCAB_SIZE)
    gentrie.batch_fill_next_token_bitmask([TrieMatcher(toys.trie) for _ in range(rows)], mask)
    logits = torch.zeros(rows, VOCAB_SIZE)
    benchmark(lambda: gentrie.apply_token_bitmask_inplace(logits, mask))
    assert logits.isfinite().sum() == rows * len(toys.trie.next_tokens(0))


@pytest.mark.parametrize("rows", [1, 80])
def test_processor(benchmark: BenchmarkFixture, toys: Setting, rows: int) -> None:
    processor = TrieLogitsProcessor(toys.trie, prompt_length=PROMPT_LENGTH)
    titles = [title for title in toys.catalog.titles() if len(title) > 3][:rows]
    ids = torch.tensor([toys.outer[:1] * PROMPT_LENGTH + title[:3] for title in titles])
    scores = torch.randn(rows, VOCAB_SIZE)
    masked = benchmark(lambda: processor(ids, scores))
    assert masked[torch.arange(rows), torch.tensor([title[3] for title in titles])].isfinite().all()
