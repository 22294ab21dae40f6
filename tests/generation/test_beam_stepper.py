"""The stepper driven by an engine that batches continuously: requests join and leave at any time."""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from beam_reference import Engine, complete, lock_step, scores
from catalog_strategies import catalogs
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import END, VOCAB_SIZE

from gentrie import TokenTrie
from gentrie.search import BeamItems, BeamStepper, beam_stepper


@given(
    rows=catalogs(max_items=20),
    seed=st.integers(0, 1000),
    narrow=st.booleans(),
    arrays=st.booleans(),
    room=st.sampled_from([0, 16, 512]),
)
@settings(max_examples=60)
def test_requests_that_join_and_leave_at_random(
    rows: list[list[int]], seed: int, narrow: bool, arrays: bool, room: int
) -> None:
    with patch.object(beam_stepper, "_TOKENS_A_CALL", room):
        join_and_leave(rows, seed, narrow, arrays)


def join_and_leave(rows: list[list[int]], seed: int, narrow: bool, arrays: bool) -> None:
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    draw, engine, stepper = random.Random(seed), Engine(), BeamStepper(trie)
    settings_of: dict[int, dict[str, Any]] = {}
    found: dict[int, BeamItems] = {}
    waiting, running = list(range(8)), set[int]()
    left = set[int]()
    while waiting or running:
        while waiting and draw.random() < 0.4:
            request = waiting.pop()
            settings_of[request] = {
                "beam_width": draw.choice([1, 2, 5, 512]),
                "scope": draw.choice(["trie", "vocab"]),
                "length_penalty": draw.choice([0.0, 1.0]),
                "max_length": draw.choice([None, None, 1, 3]),
                "item_filter": draw.choice([None, draw.sample(range(len(rows)), draw.randint(1, len(rows)))]),
            }
            if settings_of[request]["beam_width"] == 512:
                settings_of[request] |= {"num_beam_groups": 4, "diversity_penalty": 1.5}
            stepper.add_request(request, **settings_of[request])
            running.add(request)
        asked = stepper.rows()
        assert stepper.rows() is asked
        if running and draw.random() < 0.1:
            leaving = draw.choice(sorted(running))
            stepper.drop_request(leaving)
            running.remove(leaving)
            left.add(leaving)
        if len(asked):
            logits = engine.logits(asked)
            given: Any = logits.numpy() if arrays else logits
            if narrow:
                sums: Any = logits.logsumexp(-1).numpy() if arrays else logits.logsumexp(-1)
                step = stepper.step(given[:, trie.vocabulary.tolist()], normalizers=sums)
            else:
                step = stepper.step(given)
            assert set(step.finished) <= running
            assert set(step.requests.tolist()) <= running - set(step.finished)
            for at, token in enumerate(step.tokens.tolist()):
                path = engine.paths[int(step.parents[at])] if step.parents[at] >= 0 else []
                path = [*path, *([] if token < 0 else [token, *step.forced[at]])]
                reached = trie.walk(path)
                assert reached == step.states[at] or step.tokens[at] < 0  # inside a run that the engine has read
            engine.forget(stepper.handles_in_use().tolist())
        else:
            stepper.step(torch.empty(0, VOCAB_SIZE))
        for request in sorted(running):
            if stepper.is_finished(request):
                found[request] = stepper.pop_result(request)
                running.remove(request)
    assert found.keys() | left == set(range(8))
    for request, items in found.items():
        chosen = settings_of[request]
        allowed = chosen["item_filter"]
        expected = lock_step(
            complete(trie) if allowed is None else {(*rows[item], END) for item in allowed},
            lambda path, request=request: scores(request, path),
            chosen["beam_width"],
            chosen["scope"],
            chosen["length_penalty"],
            max_length=chosen["max_length"],
            groups=chosen.get("num_beam_groups", 1),
            diversity_penalty=chosen.get("diversity_penalty", 0.0),
        )
        np.testing.assert_allclose(items.scores, [score for score, _ in expected], rtol=1e-5, atol=1e-5)
        assert [tuple(sequence) for sequence in items.sequences] == [path for _, path in expected]


def test_rows_are_asked_for_branches_alone() -> None:
    trie = TokenTrie.from_sequences([[4, 5, 6], [4, 5, 7, 8, 9]], vocab_size=VOCAB_SIZE, end_token_id=END)
    stepper = BeamStepper(trie, beam_width=2)
    stepper.add_request(0)
    rows = stepper.rows()
    assert rows.tokens.tolist() == [4, 5]  # forced from the root on
    assert rows.parents.tolist() == [-1]
    step = stepper.step(Engine().logits(rows))
    assert step.finished == [0]  # both paths are unique
    assert len(stepper.rows()) == 0
    assert sorted(stepper.pop_result(0).sequences) == [[4, 5, 6, END], [4, 5, 7, 8, 9, END]]


def test_runs_are_read_ahead_where_the_call_has_room() -> None:
    trie = TokenTrie.from_sequences([[4, 5, 6, 7, 8], [9, 5, 6, 7, 8]], vocab_size=VOCAB_SIZE, end_token_id=END)
    for requests, each in ((1, [4, 5, 6]), (256, [4, 5]), (257, [4])):  # two beams of a request ask
        stepper = BeamStepper(trie, beam_width=2, scope="vocab")
        for request in range(requests):
            stepper.add_request(request)
        stepper.step(torch.zeros(requests, VOCAB_SIZE))
        rows = stepper.rows()
        assert rows.tokens[: len(each)].tolist() == each
        assert rows.logit_counts.tolist() == [len(each)] * (2 * requests)
        assert len(rows.tokens) == 2 * requests * len(each)


@pytest.mark.parametrize("scope", ["trie", "vocab"])
def test_impossible_items_are_not_found(scope: Any) -> None:
    trie = TokenTrie.from_sequences([[4, 6], [4, 7], [5]], vocab_size=VOCAB_SIZE, end_token_id=END)
    for impossible, left in (([5], [[4, 6, END], [4, 7, END]]), ([5, 7], [[4, 6, END]])):
        stepper = BeamStepper(trie, scope=scope)
        stepper.add_request(0)
        stepper.add_request(1, item_scores=[0.0, 1.0, 2.0], alpha=0.0)
        engine = Engine()
        while len(rows := stepper.rows()):
            logits = engine.logits(rows)
            logits[:, impossible] = -torch.inf
            stepper.step(logits)
        assert sorted(stepper.pop_result(0).sequences) == left
        assert len(stepper.pop_result(1).sequences) == 3  # the model does not count
    stepper = BeamStepper(trie, scope="vocab")
    stepper.add_request(0)
    logits = Engine().logits(stepper.rows())
    logits[:, [4, 5]] = -torch.inf
    assert stepper.step(logits).finished == [0]
    assert stepper.pop_result(0).sequences == []


def test_what_does_not_fit_is_refused_and_changes_nothing() -> None:
    trie = TokenTrie.from_sequences([[4], [5]], vocab_size=VOCAB_SIZE, end_token_id=END)
    stepper = BeamStepper(trie, beam_width=2)
    stepper.add_request(3, scope="vocab")
    with pytest.raises(ValueError, match="request=3 is already there"):
        stepper.add_request(3)
    with pytest.raises(ValueError, match=r"length_penalty=2000.0 is outside \[-32, 32\]"):
        stepper.add_request(4, length_penalty=2000.0)
    with pytest.raises(ValueError, match="request 4 is unknown"):
        stepper.pop_result(4)
    with pytest.raises(TypeError, match=r"trie is a str.*TokenTrie\.load"):
        BeamStepper("x.safetensors")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="request 3 is not finished"):
        stepper.pop_result(3)
    logits = Engine().logits(stepper.rows())
    for wrong, message in (
        (logits[0], "logits has shape"),
        (torch.cat([logits, logits]), "logits has shape"),
        (logits[:, :10], "logits has 10 columns"),
        (logits[:, :3], "normalizers is missing"),
        (logits * torch.nan, "logits of request 3 are not numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            stepper.step(wrong)
    with pytest.raises(ValueError, match="normalizers has shape"):
        stepper.step(logits, normalizers=logits)
    stepper.step(logits)
    while len(stepper.rows()):
        assert stepper.rows().requests.tolist() == [3, 3]
        stepper.step(torch.zeros(2, VOCAB_SIZE))
    assert len(stepper.pop_result(3).sequences) == 2


def test_results_name_the_items_that_may_be_given() -> None:
    """Items that share a sequence, without those that a request's filter closes."""
    rows = [[4, 6], [5], [4, 6], [4, 7], [5]]
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    stepper, engine = BeamStepper(trie, beam_width=4), Engine()
    filters: list[Any] = [None, [1, 2, 3]]
    for request, item_filter in enumerate(filters):
        stepper.add_request(request, item_filter=item_filter)
    while len(asked := stepper.rows()):
        stepper.step(engine.logits(asked))
    for request, items in enumerate(({(0, 2), (1, 4), (3,)}, {(2,), (1,), (3,)})):
        found = stepper.pop_result(request)
        assert {tuple(same.tolist()) for same in found.item_ids} == items
        for tokens, same in zip(found.sequences, found.item_ids, strict=True):
            assert all([*rows[item], END] == tokens for item in same)


@given(
    rows=catalogs(max_items=12), scope=st.sampled_from(["trie", "vocab"]), narrow=st.booleans(), seed=st.integers(0, 99)
)
@settings(max_examples=30)
def test_arrays_give_what_tensors_give(rows: list[list[int]], scope: Any, narrow: bool, seed: int) -> None:
    """Also in half precision, and where tokens are impossible."""
    trie = TokenTrie.from_sequences(rows, vocab_size=VOCAB_SIZE, end_token_id=END)
    found = []
    for arrays in (False, True):
        stepper, engine = BeamStepper(trie, beam_width=4, scope=scope), Engine()
        stepper.add_request(seed)
        while len(asked := stepper.rows()):
            logits: Any = engine.logits(asked).half()
            logits[:, 4 + seed % 3] = -torch.inf
            sums: Any = logits.float().logsumexp(-1) if narrow else None
            logits = logits[:, trie.vocabulary.tolist()] if narrow else logits
            if arrays:
                logits, sums = logits.numpy(), None if sums is None else sums.numpy()
            try:
                stepper.step(logits, normalizers=sums)
            except ValueError as error:  # nothing is possible
                found.append(str(error))
                break
        else:
            found.append(stepper.pop_result(seed))
    tensors, own = found
    if isinstance(tensors, str):
        assert own == tensors
        return
    assert own.sequences == tensors.sequences
    for theirs, mine in zip([tensors.scores, *tensors.token_scores], [own.scores, *own.token_scores], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6)


def test_what_is_no_array_of_real_numbers_is_refused() -> None:
    trie = TokenTrie.from_sequences([[4], [5]], vocab_size=VOCAB_SIZE, end_token_id=END)
    stepper = BeamStepper(trie)
    stepper.add_request(0)
    for wrong in ([["a"] * VOCAB_SIZE], np.zeros((1, VOCAB_SIZE), dtype=bool), [object()]):
        with pytest.raises(TypeError, match="logits has dtype"):
            stepper.step(wrong)  # type: ignore[arg-type]
    stepper.step([[0.0] * VOCAB_SIZE])  # type: ignore[arg-type]
    assert len(stepper.pop_result(0).sequences) == 2
