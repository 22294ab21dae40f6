"""Token bitmasks: filled as the allowed set says, applied as the obvious loop does, in XGrammar's layout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import gentrie  # noqa: E402
from gentrie import TokenTrie, TrieMatcher  # noqa: E402
from gentrie import bitmask as masks  # noqa: E402
from gentrie.kernels import reference  # noqa: E402

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def matcher_of(vocab_size: int) -> gentrie.TrieMatcher:
    rows = [[0, 1], [31, 2], [vocab_size - 1, 3], [vocab_size // 2, 4], [7, 5]]
    return gentrie.TrieMatcher(gentrie.TokenTrie.from_sequences(rows, vocab_size=vocab_size))


def allowed_in(row: Any) -> list[int]:
    return [t for t in range(32 * len(row)) if (int(row[t // 32]) >> t % 32) & 1]


def by_loop(logits: Any, bitmask: Any, limit: int, rows: list[int]) -> Any:
    expected = logits.clone()
    for r in rows:
        words = bitmask[r].tolist()
        for t in range(logits.shape[1]):
            if t >= limit or t >= 32 * len(words) or not (words[t // 32] >> t % 32) & 1:
                expected[r, t] = -torch.inf
    return expected


def random_mask(rows: int, words: int) -> Any:
    return torch.randint(-(2**31), 2**31, (rows, words), dtype=torch.int64).to(torch.int32)


@pytest.mark.parametrize("vocab_size", [*range(32, 97), *range(1000, 1033)])
def test_every_residue_mod_32(vocab_size: int):
    assert masks.get_bitmask_shape(3, vocab_size) == (3, -(-vocab_size // 32))
    matcher, mask = matcher_of(vocab_size), masks.allocate_token_bitmask(3, vocab_size)
    assert mask.dtype == torch.int32
    assert mask.shape == masks.get_bitmask_shape(3, vocab_size)
    assert (mask == -1).all()
    assert matcher.fill_next_token_bitmask(mask, 1)
    assert allowed_in(mask[1]) == sorted({0, 7, 31, vocab_size // 2, vocab_size - 1})
    assert (mask[[0, 2]] == -1).all()
    masks.reset_token_bitmask(mask)
    assert (mask == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "rows", "columns"])
@pytest.mark.parametrize("width", [1, 31, 64, 77])
@pytest.mark.parametrize("vocab_size", [None, 0, 33, 64, 1000])
@pytest.mark.parametrize("indices", [None, [], [2, 0], [1, 1]])
def test_apply_is_the_obvious_loop(dtype: Any, layout: str, width: int, vocab_size: int | None, indices: Any):
    torch.manual_seed(0)
    whole = torch.randn(6, 2 * width).to(dtype)
    logits = {"contiguous": whole[:3, :width].contiguous(), "rows": whole[::2, :width], "columns": whole[:3, ::2]}[
        layout
    ]
    mask, before, outside = random_mask(3, 2), logits.clone(), whole.clone()
    limit = 64 if vocab_size is None else vocab_size
    rows = list(range(3)) if indices is None else indices
    expected = by_loop(before, mask, limit, rows)
    masks.apply_token_bitmask_inplace(logits, mask, vocab_size=vocab_size, indices=indices)
    assert torch.equal(logits, expected)
    alike = before.clone()
    reference.apply_token_bitmask(alike, mask, limit, torch.tensor(rows, dtype=torch.int64))
    assert torch.equal(alike, expected)
    if layout == "rows":  # nothing beside the view was written
        outside[::2, :width] = expected
        assert torch.equal(whole, outside)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_dimension_and_strided_masks(dtype: Any):
    logits, mask = torch.randn(70).to(dtype), random_mask(3, 6)[:, ::2]
    expected = by_loop(logits[None], mask[:1], 96, [0])[0]
    masks.apply_token_bitmask_inplace(logits, mask[0])
    assert torch.equal(logits, expected)


def test_xgrammar_agrees():
    xgrammar = pytest.importorskip("xgrammar")
    for vocab_size in range(32, 97):
        assert torch.equal(masks.allocate_token_bitmask(2, vocab_size), xgrammar.allocate_token_bitmask(2, vocab_size))
        mask, logits = random_mask(2, -(-vocab_size // 32)), torch.randn(2, vocab_size)
        alike = logits.clone()
        masks.apply_token_bitmask_inplace(logits, mask)
        xgrammar.apply_token_bitmask_inplace(alike, mask)
        assert torch.equal(logits, alike)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("indices", [None, [4, 0, 2]])
def test_batch_equals_single_fills(num_threads: int, indices: list[int] | None):
    matchers = [matcher_of(vocab_size) for vocab_size in (40, 64, 90)]
    matchers[1].accept_token(31)
    mask = random_mask(5, 3)
    single = mask.clone()
    for matcher, row in zip(matchers, indices or range(3), strict=True):
        matcher.fill_next_token_bitmask(single, row)
    gentrie.batch_fill_next_token_bitmask(matchers, mask, indices, num_threads=num_threads)
    assert torch.equal(mask, single)


@pytest.mark.parametrize(
    ("indices", "options", "kind", "part"),
    [
        ([0, 5], {}, ValueError, r"indices\[1\]=5"),
        ([-1, 0], {}, ValueError, r"indices\[0\]=-1"),
        ([0], {}, ValueError, "indices has 1 entries, expected 2"),
        ([1, 1], {}, ValueError, "indices name row 1 twice"),
        ([0.0, 1.0], {}, TypeError, "indices has dtype float64"),
        (None, {"num_threads": 0}, ValueError, "num_threads=0"),
    ],
)
def test_bad_batches_are_named(indices: Any, options: dict[str, Any], kind: type[Exception], part: str):
    mask = random_mask(3, 2)
    before = mask.clone()
    with pytest.raises(kind, match=part):
        gentrie.batch_fill_next_token_bitmask([matcher_of(40), matcher_of(50)], mask, indices, **options)
    assert torch.equal(mask, before)


def test_a_batch_takes_tokens_as_single_matchers_do():
    matchers = [matcher_of(40) for _ in range(4)]
    alone = [matcher_of(40) for _ in range(4)]
    for tokens in ([31, 5, -1, 2**40], [5, 31, 31, 31]):
        taken = gentrie.batch_accept_token(matchers, tokens)
        assert taken.dtype == np.bool_
        assert taken.tolist() == [one.accept_token(token) for one, token in zip(alone, tokens, strict=True)]
        assert [m.state for m in matchers] == [m.state for m in alone]
    assert gentrie.batch_accept_token([], []).tolist() == []


@pytest.mark.parametrize(
    ("tokens", "kind", "part"),
    [
        ([31], ValueError, "tokens has 1 entries, matchers has 2"),
        ([31, 1.5], TypeError, "tokens has dtype float64"),
        ([[31, 31]], ValueError, r"tokens has shape \(1, 2\)"),
    ],
)
def test_bad_batches_of_tokens_are_named(tokens: Any, kind: type[Exception], part: str):
    matchers = [matcher_of(40), matcher_of(40)]
    with pytest.raises(kind, match=part):
        gentrie.batch_accept_token(matchers, tokens)
    with pytest.raises(TypeError, match=r"matchers\[1\] is a str"):
        gentrie.batch_accept_token([matchers[0], "x"], [31, 31])  # type: ignore[list-item]
    assert [m.num_accepted for m in matchers] == [0, 0]


def test_a_batch_that_is_too_narrow_or_short_for_a_matcher_is_not_begun():
    mask = random_mask(2, 2)
    before = mask.clone()
    with pytest.raises(ValueError, match="bitmask has 2 words a row, fewer than vocab_size=90 needs"):
        gentrie.batch_fill_next_token_bitmask([matcher_of(40), matcher_of(90)], mask)
    wide = gentrie.TrieMatcher(matcher_of(40).trie, vocab_size=70)
    with pytest.raises(ValueError, match="bitmask has 2 words a row, fewer than vocab_size=70 needs"):
        gentrie.batch_fill_next_token_bitmask([matcher_of(40), wide], mask)
    with pytest.raises(ValueError, match="bitmask has 2 rows, fewer than the 3 matchers"):
        gentrie.batch_fill_next_token_bitmask([matcher_of(40)] * 3, mask)
    assert torch.equal(mask, before)


def fake(*shape: int) -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.zeros(shape, dtype=torch.int32)


@pytest.mark.parametrize(
    ("mask", "kind", "part"),
    [
        (torch.zeros(1, 2, dtype=torch.int32).expand(2, 2), ValueError, r"strides \(0, 1\).*share no memory"),
        (torch.zeros(4, dtype=torch.int32).as_strided((2, 2), (1, 1)), ValueError, r"strides \(1, 1\)"),
        (torch._efficientzerotensor((2, 2), dtype=torch.int32), TypeError, "without data in memory"),
        (fake(2, 2), TypeError, "FakeTensor without data in memory"),
    ],
    ids=["expanded", "overlapping", "zero", "fake"],
)
def test_masks_without_memory_of_their_own_are_refused(mask: Any, kind: type[Exception], part: str):
    with pytest.raises(kind, match=part):
        matcher_of(40).fill_next_token_bitmask(mask, 1)
    with pytest.raises(kind, match=part):
        gentrie.batch_fill_next_token_bitmask([matcher_of(40), matcher_of(40)], mask)


def test_batches_hold_matchers():
    with pytest.raises(TypeError, match=r"matchers\[1\] is a TokenTrie"):
        gentrie.batch_fill_next_token_bitmask([matcher_of(40), matcher_of(40).trie], random_mask(2, 2))


def test_autograd_sees_what_is_masked():
    mask = torch.tensor([[6]], dtype=torch.int32)  # tokens 1 and 2
    leaf = torch.ones(1, 4, requires_grad=True)
    logits = leaf * 1
    masks.apply_token_bitmask_inplace(logits, mask)
    logits.clamp(min=-1).sum().backward()
    assert leaf.grad.tolist() == [[0, 1, 1, 0]]
    with pytest.raises(RuntimeError, match="leaf"):
        masks.apply_token_bitmask_inplace(leaf, mask)
    saved = torch.ones(1, 4)
    product = (saved * leaf).sum()
    masks.apply_token_bitmask_inplace(saved, mask)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()
    with torch.inference_mode():
        scores = torch.ones(1, 4)
        masks.apply_token_bitmask_inplace(scores, mask)
        assert scores.tolist() == [[-torch.inf, 1, 1, -torch.inf]]


def test_views_of_negated_logits():
    logits = torch.view_as_complex(torch.arange(8.0).reshape(1, 4, 2)).conj().imag
    expected = by_loop(logits, torch.tensor([[6]]), 32, [0])
    masks.apply_token_bitmask_inplace(logits, torch.tensor([[6]], dtype=torch.int32))
    assert torch.equal(logits, expected)


LOGITS, MASK = torch.zeros(2, 64), torch.zeros(2, 2, dtype=torch.int32)


@pytest.mark.parametrize(
    ("logits", "mask", "options", "kind", "part"),
    [
        ([0.0], MASK, {}, TypeError, "logits is a list"),
        (LOGITS, [0], {}, TypeError, "bitmask is a list"),
        (LOGITS.long(), MASK, {}, TypeError, r"torch\.int64"),
        (LOGITS, MASK.long(), {}, TypeError, r"bitmask has dtype torch\.int64"),
        (LOGITS[None], MASK, {}, ValueError, r"logits has shape \(1, 2, 64\)"),
        (LOGITS, MASK[None], {}, ValueError, r"bitmask has shape \(1, 2, 2\)"),
        (LOGITS, MASK[:1], {}, ValueError, "2 rows, bitmask has 1"),
        (LOGITS.to("meta"), MASK, {}, ValueError, "meta"),
        (LOGITS[:1].expand(2, 64), MASK, {}, ValueError, r"logits has strides \(0, 1\)"),
        (fake(2, 64).float(), MASK, {}, TypeError, "logits is a FakeTensor without data"),
        (LOGITS, fake(2, 2), {}, TypeError, "bitmask is a FakeTensor without data"),
        (LOGITS, MASK, {"indices": [0, 2]}, ValueError, r"indices\[1\]=2"),
        (LOGITS, MASK, {"indices": [-1]}, ValueError, r"indices\[0\]=-1"),
        (LOGITS, MASK, {"indices": [0.0]}, TypeError, "indices has dtype float64"),
        (LOGITS, MASK, {"vocab_size": -1}, ValueError, "vocab_size=-1"),
        (LOGITS, MASK, {"vocab_size": 1.0}, TypeError, r"vocab_size=1\.0"),
    ],
)
def test_bad_input_is_named(logits: Any, mask: Any, options: dict[str, Any], kind: type[Exception], part: str):
    with pytest.raises(kind, match=part):
        masks.apply_token_bitmask_inplace(logits, mask, **options)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("width", [40, 64, 70])
def test_arrays_are_masked_as_tensors_are(dtype: Any, width: int):
    random = np.random.default_rng(0)
    mask = random.integers(-(2**31), 2**31, (3, 2)).astype(np.int32)
    logits = random.normal(size=(4, width)).astype(dtype)
    for vocab_size, indices in ((None, [2, 0]), (37, [1]), (64, [])):
        expected = torch.from_numpy(logits.copy())
        gentrie.apply_token_bitmask_inplace(expected, torch.from_numpy(mask), vocab_size=vocab_size, indices=indices)
        own = np.full((8, width + 3), 7, dtype=dtype)  # rows apart, among others
        own[::2, :width] = logits
        gentrie.apply_token_bitmask_inplace(own[::2, :width], mask, vocab_size=vocab_size, indices=indices)
        np.testing.assert_array_equal(own[::2, :width], expected.numpy())
        assert (own[1::2] == 7).all()
        assert (own[:, width:] == 7).all()


def test_matchers_fill_arrays():
    trie = TokenTrie.from_sequences([[4, 6], [40]], vocab_size=48, end_token_id=1)
    matchers = [TrieMatcher(trie), TrieMatcher(trie)]
    matchers[1].accept_token(4)
    shape = gentrie.get_bitmask_shape(2, 48)
    arrays, tensors = np.full(shape, -1, dtype=np.int32), gentrie.allocate_token_bitmask(2, 48)
    gentrie.batch_fill_next_token_bitmask(matchers, arrays)
    gentrie.batch_fill_next_token_bitmask(matchers, tensors)
    np.testing.assert_array_equal(arrays, tensors.numpy())
    gentrie.reset_token_bitmask(arrays)
    assert (arrays == -1).all()
    matchers[1].fill_next_token_bitmask(arrays, 1)
    np.testing.assert_array_equal(arrays[1], tensors[1].numpy())
    logits = np.zeros(48, dtype=np.float32)
    gentrie.apply_token_bitmask_inplace(logits, arrays[1])
    assert np.flatnonzero(np.isfinite(logits)).tolist() == [6]


@pytest.mark.parametrize(
    ("mask", "kind", "part"),
    [
        (np.zeros((1, 2), dtype=np.int64), TypeError, "bitmask has dtype int64"),
        (np.zeros(2, dtype=np.int32), ValueError, "bitmask has shape"),
        (np.zeros((1, 1), dtype=np.int32), ValueError, "bitmask has 1 words a row"),
        (np.zeros((1, 4), dtype=np.int32)[:, ::2], ValueError, "bitmask has strides"),
        (np.broadcast_to(np.zeros((1, 2), dtype=np.int32), (3, 2)), ValueError, "bitmask is read-only"),
        ([[0, 0]], TypeError, "bitmask is a list"),
    ],
)
def test_arrays_that_are_no_masks_are_refused(mask: Any, kind: type[Exception], part: str):
    matcher = TrieMatcher(TokenTrie.from_sequences([[4, 6], [40]], vocab_size=48, end_token_id=1))
    with pytest.raises(kind, match=part):
        matcher.fill_next_token_bitmask(mask)


@pytest.mark.parametrize(
    ("logits", "mask", "kind", "part"),
    [
        (np.zeros((1, 40), dtype=np.int32), np.zeros((1, 2), np.int32), TypeError, "logits has dtype int32"),
        (np.zeros((1, 40), dtype=">f4"), np.zeros((1, 2), np.int32), TypeError, "logits has dtype >f4"),
        (np.zeros((2, 40), np.float32), np.zeros((1, 2), np.int32), ValueError, "logits has 2 rows"),
        (np.zeros((1, 80), np.float32)[:, ::2], np.zeros((1, 2), np.int32), ValueError, "logits has strides"),
        (np.zeros((1, 1, 40), np.float32), np.zeros((1, 2), np.int32), ValueError, "logits has shape"),
        (np.zeros((1, 40), np.float32), torch.zeros(1, 2, dtype=torch.int32), TypeError, "logits is a ndarray"),
    ],
)
def test_arrays_that_are_no_logits_are_refused(logits: Any, mask: Any, kind: type[Exception], part: str):
    with pytest.raises(kind, match=part):
        gentrie.apply_token_bitmask_inplace(logits, mask)


@pytest.mark.parametrize("seed", range(20))
def test_long_stretches_that_allow_everything_are_passed_over(seed: int):
    random = np.random.default_rng(seed)
    words = np.full(100, -1, dtype=np.int32)
    for begin in random.integers(0, 100, 4):
        words[begin : begin + random.integers(1, 30)] = random.choice([0, 5, -7, -1])
    logits = torch.randn(1, int(random.integers(3100, 3300)))
    expected = by_loop(logits, torch.from_numpy(words)[None], 10**9, [0])
    gentrie.apply_token_bitmask_inplace(logits, torch.from_numpy(words)[None])
    assert torch.equal(logits, expected)
