"""Ranking and list metrics against definitions written out in loops."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gentrie import TokenTrie, evaluation


@st.composite
def lists_and_targets(draw, most=2**63 - 1):
    """Few different ids, small ones or as large as int64 holds, so that lists and targets meet."""
    first = draw(st.sampled_from([0, most - 9]))
    users, width = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    ids = st.integers(first, first + 9)
    row = st.lists(ids | st.integers(-2, -1), min_size=width, max_size=width)
    rows = draw(st.lists(row, min_size=users, max_size=users))
    targets = draw(st.lists(st.lists(ids, min_size=1, max_size=4, unique=True), min_size=users, max_size=users))
    return rows, targets, draw(st.integers(1, width))


def hit_places(row, wanted, k):
    return [place for place in range(k) if row[place] in wanted and row[place] not in row[:place]]


@given(lists_and_targets())
def test_ranking_metrics_are_their_definitions(case):
    rows, targets, k = case
    hits = [hit_places(row, wanted, k) for row, wanted in zip(rows, targets, strict=True)]
    best = [sum(1 / math.log2(2 + place) for place in range(min(len(wanted), k))) for wanted in targets]
    gains = [sum(1 / math.log2(2 + place) for place in places) / most for places, most in zip(hits, best, strict=True)]
    array = np.array(rows)
    assert evaluation.hit_rate(array, targets, k) == pytest.approx(np.mean([bool(places) for places in hits]))
    assert evaluation.ndcg(array, targets, k) == pytest.approx(np.mean(gains))
    assert evaluation.mrr(array, targets, k) == pytest.approx(np.mean([1 / (1 + p[0]) if p else 0 for p in hits]))
    shares = [len(places) / len(wanted) for places, wanted in zip(hits, targets, strict=True)]
    assert evaluation.recall(array, targets, k) == pytest.approx(np.mean(shares))
    whole = [hit_places(row, wanted, len(row)) for row, wanted in zip(rows, targets, strict=True)]
    assert evaluation.ranks(array, targets).tolist() == [places[0] + 1 if places else 0 for places in whole]


@given(lists_and_targets(most=9))
def test_list_metrics_are_their_definitions(case):
    rows, histories, k = case
    array = np.array(rows)
    given_ids = [(user, place, row[place]) for user, row in enumerate(rows) for place in range(k) if row[place] != -1]
    share = lambda chosen: sum(map(bool, chosen)) / len(given_ids) if given_ids else 0.0  # noqa: E731
    repeats = [item >= 0 and item in rows[user][:place] for user, place, item in given_ids]
    assert evaluation.repeat_rate(array, k) == pytest.approx(share(repeats))
    assert evaluation.ood_rate(array, k) == pytest.approx(share(item == -2 for _, _, item in given_ids))
    within = evaluation.ood_rate(array, k, catalog={0, 1, 2})
    assert within == pytest.approx(share(item not in {0, 1, 2} for _, _, item in given_ids))
    seen = share(item in histories[user] for user, _, item in given_ids)
    assert evaluation.in_history_rate(array, histories, k) == pytest.approx(seen)
    counts = [sum(item == other for _, _, other in given_ids) for item in range(10)]
    assert evaluation.coverage(array, k, 10) == pytest.approx(sum(map(bool, counts)) / 10)
    if any(counts):
        spread = sum(abs(a - b) for a in counts for b in counts) / (2 * 10 * sum(counts))
        assert evaluation.gini(array, k, 10) == pytest.approx(spread)
    else:
        with pytest.raises(ValueError, match="no item"):
            evaluation.gini(array, k, 10)


def test_a_hit_by_sequence_counts_items_with_the_same_title():
    trie = TokenTrie.from_sequences([[1, 2], [1, 2], [3, 4]], vocab_size=5, item_ids=[7, 5, 9])
    recommended = np.array([[5, 9, -1]])
    assert evaluation.hit_rate(recommended, [7], 3) == 0
    assert evaluation.hit_rate(recommended, [7], 3, trie=trie) == 1
    assert evaluation.ndcg(np.array([[9, 5, 7]]), [[7, 5]], 3, trie=trie) == pytest.approx(1 / math.log2(3))


def test_one_target_a_user_may_come_as_an_array():
    recommended = np.array([[4, 5], [6, -1]])
    assert evaluation.mrr(recommended, np.array([5, 6]), 2) == pytest.approx(0.75)


def test_ids_and_catalogs_as_large_as_int64_holds():
    item = 1_700_000_000_000_000_000
    recommended, targets = np.full((8, 3), item), np.full(8, item)
    for metric in (evaluation.hit_rate, evaluation.ndcg, evaluation.mrr, evaluation.recall):
        assert metric(recommended, targets, 3) == 1
        assert metric(recommended + 1, targets, 3) == 0
    assert evaluation.ranks(recommended, targets).tolist() == [1] * 8
    assert evaluation.repeat_rate(recommended, 3) == pytest.approx(2 / 3)
    assert evaluation.coverage(recommended, 3, 2**62) == 2**-62
    assert evaluation.gini(recommended, 3, 2**62) == pytest.approx(1)


def test_sequences_become_items():
    trie = TokenTrie.from_sequences([[1, 2], [3, 4]], vocab_size=6, end_token_id=5, item_ids=[8, 9])
    ids = evaluation.resolve_lists(trie, [[[3, 4], [1, 2, 5], [1]], [[]]], 4)
    assert ids.tolist() == [[9, 8, -2, -1], [-2, -1, -1, -1]]


def test_control_symbols_must_pair_up_as_often_as_asked():
    begin, end = 1, 2
    responses = [[9, 1, 7, 2, 9, 1, 8, 2], [1, 7, 1, 8, 2, 2], [1, 7, 2], [9, 9]]
    rate = lambda n: evaluation.control_symbol_rate(  # noqa: E731
        responses, begin_token_id=begin, end_token_id=end, num_items=n
    )
    assert (rate(2), rate(1), rate(0)) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1, 2]], [1], 3), "k=3"),
        (([[1, 2]], [1, 2], 1), "of 2 users"),
        (([[1, 2]], [[]], 1), r"targets\[0\] is empty"),
        (([1, 2], [1], 1), "shape"),
        (([[1, 2]], [-1], 1), "item ids from 0"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluation.hit_rate(*arguments)


def test_metrics_need_no_torch():
    code = "import sys, gentrie.evaluation; assert 'torch' not in sys.modules, 'torch was imported'"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
