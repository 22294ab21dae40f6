"""The example of reinforcement learning runs inside trl's trainer; its rewards by hand."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("trl", reason="trl is not installed")

EXAMPLE = Path(__file__).parents[2] / "examples" / "grpo_rere.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("grpo_rere", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rewards_by_hand(example: ModuleType) -> None:
    items, target = [[1], [2, 9], [3], [4], [5], [6]], [9, 9, 9, 9, 9, 9]
    log_prob = [-3.0, -1.0, -2.0, -1.0, -2.0, -3.0]
    assert example.rule_reward(item_ids=items, target=target) == [0, 1, 0, 0, 0, 0]
    shares = [1 / math.log2(rank + 1) for rank in (1, 2, 3)]
    rewards = example.RankingReward(3)(item_ids=items, target=target, log_prob=log_prob)
    expected = [-shares[2] / sum(shares), 0, -shares[1] / sum(shares), 0, 0, 0]
    assert rewards == pytest.approx(expected)


@pytest.mark.parametrize("method", ["sampling", "beams"])
def test_a_few_steps_inside_the_trainer(example: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    logged = [entry for entry in example.train(3, method=method, num_generations=4, num_items=30) if "reward" in entry]
    assert len(logged) == 3
    for entry in logged:
        assert math.isfinite(entry["loss"])
        assert entry["completions/mean_length"] >= 1
        # Items of a group are distinct, so no group holds the one that was bought twice.
        assert 0 <= entry["rewards/rule_reward/mean"] <= 0.25
        assert -0.25 <= entry["rewards/ranking_reward/mean"] <= 0
