"""The objective that simulates the beam search, against an enumeration of all prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_cases import assert_same, gradients
from reference import log_softmax, valid_tokens

from gentrie import ItemFilter, TokenTrie
from gentrie.training import beam_search_objective

ROWS = [[a, b, c, 1] for a in (2, 3, 4) for b in (5, 6) for c in (7, 8, 9)] + [[5, 1], [6, 7, 1]]
TRIE = TokenTrie.from_sequences([row[:-1] for row in ROWS], vocab_size=10, end_token_id=1)


def logits_after(prompt: int, prefix: list[int]) -> torch.Tensor:
    """Logits that depend on the whole prefix, as a model's do."""
    seed = 1000003 * prompt + sum((i + 1) * 31 * token for i, token in enumerate(prefix))
    return 2 * torch.randn(11, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def next_logits(prompts: torch.Tensor, prefixes: torch.Tensor) -> torch.Tensor:
    assert not torch.is_grad_enabled()
    pairs = zip(prompts.tolist(), prefixes.tolist(), strict=True)
    return torch.stack([logits_after(prompt, prefix) for prompt, prefix in pairs])


def thresholds(prompt: int, steps: int, width: int, scope: str, tau: float) -> tuple[list[float], int]:
    """The B-th best candidate of every step, by a beam search over lists, and the number of prefixes extended."""
    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    found, rows = [], 0
    for _ in range(steps):
        candidates = []
        for score, prefix in beams:
            if prefix in ROWS:
                candidates.append((score, prefix))
                continue
            rows += 1
            valid = valid_tokens(ROWS, prefix)
            scores = log_softmax(logits_after(prompt, prefix) / tau, valid if scope == "trie" else None)
            candidates += [(score + float(scores[token]), [*prefix, token]) for token in valid]
        beams = sorted(candidates, reverse=True)[:width]
        found.append(beams[-1][0])
    return found, rows


@pytest.mark.parametrize("scope", ["trie", "vocab"])
@pytest.mark.parametrize("width", [1, 3, 100])
def test_formula(scope: Any, width: int) -> None:
    labels = torch.tensor([[3, 6, 8, 1], [6, 7, 1, -100], [5, 1, -100, -100]])
    logits = torch.zeros(*labels.shape, 11, dtype=torch.float64)
    for prompt, row in enumerate(labels.tolist()):
        for step in range(row.index(1) + 1):
            logits[prompt, step] = logits_after(prompt, row[:step])
    logits.requires_grad_()
    total, chosen = logits.sum() * 0, torch.zeros((), dtype=torch.float64)
    lost: list[list[bool]] = [[] for _ in labels]
    num_rows = 0
    for prompt, row in enumerate(labels.tolist()):
        length = row.index(1) + 1
        prefix_score = torch.zeros((), dtype=torch.float64)
        betas, extended = thresholds(prompt, length, width, scope, 1.3)
        num_rows += extended
        for step, threshold in enumerate(betas):
            valid = valid_tokens(ROWS, row[:step])
            scores = log_softmax(logits[prompt, step] / 1.3, valid if scope == "trie" else None)
            prefix_score = prefix_score + scores[row[step]]
            total, chosen = total - scores[row[step]], chosen + scores[row[step]].detach()
            lost[prompt].append(threshold - prefix_score.item() > 1e-9)
            total = total + 0.5 * torch.nn.functional.logsigmoid((threshold - prefix_score) / 2.0)
    options: dict[str, Any] = {"trie": TRIE, "beam_width": width, "scope": scope, "tau": 1.3}
    options |= {"reg_weight": 0.5, "reg_temperature": 2.0}
    summed = beam_search_objective(logits, labels, next_logits, reduction="sum", **options)
    assert_same(summed, total)
    assert_same(*gradients(summed, logits), *gradients(total, logits))
    assert_same(beam_search_objective(logits, labels, next_logits, **options), total / 9)
    each = beam_search_objective(logits, labels, next_logits, reduction="none", **options)
    assert each.shape == labels.shape
    assert_same(each.sum(), total)
    value, stats = beam_search_objective(logits, labels, next_logits, return_stats=True, **options)
    assert_same(value, total / 9)
    assert_same(stats.mean_log_prob, chosen / 9)
    assert stats.num_labels == 9
    assert stats.violation_rate == pytest.approx(sum(map(sum, lost)) / 9)
    assert stats.pruned_rate == pytest.approx(sum(map(any, lost)) / 3)
    assert (stats.model_calls, stats.rows) == (4, num_rows)


@settings(max_examples=25)
@given(data=st.data(), width=st.integers(1, 8), scope=st.sampled_from(["trie", "vocab"]))
def test_a_filtered_catalog_is_the_catalog_of_the_rest(data: st.DataObject, width: int, scope: Any) -> None:
    allowed = sorted(data.draw(st.sets(st.integers(0, len(ROWS) - 1), min_size=1)))
    chosen = [ROWS[item] for item in data.draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=3))]
    labels = torch.tensor([row + [-100] * (4 - len(row)) for row in chosen])
    logits = torch.randn(*labels.shape, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(len(allowed)))
    logits.requires_grad_()
    rest = TokenTrie.from_sequences([ROWS[item][:-1] for item in allowed], vocab_size=10, end_token_id=1)
    options: dict[str, Any] = {"beam_width": width, "scope": scope, "reg_weight": 0.5}
    expected = beam_search_objective(logits, labels, next_logits, trie=rest, **options)
    for item_filter in (allowed, ItemFilter.from_item_ids(TRIE, allowed)):
        found = beam_search_objective(logits, labels, next_logits, trie=TRIE, item_filter=item_filter, **options)
        assert_same(found, expected)
        assert_same(*gradients(found, logits), *gradients(expected, logits))


def test_a_closed_target_is_refused() -> None:
    labels, logits = torch.tensor([[5, 1]]), torch.zeros(1, 2, 11)
    with pytest.raises(ValueError, match=r"labels\[0\]\[0\]=5 is not a valid token at state \d+ of what item_filter"):
        beam_search_objective(logits, labels, next_logits, trie=TRIE, item_filter=[0, 1])


def test_no_prompts() -> None:
    logits, labels = torch.zeros(0, 3, 11), torch.zeros(0, 3).long()
    nothing, stats = beam_search_objective(logits, labels, next_logits, trie=TRIE, return_stats=True)
    assert nothing == stats.violation_rate == stats.pruned_rate == stats.mean_log_prob == stats.model_calls == 0
