"""Diverse beam search (Vijayakumar et al. 2016): groups of beams that avoid each other's tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from beam_reference import Engine, complete, lock_step, scores, search
from catalog_strategies import catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import END, VOCAB_SIZE
from tree_models import tree_model

from gentrie import TokenTrie
from gentrie.generation import BeamStepper, beam_search

TITLES = [[a, b, 20, 21] for a in range(4, 10) for b in range(10, 14)]
TRIE = TokenTrie.from_sequences(TITLES, vocab_size=VOCAB_SIZE, end_token_id=END)
PROMPTS = torch.tensor([[30, 31], [32, 33]])


@given(
    rows=catalogs(max_items=20),
    seed=st.integers(0, 1000),
    groups=st.integers(1, 4),
    group_width=st.integers(1, 4),
    scope=st.sampled_from(["trie", "vocab"]),
    length_penalty=st.sampled_from([0.0, 1.0]),
    diversity_penalty=st.sampled_from([0.0, 0.3, 2.0, 50.0]),
)
@settings(max_examples=80)
def test_groups_in_lock_step(
    rows: list[list[int]],
    seed: int,
    groups: int,
    group_width: int,
    scope: Any,
    length_penalty: float,
    diversity_penalty: float,
) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    width = groups * group_width
    stepper = BeamStepper(
        trie, beam_width=width, scope=scope, length_penalty=length_penalty, diversity_penalty=diversity_penalty
    )
    stepper.add_request(seed, num_beam_groups=groups)
    found = search(stepper, seed)
    expected = lock_step(
        complete(trie),
        lambda path: scores(seed, path),
        width,
        scope,
        length_penalty,
        groups=groups,
        diversity_penalty=diversity_penalty,
    )
    assert len({tuple(sequence) for sequence in found.sequences}) == len(found.sequences)
    np.testing.assert_allclose(found.scores, [score for score, _ in expected], rtol=1e-5, atol=1e-5)
    assert [tuple(sequence) for sequence in found.sequences] == [path for _, path in expected]


def test_a_heavy_penalty_spreads_the_groups_over_first_tokens() -> None:
    result = beam_search(tree_model("llama"), PROMPTS, TRIE, beam_width=6, num_beam_groups=6, diversity_penalty=100.0)
    plain = beam_search(tree_model("llama"), PROMPTS, TRIE, beam_width=6)
    for prompt in range(2):
        assert sorted(sequence[0] for sequence in result.sequences[prompt]) == list(range(4, 10))
        assert len({sequence[0] for sequence in plain.sequences[prompt]}) < 6
        assert result.item_ids[prompt] == [[TITLES.index(row[:-1])] for row in result.sequences[prompt]]


def test_a_prefix_of_several_groups_is_scored_once() -> None:
    stepper = BeamStepper(TRIE, beam_width=8, num_beam_groups=4)
    stepper.add_request(0)
    engine = Engine()
    while len(rows := stepper.rows()):
        stepper.step(engine.logits(rows))
    alone = BeamStepper(TRIE, beam_width=2)
    alone.add_request(0)
    once = Engine()
    while len(rows := alone.rows()):
        alone.step(once.logits(rows))
    assert engine.num_rows == once.num_rows  # without a penalty all groups are the same
    assert stepper.pop_result(0).sequences == alone.pop_result(0).sequences


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beam_groups": 3}, "num_beam_groups=3 does not divide beam_width=10"),
        ({"num_beam_groups": 0}, "num_beam_groups=0"),
        ({"num_beam_groups": 11}, "num_beam_groups=11"),
        ({"num_beam_groups": 2, "diversity_penalty": -1.0}, "diversity_penalty=-1.0 is negative"),
        ({"num_beam_groups": 2, "diversity_penalty": float("nan")}, "diversity_penalty=nan"),
    ],
)
def test_bad_groups_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        beam_search(tree_model("llama"), PROMPTS, TRIE, **arguments)
