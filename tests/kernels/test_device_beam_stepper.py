"""The beam search on a device against the one that the host drives: the same items and scores."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from device_waits import NoWaits

pytest.importorskip("transformers")

from hypothesis import given
from hypothesis import strategies as st
from strategies import catalogs, examples

from gentrie import ItemFilter, TokenTrie
from gentrie.device import DeviceBeamStepper, DeviceFilter, DeviceTrie, FilterBank, TrieBank, beam_stepper
from gentrie.generation import BeamStepper
from gentrie.kernels.beam_step import MAX_BEAM_WIDTH, beam_step, launch_beam_step

TOLERANCE = 2e-5
WIDTH = 128  # of logits: catalogs hold up to 116 tokens


class Request(NamedTuple):
    """What a prompt searches, and the number that its logits depend on."""

    trie: TokenTrie
    item_filter: ItemFilter | None
    number: int


def logits_of(number: int, path: list[int]) -> torch.Tensor:
    """Random logits of a place."""
    seed = zlib.crc32(np.array([number, *path], dtype=np.int64).tobytes())
    return torch.from_numpy(2 * np.random.Generator(np.random.PCG64(seed)).standard_normal(WIDTH, dtype=np.float32))


def by_host(request: Request, **options: Any) -> Any:
    """What :class:`BeamStepper` finds."""
    stepper = BeamStepper(request.trie, **options)
    stepper.add_request(0, item_filter=request.item_filter)
    paths: dict[int, list[int]] = {}
    while len(rows := stepper.rows()):
        found = []
        for at in range(len(rows)):
            fed = rows.tokens[rows.indptr[at] : rows.indptr[at + 1]].tolist()
            path = paths.get(int(rows.parents[at]), []) + fed
            paths[int(rows.handles[at])] = path
            count = int(rows.logit_counts[at])
            found += [logits_of(request.number, path[:end]) for end in range(len(path) - count + 1, len(path) + 1)]
        stepper.step(torch.stack(found))
    return stepper.pop_result(0)


def drive(stepper: DeviceBeamStepper, numbers: list[int], *, one_each: bool = True, narrow: Any = None) -> Any:
    """Search to the end with the logits of these requests."""
    paths: list[list[list[int]]] = [[[] for _ in range(stepper.beam_width)] for _ in numbers]
    for step in range(stepper.max_length):
        beams = [own[:1] if one_each and step == 0 else own for own in paths]
        logits = torch.stack(
            [logits_of(number, path) for number, own in zip(numbers, beams, strict=True) for path in own]
        )
        known = None
        if narrow is not None:
            logits, known = logits[:, narrow], logits.logsumexp(1).to(stepper.device)
        tokens, parents = stepper.step(logits.to(stepper.device), normalizers=known)
        paths = [
            [[*before[parent], token] if token >= 0 else [] for token, parent in zip(*row, strict=True)]
            for before, *row in zip(paths, tokens.tolist(), parents.tolist(), strict=True)
        ]
    return stepper.result()


def check(found: Any, request: Request, **options: Any) -> None:
    """The same items and scores, in order, to rounding."""
    expected = by_host(request, **options)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=TOLERANCE, atol=TOLERANCE)
    for at, (sequence, score) in enumerate(zip(expected.sequences, expected.scores, strict=True)):
        others = np.delete(expected.scores, at)
        if (np.abs(others - score) > 10 * TOLERANCE).all():
            assert found.sequences[at] == sequence
            np.testing.assert_allclose(
                found.token_scores[at], expected.token_scores[at], rtol=TOLERANCE, atol=10 * TOLERANCE
            )
    assert len({tuple(sequence) for sequence in found.sequences}) == len(found.sequences)
    for sequence, ids in zip(found.sequences, found.item_ids, strict=True):
        allowed = request.item_filter
        assert ids.tolist() == (request.trie if allowed is None else allowed).resolve(sequence).tolist()
        assert len(ids)


@st.composite
def filters_of(draw: st.DrawFn, trie: TokenTrie) -> ItemFilter | None:
    """No filter, or one that leaves some items, or none."""
    if draw(st.booleans()):
        return None
    every = sorted(set(trie.items_below(0).tolist()))
    return ItemFilter.from_item_ids(trie, draw(st.lists(st.sampled_from(every))))


OPTIONS = st.fixed_dictionaries(
    {
        "beam_width": st.sampled_from([1, 2, 3, 7, 20]),
        "scope": st.sampled_from(["trie", "vocab"]),
        "length_penalty": st.sampled_from([0.0, 1.0, 2.0, -0.5]),
        "early_stopping": st.sampled_from([False, True, "never"]),
        "max_length": st.sampled_from([None, None, 1, 3]),
    }
)


@examples(30)
@given(st.data())
def test_items_and_scores_of_the_host_driven_search(data: st.DataObject) -> None:
    options = data.draw(OPTIONS)
    tries = [data.draw(catalogs(min_item_id=0)).build() for _ in range(data.draw(st.integers(1, 2)))]
    requests = []
    for number in range(data.draw(st.integers(1, 3))):
        trie = data.draw(st.sampled_from(tries))
        requests.append(Request(trie, data.draw(filters_of(trie)), number))
    bank, filters = TrieBank("cpu", capacity=3), FilterBank("cpu", capacity=3)
    rows = {id(trie): bank.add(DeviceTrie(trie, "cpu")) for trie in tries}
    stepper = DeviceBeamStepper(
        bank,
        num_prompts=len(requests),
        trie_index=[rows[id(request.trie)] for request in requests],
        filters=filters,
        filter_index=[
            -1 if request.item_filter is None else filters.add(DeviceFilter(request.item_filter, "cpu"))
            for request in requests
        ],
        **options,
    )
    limit = options["max_length"] or max(trie.max_depth for trie in tries)
    for _ in range(2):
        for found, request in zip(drive(stepper, [0, 1, 2][: len(requests)]), requests, strict=True):
            check(found, request, **options | {"max_length": limit})
        stepper.reset()


@st.composite
def fixed_ids(draw: st.DrawFn) -> TokenTrie:
    """Semantic ids: sequences of one length without end token, some of which share prefixes."""
    length = draw(st.integers(1, 4))
    code = st.integers(4, 4 + draw(st.sampled_from([1, 3, 20])))
    row = st.lists(code, min_size=length, max_size=length)
    return TokenTrie.from_sequences(draw(st.lists(row, min_size=1, max_size=40)), vocab_size=WIDTH)


@examples(20)
@given(st.data())
def test_ids_of_one_length_take_one_operation_a_step(data: st.DataObject) -> None:
    """The same found with the catalog's columns alone, rows of all beams from the start, and the general steps."""
    trie, options = data.draw(fixed_ids()), data.draw(OPTIONS)
    request = Request(trie, data.draw(filters_of(trie)), 5)
    filters = None if request.item_filter is None else DeviceFilter(request.item_filter, "cpu")
    for fixed_length in (None, False):
        stepper = DeviceBeamStepper(
            DeviceTrie(trie, "cpu"), num_prompts=2, filters=filters, fixed_length=fixed_length, **options
        )
        narrow = trie.vocabulary.tolist() if data.draw(st.booleans()) else None
        for found in drive(stepper, [5, 5], one_each=data.draw(st.booleans()), narrow=narrow):
            check(found, request, **options)


def launches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Searches run the kernels from here on; the rows of logits of each launch."""
    rows: list[int] = []

    def launch(logits: torch.Tensor, *arguments: Any) -> Any:
        rows.append(len(logits))
        return launch_beam_step(logits, *arguments)

    monkeypatch.setattr(beam_stepper, "beam_step", launch)
    return rows


@examples(3)
@given(st.data())
def test_the_kernels_find_the_same(device: str, data: st.DataObject) -> None:
    trie = data.draw(st.one_of(fixed_ids(), catalogs(min_item_id=0).map(lambda catalog: catalog.build())))
    options = data.draw(OPTIONS) | {"beam_width": data.draw(st.integers(1, 3)), "max_length": 3}
    request = Request(trie, data.draw(filters_of(trie)), 3)
    filters = None if request.item_filter is None else DeviceFilter(request.item_filter, device)
    stepper = DeviceBeamStepper(DeviceTrie(trie, device), num_prompts=1, filters=filters, **options)
    with pytest.MonkeyPatch.context() as patch:
        rows = launches(patch)
        check(drive(stepper, [3])[0], request, **options)
    assert rows == [1] + [options["beam_width"]] * (stepper.max_length - 1)


def test_kernels_keep_twice_the_widest_search(device: str) -> None:
    trie = TokenTrie.from_sequences([[token, 5] for token in range(4, 1500)], vocab_size=1500)
    logits = torch.randn(2, 1500, generator=torch.Generator().manual_seed(0))

    def arguments(place: str) -> Any:
        states, before = torch.zeros(2, dtype=torch.int64, device=place), torch.tensor([0.0, -0.1], device=place)
        rows = (logits.to(place), states, before, 2, MAX_BEAM_WIDTH, False, None, False, trie.max_branching)
        return *rows, tries[place].descriptors, None, None, None

    tries = {place: DeviceTrie(trie, place) for place in {"cpu", device}}
    for ours, expected in zip(launch_beam_step(*arguments(device)), beam_step(*arguments("cpu")), strict=True):
        torch.testing.assert_close(ours.cpu(), expected, rtol=1e-5, atol=1e-5)


def test_done_flags_and_what_steps_behind_the_end_find() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [5, 7], [8, 9]], vocab_size=10)
    stepper = DeviceBeamStepper(trie, num_prompts=1, beam_width=2, device="cpu")
    assert not stepper.is_done.any()
    with pytest.raises(ValueError, match="prompt 0 is not finished after 0 steps"):
        stepper.result()
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(0))
    first, states = stepper.step(logits[:1])[0].clone(), stepper.states
    assert sorted(first.flatten().tolist()) == [5, 8]
    tokens, parents = stepper.step(logits)
    found = stepper.result()[0]
    assert stepper.is_done.all()
    assert stepper.states is states
    assert [
        [int(first[0, parent]), token] for parent, token in zip(parents[0].tolist(), tokens[0].tolist(), strict=True)
    ] == (found.sequences)
    assert stepper.step(logits) == (stepper.tokens, stepper.parents)
    assert stepper.tokens.tolist() == [[-1, -1]]
    again = stepper.result(1)[0]
    assert again.sequences == found.sequences[:1]
    assert again.scores.tolist() == found.scores[:1].tolist()


def test_a_swapped_catalog_while_requests_finish_on_the_former() -> None:
    old = TokenTrie.from_sequences([[5, 6], [5, 7], [8, 9]], vocab_size=10)
    new = TokenTrie.from_sequences([[4, 6], [4, 7], [9, 9], [9, 8, 7]], vocab_size=10)
    bank = TrieBank("cpu", capacity=2)
    row = bank.add(DeviceTrie(old, "cpu"))
    stepper = DeviceBeamStepper(bank, num_prompts=2, beam_width=4, trie_index=[row, row], max_length=3)
    logits = torch.zeros(8, 10)
    stepper.step(logits)
    former = bank.swap(row, DeviceTrie(new, "cpu"))
    stepper.stay_on(row, former)
    for _ in range(2):
        stepper.step(logits)
    assert [sorted(found.sequences) for found in stepper.result()] == [[[5, 6], [5, 7], [8, 9]]] * 2
    stepper.reset(trie_index=torch.tensor([row, former]))
    for _ in range(3):
        stepper.step(logits)
    assert [sorted(found.sequences) for found in stepper.result()] == [
        [[4, 6], [4, 7], [9, 8, 7], [9, 9]],
        [[5, 6], [5, 7], [8, 9]],
    ]


@pytest.mark.parametrize("fixed_length", [True, False])
def test_no_step_looks_at_values(fixed_length: bool) -> None:
    trie = TokenTrie.from_sequences([[5, 6], [5, 7], [8, 9]], vocab_size=10)
    bank = TrieBank("cpu", capacity=1)
    bank.add(DeviceTrie(trie, "cpu"))
    stepper = DeviceBeamStepper(
        bank, num_prompts=2, beam_width=2, trie_index=[0, 0], fixed_length=fixed_length, early_stopping="never"
    )
    places = [part.data_ptr() for part in (stepper.states, stepper.scores, stepper.tokens, stepper.parents)]
    with NoWaits():
        stepper.reset()
        stepper.step(torch.zeros(2, 10))
        for _ in range(3):
            stepper.step(torch.zeros(4, 10))
        stepper.stay_on(0, 0)
        done = stepper.is_done
    with pytest.raises(AssertionError, match="waits for the device"), NoWaits():
        stepper.result()
    assert done.all()
    assert places == [part.data_ptr() for part in (stepper.states, stepper.scores, stepper.tokens, stepper.parents)]


def test_gradients_are_not_recorded() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [5, 7], [8, 9]], vocab_size=10)
    stepper = DeviceBeamStepper(trie, num_prompts=1, beam_width=2, device="cpu")
    stepper.step(torch.zeros(1, 10, requires_grad=True))
    assert not stepper.scores.requires_grad


@pytest.mark.parametrize("fixed_length", [True, False])
def test_a_filter_that_leaves_nothing_ends_the_search(fixed_length: bool) -> None:
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10)
    nothing = DeviceFilter(ItemFilter.from_item_ids(trie, []), "cpu")
    stepper = DeviceBeamStepper(DeviceTrie(trie, "cpu"), num_prompts=1, filters=nothing, fixed_length=fixed_length)
    assert not stepper.is_done.any()
    stepper.step(torch.zeros(1, 10))
    assert stepper.is_done.all()
    found = stepper.result()[0]
    assert (found.sequences, found.scores.tolist()) == ([], [])


def test_items_of_other_lengths_than_was_said_are_not_found() -> None:
    trie = TokenTrie.from_sequences([[4], [5, 6], [7, 8, 9]], vocab_size=10)
    stepper = DeviceBeamStepper(trie, num_prompts=1, beam_width=5, fixed_length=True, max_length=2, device="cpu")
    for _ in range(2):
        stepper.step(torch.zeros(5, 10))
    assert stepper.result()[0].sequences == [[5, 6]]


def test_bad_arguments_are_named() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10)
    other = TokenTrie.from_sequences([[5, 6]], vocab_size=10)
    bank, filters = TrieBank("cpu", capacity=3), FilterBank("cpu", capacity=2)
    bank.add(DeviceTrie(trie, "cpu"))
    filters.add(DeviceFilter(ItemFilter.from_item_ids(other, [0]), "cpu"))
    for error, message, options in (
        (TypeError, "trie is a list", {"trie": []}),
        (ValueError, "trie is an empty bank", {"trie": TrieBank("cpu")}),
        (ValueError, "trie_index is missing", {"trie": bank}),
        (ValueError, r"trie_index has shape \(1,\), expected \[2\]", {"trie": bank, "trie_index": [0]}),
        (ValueError, "row=1 is empty", {"trie": bank, "trie_index": [0, 1]}),
        (ValueError, r"trie_index\[1\]=3 is outside \[0, 2\]", {"trie": bank, "trie_index": [0, 3]}),
        (TypeError, "trie_index has dtype float64", {"trie": bank, "trie_index": [0.5, 1.5]}),
        (ValueError, "trie_index is given without a bank", {"trie_index": [0, 0]}),
        (ValueError, "filter_index is given without a bank", {"filter_index": [0, 0]}),
        (ValueError, "filter_index.0.=-2 is outside", {"filters": filters, "filter_index": [-2, 0]}),
        (TypeError, "filters is a list", {"filters": [1]}),
        (ValueError, "beam_width=513 is outside", {"beam_width": 513}),
        (ValueError, "num_prompts=0 is outside", {"num_prompts": 0}),
        (ValueError, "max_length=0 is outside", {"max_length": 0}),
        (ValueError, "scope='all' is not one of", {"scope": "all"}),
        (ValueError, "early_stopping=1 is not one of", {"early_stopping": 1}),
        (ValueError, "length_penalty=nan is not a finite number", {"length_penalty": float("nan")}),
        (ValueError, r"length_penalty=2000.0: 2 \*\* length_penalty is no float32", {"length_penalty": 2000.0}),
    ):
        arguments: dict[str, Any] = {"trie": trie, "num_prompts": 2, "device": "cpu"} | options
        with pytest.raises(error, match=message):
            DeviceBeamStepper(arguments.pop("trie"), **arguments)
    with pytest.raises(ValueError, match="trie"):
        DeviceBeamStepper(trie, num_prompts=1, filters=DeviceFilter(ItemFilter.from_item_ids(other, [0]), "cpu"))


def test_bad_logits_are_named() -> None:
    trie = TokenTrie.from_sequences([[5, 6], [7, 8]], vocab_size=10)
    stepper = DeviceBeamStepper(trie, num_prompts=2, beam_width=3, scope="vocab", device="cpu")
    for message, logits, known in (
        (r"logits has shape \(5, 10\), expected \[6, V\]", torch.zeros(5, 10), None),
        (r"logits has shape \(6,\), expected \[6, V\]", torch.zeros(6), None),
        ("logits has 9 columns, expected the vocabulary's 10 or the catalog's 4", torch.zeros(6, 9), None),
        (r"normalizers has shape \(1,\), expected \[6\]", torch.zeros(6, 10), torch.zeros(1)),
        ("normalizers is missing", torch.zeros(6, 4), None),
    ):
        with pytest.raises(ValueError, match=message):
            stepper.step(logits, normalizers=known)
    stepper.step(torch.zeros(2, 10))
    with pytest.raises(ValueError, match=r"logits has shape \(2, 10\), expected \[6, V\]"):
        stepper.step(torch.zeros(2, 10))
    bad = torch.zeros(6, 10)
    bad[3, 6] = float("nan")
    stepper.step(bad)
    with pytest.raises(ValueError, match="logits of prompt 1 are not numbers"):
        stepper.result()
    with pytest.raises(ValueError, match="stay_on needs a TrieBank"):
        stepper.stay_on(0, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("fixed_length", [True, False])
def test_a_captured_step_serves_other_requests_and_a_swapped_catalog(fixed_length: bool) -> None:
    """One graph of the step for all beams, replayed at each depth, after resets and a swap, without a new capture."""
    rng, beams = np.random.default_rng(0), 8
    old, new = (TokenTrie.from_sequences(rng.integers(4, 30, size=(300, 3)), vocab_size=WIDTH) for _ in range(2))
    bank = TrieBank("cuda", capacity=2, max_branching=30)
    row = bank.add(DeviceTrie(old, "cuda"))
    stepper = DeviceBeamStepper(
        bank, num_prompts=2, beam_width=beams, trie_index=[row, row], fixed_length=fixed_length, max_length=3
    )
    logits = torch.zeros(2 * beams, WIDTH, device="cuda")
    stepper.step(logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        stepper.step(logits)

    def search(tries: list[TokenTrie], numbers: list[int]) -> None:
        paths: list[list[list[int]]] = [[[]] * beams] * 2
        for _ in range(3):
            rows = [logits_of(number, path) for number, own in zip(numbers, paths, strict=True) for path in own]
            logits.copy_(torch.stack(rows))
            graph.replay()
            tokens, parents = stepper.tokens.tolist(), stepper.parents.tolist()
            paths = [
                [[*before[parent], token] if token >= 0 else [] for token, parent in zip(*chosen, strict=True)]
                for before, *chosen in zip(paths, tokens, parents, strict=True)
            ]
        for found, trie, number in zip(stepper.result(), tries, numbers, strict=True):
            check(found, Request(trie, None, number), beam_width=beams)

    stepper.reset()
    search([old, old], [1, 2])
    former = bank.swap(row, DeviceTrie(new, "cuda"))
    stepper.reset(trie_index=torch.tensor([row, former], device="cuda"))
    search([new, old], [3, 4])
    stepper.stay_on(former, row)
    stepper.reset()
    search([new, new], [5, 6])


@pytest.mark.gpu
@pytest.mark.parametrize("fixed_length", [True, False])
def test_no_step_waits_for_the_device(fixed_length: bool) -> None:
    trie = TokenTrie.from_sequences(np.random.default_rng(0).integers(4, 30, size=(300, 3)), vocab_size=WIDTH)
    bank, filters = TrieBank("cuda", capacity=1), FilterBank("cuda", capacity=1)
    bank.add(DeviceTrie(trie, "cuda"))
    filters.add(DeviceFilter(ItemFilter.all_items(trie).deny([0]), "cuda"))
    stepper = DeviceBeamStepper(
        bank,
        num_prompts=2,
        trie_index=[0, 0],
        filters=filters,
        filter_index=[0, -1],
        fixed_length=fixed_length,
        max_length=3,
    )
    logits, rows = torch.zeros(20, WIDTH, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    stepper.step(logits)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        stepper.reset(trie_index=rows, filter_index=rows)
        stepper.step(logits[:2])
        for _ in range(2):
            stepper.step(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(len(found.sequences) == 10 for found in stepper.result())
