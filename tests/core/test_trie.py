"""Every lookup of the trie, single and batched, against the oracle; and that the same set gives the same bytes."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracle import Oracle
from strategies import BEGIN, OUTSIDER, Catalog, catalogs, examples

from gentrie import TokenTrie


@given(catalogs())
@examples(150)
def test_every_place_answers_as_the_oracle_says(catalog: Catalog):
    trie, oracle = catalog.build(), catalog.oracle()
    alphabet = [*range(-1, catalog.vocab_size + 1), 2**31, -(2**40)]
    for prefix in oracle.prefixes():
        state = trie.walk(prefix)
        assert state >= 0
        assert (state == 0) == (prefix == ())
        choices = oracle.next_tokens(prefix)
        assert trie.next_tokens(state).tolist() == choices
        assert trie.next_tokens(state).dtype == np.int32
        assert trie.is_leaf(state) is (prefix in oracle.items)
        assert trie.num_sequences_below(state) == len(oracle.below(prefix))
        assert trie.items_below(state).tolist() == oracle.items_below(prefix)
        assert trie.forced_tokens(state).tolist() == oracle.forced(prefix)
        assert trie.resolve(prefix).tolist() == oracle.resolve(prefix)
        for token in alphabet:
            after = trie.advance(state, token)
            assert after == (trie.walk([*prefix, token]) if token in choices else -1)


@given(catalogs())
@examples(80)
def test_states_name_places(catalog: Catalog):
    """Different places have different states, and each state belongs to the trie."""
    trie, oracle = catalog.build(), catalog.oracle()
    states = [trie.walk(prefix) for prefix in oracle.prefixes()]
    assert len(set(states)) == len(states)
    tokens, indptr = trie.next_tokens_batch(states)
    assert tokens.dtype == np.int32
    assert indptr.dtype == np.int64
    for row, prefix in enumerate(oracle.prefixes()):
        assert tokens[indptr[row] : indptr[row + 1]].tolist() == oracle.next_tokens(prefix)


@given(catalogs(), st.data())
@examples(80)
def test_batched_calls_are_the_single_ones(catalog: Catalog, data: st.DataObject):
    trie, oracle = catalog.build(), catalog.oracle()
    places = st.sampled_from([-1, -2, *(trie.walk(prefix) for prefix in oracle.prefixes())])
    states = data.draw(st.lists(places, max_size=20))
    tokens = data.draw(st.lists(st.integers(-2, catalog.vocab_size + 1), min_size=len(states), max_size=len(states)))
    after = trie.advance_batch(states, tokens, num_threads=data.draw(st.sampled_from([1, 3])))
    assert after.dtype == np.int64
    assert after.tolist() == [trie.advance(s, t) for s, t in zip(states, tokens, strict=True)]
    values, indptr = trie.next_tokens_batch(states)
    assert indptr[0] == 0
    assert [values[a:b].tolist() for a, b in itertools.pairwise(indptr)] == [
        trie.next_tokens(state).tolist() for state in states
    ]


@given(catalogs(), st.data())
@examples(80)
def test_walk_and_resolve_of_any_tokens(catalog: Catalog, data: st.DataObject):
    trie, oracle = catalog.build(), catalog.oracle()
    base = data.draw(st.sampled_from(oracle.sequences))
    cut = data.draw(st.integers(0, len(base)))
    tokens = (*base[:cut], *data.draw(st.lists(st.integers(-1, catalog.vocab_size), max_size=3)))
    assert (trie.walk(tokens) >= 0) == (tokens in oracle.prefixes())
    assert trie.resolve(tokens).tolist() == oracle.resolve(tokens)
    assert trie.resolve(tokens).dtype == np.int64
    for middle in range(len(tokens) + 1):
        assert trie.walk(tokens[middle:], trie.walk(tokens[:middle])) == trie.walk(tokens)


@given(catalogs())
@examples(80)
def test_to_sequences_gives_the_catalog_back(catalog: Catalog):
    trie, oracle = catalog.build(), catalog.oracle()
    values, indptr, item_ids, item_indptr = trie.to_sequences()
    assert [a.dtype for a in (values, indptr, item_ids, item_indptr)] == [np.int32, np.int64, np.int64, np.int64]
    rows = [tuple(values[a:b].tolist()) for a, b in itertools.pairwise(indptr)]
    items = [item_ids[a:b].tolist() for a, b in itertools.pairwise(item_indptr)]
    assert rows == oracle.sequences
    assert items == [sorted(oracle.items[row]) for row in rows]


@given(catalogs())
@examples(80)
def test_facts(catalog: Catalog):
    trie, oracle = catalog.build(), catalog.oracle()
    assert trie.root == 0
    assert trie.num_sequences == len(oracle.sequences)
    assert trie.num_items == sum(map(len, oracle.items.values()))
    assert (trie.vocab_size, trie.end_token_id) == (catalog.vocab_size, catalog.end)
    assert trie.vocabulary.tolist() == sorted({token for s in oracle.sequences for token in s})
    assert trie.vocabulary.dtype == np.int32
    assert trie.max_depth == max(map(len, oracle.sequences))
    assert trie.max_branching == max(len(oracle.next_tokens(prefix)) for prefix in oracle.prefixes())
    assert trie.nbytes == sum(trie.nbytes_by_array.values())
    trie.verify()


def states_by_definition(
    trie: TokenTrie, oracle: Oracle, row: list[int], begin: int | None, start: int | None
) -> list[int]:
    """-2 outside items; inside, the state of what of the item stands before the token, -1 where that is none."""
    states: list[int] = []
    written: tuple[int, ...] | None = None
    for position, token in enumerate(row):
        if begin is None and position == start:
            written = ()
        if token == begin:
            states.append(-2)
            written = ()
            continue
        states.append(-2 if written is None else trie.walk(written) if written in oracle.prefixes() else -1)
        if written is not None:
            written = (*written, token)
            if written in oracle.items:
                written = None
    return states


@given(catalogs(), st.data())
@examples(120)
def test_token_states(catalog: Catalog, data: st.DataObject):
    trie, oracle = catalog.build(), catalog.oracle()
    item = st.sampled_from(oracle.sequences).flatmap(lambda s: st.integers(0, len(s)).map(lambda n: list(s[:n])))
    junk = st.lists(st.integers(-1, catalog.vocab_size), max_size=2)
    parts = st.lists(st.one_of(item, item.map(lambda s: [BEGIN, *s]), junk, st.just([-100])), max_size=6)
    rows = [list(itertools.chain.from_iterable(data.draw(parts))) for _ in range(data.draw(st.integers(1, 4)))]
    length = max(1, *map(len, rows)) if len(rows) > 1 else max(1, len(rows[0]))
    rows = [row + [-100] * (length - len(row)) for row in rows]

    triggered = trie.token_states(np.array(rows), begin_token_id=BEGIN)
    assert triggered.tolist() == [states_by_definition(trie, oracle, row, BEGIN, None) for row in rows]

    starts = data.draw(st.lists(st.integers(0, length), min_size=len(rows), max_size=len(rows)))
    assert trie.token_states(rows, start=starts).tolist() == [
        states_by_definition(trie, oracle, row, None, start) for row, start in zip(rows, starts, strict=True)
    ]
    assert trie.token_states(rows, start=starts[0]).tolist() == [
        states_by_definition(trie, oracle, row, None, starts[0]) for row in rows
    ]
    first = [next((i for i, token in enumerate(row) if token >= 0), None) for row in rows]
    assert trie.token_states(rows).tolist() == [
        states_by_definition(trie, oracle, row, None, start) for row, start in zip(rows, first, strict=True)
    ]


def test_token_states_keeps_shape_and_kind():
    torch = pytest.importorskip("torch")
    trie = TokenTrie.from_sequences([[5, 6], [5, 7]], vocab_size=10, end_token_id=1)
    flat = [9, 5, 6, 1, 9, 0, 5, 7]
    expected = trie.token_states(flat, begin_token_id=0)
    assert expected.dtype == np.int64
    for dtype in (np.uint8, np.int16, np.int32, np.int64):
        assert np.array_equal(trie.token_states(np.array(flat, dtype=dtype), begin_token_id=0), expected)
    cube = torch.tensor(flat, dtype=torch.int32).repeat(2, 3, 1)
    states = trie.token_states(cube, begin_token_id=0)
    assert isinstance(states, torch.Tensor)
    assert states.dtype == torch.int64
    assert states.shape == (2, 3, len(flat))
    assert (states == torch.from_numpy(expected)).all()
    starts = trie.token_states(cube, start=np.full((2, 3), 1))
    assert starts[1, 2].tolist() == trie.token_states(flat, start=1).tolist()
    assert trie.token_states(np.zeros((2, 0), dtype=np.int64)).shape == (2, 0)


# --- The same set gives the same bytes --------------------------------------------------------------------------------


def saved_bytes(trie: TokenTrie, folder: Path) -> bytes:
    path = folder / "trie.safetensors"
    trie.save(path)
    return path.read_bytes()


def test_any_form_order_and_number_of_threads_gives_the_same_bytes(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("same")

    @given(catalogs(), st.randoms())
    @examples(60)
    def check(catalog: Catalog, order: random.Random):
        ids = list(range(len(catalog.rows))) if catalog.item_ids is None else catalog.item_ids
        settled = catalog.build()
        expected = saved_bytes(settled, folder)
        pairs = list(zip(catalog.rows, ids, strict=True))
        pairs += order.choices(pairs, k=order.randint(0, 5))  # repeats change nothing
        order.shuffle(pairs)
        rows, item_ids = [row for row, _ in pairs], [item for _, item in pairs]
        values = np.array([token for row in rows for token in row])
        indptr = np.cumsum([0, *map(len, rows)])
        same = {"vocab_size": catalog.vocab_size, "end_token_id": catalog.end, "item_ids": item_ids}
        for threads in (1, 2, 5):
            trie = TokenTrie.from_sequences(rows, **same, num_threads=threads)
            assert trie.fingerprint == settled.fingerprint
            assert saved_bytes(trie, folder) == expected
        for dtype in (np.uint8, np.uint16, np.int32, np.uint32, np.int64, np.uint64, ">i4"):
            form = (values.astype(dtype), indptr.astype(order.choice([np.int32, np.int64, np.uint64])))
            assert saved_bytes(TokenTrie.from_sequences(form, **same), folder) == expected
        for dtype in (np.uint8, np.uint16, np.uint32, np.uint64, np.int8, np.int16, np.int32, np.int64):
            form = [np.array(row, dtype=dtype) for row in rows]
            assert saved_bytes(TokenTrie.from_sequences(form, **same), folder) == expected

    check()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_rectangular_arrays(dtype: type, tmp_path: Path):
    torch = pytest.importorskip("torch")
    codes = np.random.default_rng(0).integers(3, 9, (200, 4))
    expected = saved_bytes(TokenTrie.from_sequences(codes.tolist(), vocab_size=9), tmp_path)
    wide = np.zeros((400, 8), dtype=dtype)
    wide[::2, ::2] = codes
    for form in (codes.astype(dtype), np.asfortranarray(codes.astype(dtype)), wide[::2, ::2], tuple(map(tuple, codes))):
        assert saved_bytes(TokenTrie.from_sequences(form, vocab_size=9), tmp_path) == expected
    tensor = torch.from_numpy(codes.astype(dtype))
    assert saved_bytes(TokenTrie.from_sequences(tensor, vocab_size=9), tmp_path) == expected


def test_from_semantic_ids():
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 8, (300, 3))
    table = 2 + rng.permutation(24).reshape(3, 8)
    by_table = TokenTrie.from_semantic_ids(codes, token_ids=table, vocab_size=40)
    by_hand = TokenTrie.from_sequences(table[np.arange(3), codes], vocab_size=40)
    assert by_table.fingerprint == by_hand.fingerprint
    by_stride = TokenTrie.from_semantic_ids(codes, token_ids=(10, 8), vocab_size=40, item_ids=np.arange(300) + 7)
    assert by_stride.resolve(10 + codes[5] + [0, 8, 16]).tolist() == [
        row + 7 for row in range(300) if (codes[row] == codes[5]).all()
    ]


# --- Catalogs too large for the oracle --------------------------------------------------------------------------------


def check_large(trie: TokenTrie, rows: np.ndarray, seed: int) -> None:
    """A catalog of rows [N, L], without end token, against NumPy."""
    distinct, group = np.unique(rows, axis=0, return_inverse=True)
    values, indptr, item_ids, item_indptr = trie.to_sequences()
    assert np.array_equal(values.reshape(distinct.shape), distinct)
    assert np.array_equal(np.diff(indptr), np.full(len(distinct), rows.shape[1]))
    assert np.array_equal(item_ids, np.argsort(group.ravel(), kind="stable"))
    assert np.array_equal(np.diff(item_indptr), np.bincount(group.ravel()))
    assert np.array_equal(trie.vocabulary, np.unique(rows))

    rng = np.random.default_rng(seed)
    states = np.zeros(500, dtype=np.int64)
    chosen = rng.integers(0, len(distinct), states.size)
    for depth in range(rows.shape[1]):
        tokens, offsets = trie.next_tokens_batch(states)
        for i in range(0, states.size, 50):
            same = (distinct[:, :depth] == distinct[chosen[i], :depth]).all(axis=1)
            assert np.array_equal(tokens[offsets[i] : offsets[i + 1]], np.unique(distinct[same, depth]))
            assert trie.num_sequences_below(int(states[i])) == same.sum()
        missing = rng.integers(0, trie.vocab_size, states.size)
        after = trie.advance_batch(states, missing, num_threads=2)
        for i in range(0, states.size, 50):
            same = (distinct[:, :depth] == distinct[chosen[i], :depth]).all(axis=1)
            assert (after[i] >= 0) == (distinct[same, depth] == missing[i]).any()
        states = trie.advance_batch(states, distinct[chosen, depth])
    assert all(trie.is_leaf(int(state)) for state in states)


@pytest.mark.parametrize(
    ("num_tokens", "length", "edge_bytes"),
    [(2, 30, 1), (256, 3, 1), (257, 3, 2), (5_000, 4, 2), (65_536, 3, 2), (65_537, 3, 4), (120_000, 3, 4)],
)
def test_edges_of_every_width(num_tokens: int, length: int, edge_bytes: int, tmp_path: Path):
    rng = np.random.default_rng(num_tokens)
    ids = np.sort(rng.choice(4 * num_tokens, num_tokens, replace=False))
    shapes = [ids[rng.integers(0, num_tokens, (60_000, length))]]
    shapes.append(np.resize(ids, (-(-num_tokens // length), length)))  # every token, so that the width is sure
    stem = np.repeat(shapes[0][:40, :-1], 500, axis=0)  # wide nodes
    shapes.append(np.column_stack([stem, ids[rng.integers(0, num_tokens, len(stem))]]))
    rows = np.concatenate(shapes)
    trie = TokenTrie.from_sequences(rows, vocab_size=4 * num_tokens, num_threads=2)
    assert trie.nbytes_by_array["edge_tokens"] % edge_bytes == 0
    assert trie._core.arrays()["edge_tokens"].itemsize == edge_bytes
    check_large(trie, rows, seed=length)
    expected = saved_bytes(trie, tmp_path)
    order = rng.permutation(len(rows))
    for threads in (1, 5):
        other = TokenTrie.from_sequences(rows[order], vocab_size=4 * num_tokens, item_ids=order, num_threads=threads)
        assert saved_bytes(other, tmp_path) == expected


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("skew", [1, 3])
def test_many_rows_of_which_some_part_early(skew: int, num_threads: int):
    """Large enough that threads begin in the middle of levels and of the leaves' order."""
    rng = np.random.default_rng(skew)
    rows = (1000 * rng.random((300_000, 4)) ** skew).astype(np.int32)
    trie = TokenTrie.from_sequences(rows, vocab_size=1000, num_threads=num_threads)
    trie.verify()
    distinct, first = np.unique(rows, axis=0, return_index=True)
    values, _, item_ids, item_indptr = trie.to_sequences()
    assert np.array_equal(values.reshape(-1, 4), distinct)
    assert np.array_equal(item_ids[item_indptr[:-1]], first)
    assert np.array_equal(np.sort(trie.items_below(trie.root)), np.arange(len(rows)))
    states = np.zeros(len(rows), dtype=np.int64)
    for level in range(4):
        states = trie.advance_batch(states, np.ascontiguousarray(rows[:, level]))
    assert all(row in trie.items_below(int(states[row])) for row in range(0, len(rows), 1000))


def test_long_rows_and_shared_stems():
    """Rows far longer than a sorting key, alike in all but a few places."""
    rng = random.Random(0)
    stem = [rng.randrange(5, 3000) for _ in range(700)]
    rows = []
    for _ in range(200):
        row = stem[: rng.choice([1, 10, 699, 700])] + [rng.randrange(5, 3000) for _ in range(rng.randrange(3))]
        rows += [row, [*row, rng.randrange(5, 8)]]
    trie, oracle = TokenTrie.from_sequences(rows, vocab_size=3000, end_token_id=1), Oracle(rows, 1)
    values, indptr, _, _ = trie.to_sequences()
    assert [tuple(values[a:b]) for a, b in itertools.pairwise(indptr)] == oracle.sequences
    for sequence in oracle.sequences[::20]:
        assert trie.resolve(sequence).tolist() == oracle.resolve(sequence)
    for length in (0, 1, 9, 10, 11, 350, 699, 700):
        prefix = tuple(stem[:length])
        assert trie.next_tokens(trie.walk(prefix)).tolist() == oracle.next_tokens(prefix)


def test_negative_states():
    trie = TokenTrie.from_sequences([[5, 6]], vocab_size=10)
    for state in (-1, -2):
        assert trie.next_tokens(state).size == 0
        assert trie.advance(state, 5) == state
        assert trie.walk([5, 6], state) == state
        assert trie.forced_tokens(state).size == 0
        assert not trie.is_leaf(state)
        assert trie.num_sequences_below(state) == 0
        assert trie.items_below(state).size == 0
    assert trie.advance(0, OUTSIDER) == -1


def test_progress_bar(capsys: pytest.CaptureFixture[str]):
    TokenTrie.from_sequences([[5, 6]], vocab_size=10, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "building" in captured.err


@given(catalogs(), st.data())
@examples(60)
def test_a_list_of_tokens_leads_where_an_array_does(catalog: Catalog, data: st.DataObject):
    trie = catalog.build()
    rows = data.draw(st.lists(st.sampled_from(catalog.rows), min_size=1, max_size=3))
    tokens = [token for row in rows for token in row][: data.draw(st.integers(0, 12))]
    tokens += data.draw(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 80), max_size=2))
    state = data.draw(st.sampled_from([-2, -1, 0, trie.walk(np.array(rows[0][:1]))]))
    assert trie.walk(tokens, state) == trie.walk(np.array(tokens, dtype=np.int64), state)


@pytest.mark.parametrize("token", [True, 1.0, "1", None, 2**63])
def test_a_list_that_holds_no_tokens_is_refused(token: Any):
    with pytest.raises((TypeError, ValueError), match="tokens"):
        TokenTrie.from_sequences([[1, 2]], vocab_size=4).walk([1, token])
