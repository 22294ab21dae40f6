"""Titles to token ids with each kind of tokenizer, and the fingerprint of a tokenizer."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tokenizers import HARD_TITLES, byte_level_bpe, fast_tokenizer, real_titles
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import ByT5Tokenizer, CTRLTokenizer, PreTrainedTokenizerFast

from gentrie.tokenization import (
    check_tokenizer,
    encode_titles,
    token_id_of,
    tokenizer_fingerprint,
    vocab_size_of,
)


def mistral_file(name: str) -> Path:
    mistral_common = pytest.importorskip("mistral_common", reason="mistral-common is not installed")
    path = Path(mistral_common.__file__).parent / "data" / name
    if not path.is_file():
        pytest.skip(f"this mistral-common does not ship {name}")
    return path


@pytest.fixture(scope="session")
def tekken() -> Any:
    path = mistral_file("tekken_240911.json")
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    return Tekkenizer.from_file(path)


def sentencepiece() -> Any:
    pytest.importorskip("sentencepiece", reason="mistral-common needs it for this tokenizer")
    path = mistral_file("mistral_instruct_tokenizer_240323.model.v3")
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(path)


def rows(encoded: tuple[np.ndarray, np.ndarray]) -> list[list[int]]:
    values, indptr = encoded
    assert values.dtype == np.int32
    assert indptr.dtype == np.int64
    assert indptr[0] == 0
    assert indptr[-1] == values.size
    return [values[a:b].tolist() for a, b in itertools.pairwise(indptr)]


# ---------------------------------------------------------------------------------------- encode_titles


@pytest.mark.parametrize("template", ["{title}", '"{title}"', "<{title}> {0} {title}\n"])
@pytest.mark.parametrize("context", ["", "Recommend:\n"])
def test_rows_are_what_the_tokenizer_gives(template: str, context: str) -> None:
    tokenizer = fast_tokenizer()
    context_length = len(tokenizer(context, add_special_tokens=False)["input_ids"])
    expected = [
        tokenizer(context + template.replace("{title}", title), add_special_tokens=False)["input_ids"]
        for title in HARD_TITLES
    ]
    got = rows(encode_titles(HARD_TITLES, tokenizer, template=template, context=context))
    assert got == [ids[context_length:] for ids in expected]
    assert [tokenizer.decode(ids) for ids in got] == [template.replace("{title}", t) for t in HARD_TITLES]


def test_every_kind_of_tokenizer_agrees_with_itself(tekken: Any) -> None:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    backend = byte_level_bpe()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    assert rows(encode_titles(HARD_TITLES, backend)) == rows(encode_titles(HARD_TITLES, fast))
    assert vocab_size_of(backend) == vocab_size_of(fast) == len(fast)

    slow = ByT5Tokenizer()
    expected = [slow(title, add_special_tokens=False)["input_ids"] for title in HARD_TITLES]
    assert rows(encode_titles(HARD_TITLES, slow)) == expected
    assert vocab_size_of(slow) == len(slow)

    expected = [tekken.encode(title, bos=False, eos=False) for title in HARD_TITLES]
    whole = MistralTokenizer.from_file(str(tekken.file_path))
    assert rows(encode_titles(HARD_TITLES, tekken)) == rows(encode_titles(HARD_TITLES, whole)) == expected
    assert vocab_size_of(tekken) == vocab_size_of(whole) == 131072
    assert tokenizer_fingerprint(tekken, [5000]) == tokenizer_fingerprint(whole, [5000])


def test_transformers_wrapper_of_mistral_common(tekken: Any) -> None:
    transformers = pytest.importorskip("transformers")
    if not hasattr(transformers, "MistralCommonBackend"):
        pytest.skip("this transformers does not wrap mistral-common")
    wrapper = transformers.MistralCommonBackend(tokenizer_path=str(tekken.file_path))
    assert rows(encode_titles(HARD_TITLES, wrapper)) == rows(encode_titles(HARD_TITLES, tekken))
    assert vocab_size_of(wrapper) == vocab_size_of(tekken)
    assert tokenizer_fingerprint(wrapper, [5000]) == tokenizer_fingerprint(tekken, [5000])


def test_sentencepiece_of_mistral_common() -> None:
    tokenizer = sentencepiece()
    expected = [tokenizer.encode(title, bos=False, eos=False) for title in HARD_TITLES]
    assert rows(encode_titles(HARD_TITLES, tokenizer)) == expected
    assert vocab_size_of(tokenizer) == tokenizer.n_words
    assert tokenizer_fingerprint(tokenizer, [5000]) != tokenizer_fingerprint(tokenizer, [5001])


def test_special_tokens_padding_and_truncation_do_not_reach_the_rows() -> None:
    plain = rows(encode_titles(HARD_TITLES, byte_level_bpe()))

    backend = byte_level_bpe()
    backend.enable_padding(length=64)
    backend.enable_truncation(max_length=3)
    before = backend.to_str()
    assert rows(encode_titles(HARD_TITLES, backend)) == plain
    assert backend.to_str() == before

    fast = fast_tokenizer()
    fast.add_special_tokens({"bos_token": "<s>", "pad_token": "<pad>"})
    fast.padding_side = "left"
    fast(["one", "two three"], padding=True, truncation=True, max_length=3)
    assert rows(encode_titles(HARD_TITLES, fast)) == plain


def test_titles_come_in_any_ordered_iterable() -> None:
    pandas = pytest.importorskip("pandas")
    pyarrow = pytest.importorskip("pyarrow")
    tokenizer = fast_tokenizer()
    titles = ["red box", "blue train", "caf\u00e9"]
    expected = rows(encode_titles(titles, tokenizer))
    for given in (
        tuple(titles),
        iter(titles),
        np.array(titles),
        np.array(titles, dtype=object),
        pandas.Series(titles, index=[7, 8, 9]),
        pyarrow.array(titles),
        pyarrow.chunked_array([titles[:1], titles[1:]]),
    ):
        assert rows(encode_titles(given, tokenizer)) == expected


def test_more_titles_than_one_batch() -> None:
    tokenizer = fast_tokenizer()
    titles = [f"red box {i}" for i in range(9000)]
    got = rows(encode_titles(titles, tokenizer, context="x\n"))
    assert len(got) == 9000
    for i in (0, 4095, 4096, 8191, 8192, 8999):
        assert got[i] == tokenizer(titles[i], add_special_tokens=False)["input_ids"]
    bad = [*titles[:5000], "", *titles[5000:]]
    with pytest.raises(ValueError, match=r"titles\[5000\] is empty"):
        encode_titles(bad, tokenizer)


def test_progress_goes_to_stderr_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = fast_tokenizer()
    encode_titles(["red box"], tokenizer)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""
    encode_titles(["red box"], tokenizer, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "1/1" in captured.err


@pytest.mark.parametrize(
    ("titles", "error", "message"),
    [
        ([], ValueError, "titles is empty"),
        (["a", ""], ValueError, r"titles\[1\] is empty"),
        (["a", "b", 3], ValueError, r"titles\[2\] must be a string, got int: 3"),
        (["a", None], ValueError, r"titles\[1\] must be a string, got NoneType"),
        (["a", b"b"], ValueError, r"titles\[1\] must be a string, got bytes"),
        (["a", float("nan")], ValueError, r"titles\[1\] must be a string, got float: nan"),
        (["a", "\ud800"], ValueError, r"titles\[1\] is not Unicode"),
        ([["a"], ["b"]], ValueError, r"titles\[0\] must be a string, got list"),
        (np.array([["a", "b"]]), ValueError, r"one-dimensional, got shape \(1, 2\)"),
        ("a title", TypeError, "got one str"),
        (b"a title", TypeError, "got one bytes"),
        ({"a", "b"}, TypeError, "fixed order .* got a set"),
        ({"a": 1}, TypeError, "fixed order .* got a dict"),
        (7, TypeError, "iterable of strings, got int"),
    ],
)
def test_bad_titles_are_refused(titles: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        encode_titles(titles, fast_tokenizer())


@pytest.mark.parametrize("template", ["", "{}", "title", "{ title }"])
def test_template_without_the_title_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"template must contain '\{title\}', got"):
        encode_titles(["a"], fast_tokenizer(), template=template)


@pytest.mark.parametrize("name", ["template", "context"])
@pytest.mark.parametrize(("value", "message"), [(3, "must be a string, got int"), ("\udfff{title}", "is not Unicode")])
def test_bad_template_and_context_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{name} {message}"):
        encode_titles(["a"], fast_tokenizer(), **{name: value})


def test_context_that_merges_with_a_title_is_refused_with_its_row() -> None:
    tokenizer = fast_tokenizer()
    # Behind "re" the "d" of row 1 becomes part of the merged token "red"; row 0 keeps the context apart.
    prefix = tokenizer("re", add_special_tokens=False)["input_ids"]
    merged = tokenizer("red", add_special_tokens=False)["input_ids"]
    assert merged[: len(prefix)] != prefix
    with pytest.raises(ValueError, match=r"titles\[1\] = 'd': the tokens of the context.*not a prefix"):
        encode_titles([" box", "d"], tokenizer, context="re")


def test_title_without_tokens_is_refused_with_its_row() -> None:
    tokenizer = byte_level_bpe(normalizer=normalizers.Strip(), pre_tokenizer=pre_tokenizers.Whitespace())
    assert rows(encode_titles(["red"], tokenizer))[0]
    with pytest.raises(ValueError, match=r"titles\[1\] = ' ' gives no token"):
        encode_titles(["red", " "], tokenizer)


@pytest.mark.parametrize("tokenizer", [None, "a/path", object(), len])
def test_unknown_tokenizers_are_refused(tokenizer: Any) -> None:
    for call in (
        lambda: encode_titles(["a"], tokenizer),
        lambda: vocab_size_of(tokenizer),
        lambda: tokenizer_fingerprint(tokenizer, [1]),
    ):
        with pytest.raises(TypeError, match=r"must be a tokenizer of transformers, .* got \w+"):
            call()


# ------------------------------------------------------------------------------------------ real titles


@pytest.mark.parametrize("name", ["toy", "office"])
def test_real_titles_with_tekken(tekken: Any, name: str) -> None:
    titles = real_titles(name) + HARD_TITLES
    quoted = rows(encode_titles(titles, tekken, template='"{title}"'))
    assert [tekken.decode(ids) for ids in quoted] == [f'"{title}"' for title in titles]

    # A line break before a title never changes its tokens, a space nearly always does.
    alone = rows(encode_titles(titles, tekken))
    assert rows(encode_titles(titles, tekken, context="Recommend:\n")) == alone
    with pytest.raises(ValueError, match=r"titles\[0\] = .* not a prefix"):
        encode_titles(titles, tekken, context="Recommend: ")
    # Quotes merge into some titles: more often behind them than before them.
    opening, closing = (
        sum(a != b for a, b in zip(expected, alone, strict=True))
        for expected in (
            [ids[1:] for ids in rows(encode_titles(titles, tekken, template='"{title}'))],
            [ids[:-1] for ids in rows(encode_titles(titles, tekken, template='{title}"'))],
        )
    )
    assert 0 < opening < closing < len(titles)
    assert len(tekken.encode('"\n', bos=False, eos=False)) == 1


# ------------------------------------------------------------------------------------------ fingerprint


def test_fingerprint_is_64_hexadecimal_digits_and_a_function_of_the_set_of_ids() -> None:
    tokenizer = fast_tokenizer()
    fingerprint = tokenizer_fingerprint(tokenizer, [5, 7, 300])
    assert len(fingerprint) == 64
    int(fingerprint, 16)
    assert tokenizer_fingerprint(tokenizer, np.array([[300, 5], [7, 5]], dtype=np.int32)) == fingerprint
    assert tokenizer_fingerprint(tokenizer.backend_tokenizer, [5, 7, 300]) == fingerprint
    assert tokenizer_fingerprint(tokenizer, [5, 7]) != fingerprint
    assert tokenizer_fingerprint(tokenizer, []) == tokenizer_fingerprint(tokenizer, [])


@pytest.mark.parametrize("tokenizer", [fast_tokenizer(), ByT5Tokenizer()], ids=["fast", "slow"])
def test_fingerprint_ignores_what_does_not_change_a_catalog(tokenizer: Any, tmp_path: Path) -> None:
    used = [40, 41, 42, 200]
    fingerprint = tokenizer_fingerprint(tokenizer, used)

    tokenizer.add_tokens(["<SOI>", AddedToken("<EOI>", special=True)], special_tokens=True)
    tokenizer.add_tokens(["an ordinary word"])
    tokenizer.add_special_tokens({"pad_token": "<padding>", "bos_token": "<start>"})
    tokenizer.padding_side = "left"
    tokenizer.truncation_side = "left"
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.model_max_length = 5
    tokenizer(["one", "two three"], padding=True, truncation=True, max_length=3)
    assert tokenizer_fingerprint(tokenizer, used) == fingerprint
    check_tokenizer(fingerprint, tokenizer, used)

    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert len(loaded) == len(tokenizer)
    assert tokenizer_fingerprint(loaded, used) == fingerprint


def test_fingerprint_covers_added_tokens_that_the_catalog_uses() -> None:
    first, second = fast_tokenizer(), fast_tokenizer()
    first.add_tokens(["<SOI>"])
    second.add_tokens(["<EOI>"])
    token_id = len(first) - 1
    assert tokenizer_fingerprint(first, [1]) == tokenizer_fingerprint(second, [1])
    fingerprint = tokenizer_fingerprint(first, [1, token_id])
    with pytest.raises(ValueError, match="differs from the one the trie was built with, in: tokens "):
        check_tokenizer(fingerprint, second, [1, token_id])
    with pytest.raises(ValueError, match="in: tokens "):
        check_tokenizer(fingerprint, fast_tokenizer(), [1, token_id])
    stripping = fast_tokenizer()
    stripping.add_tokens([AddedToken("<SOI>", lstrip=True)])
    with pytest.raises(ValueError, match="in: tokens "):
        check_tokenizer(fingerprint, stripping, [1, token_id])


def test_fingerprint_changes_with_model_normaliser_and_pretokeniser() -> None:
    used = [40, 41]
    fingerprint = tokenizer_fingerprint(byte_level_bpe(), used)

    normalised = byte_level_bpe()
    normalised.normalizer = normalizers.NFC()
    with pytest.raises(ValueError, match="in: normaliser "):
        check_tokenizer(fingerprint, normalised, used)
    spaced = byte_level_bpe()
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(ValueError, match="in: pretokeniser "):
        check_tokenizer(fingerprint, spaced, used)

    # The same vocabulary with two merges swapped splits text differently.
    state = json.loads(byte_level_bpe().to_str())
    merges = state["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    swapped = type(spaced).from_str(json.dumps(state))
    assert swapped.get_vocab() == byte_level_bpe().get_vocab()
    with pytest.raises(ValueError, match="in: model "):
        check_tokenizer(fingerprint, swapped, used)

    other_words = byte_level_bpe(merges_from=["entirely other words " * 3] * 3)
    with pytest.raises(ValueError, match="in: model"):
        check_tokenizer(fingerprint, other_words, used)


def test_fingerprint_reads_merges_as_older_files_write_them() -> None:
    tokenizer = byte_level_bpe()
    state = json.loads(tokenizer.to_str())
    state["model"]["merges"] = [" ".join(pair) for pair in state["model"]["merges"]]

    class Tokenizer:
        """What an older version of the package would be seen to do."""

        __module__ = "tokenizers"
        id_to_token = tokenizer.id_to_token

        def to_str(self) -> str:
            return json.dumps(state)

    assert tokenizer_fingerprint(Tokenizer(), [1]) == tokenizer_fingerprint(tokenizer, [1])


def test_fingerprint_of_a_slow_tokenizer_covers_its_files(tmp_path: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "a@@", "b@@", "c</w>", "ab@@", "bc", "abc"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizers = []
    for name, merges in (("one", ["a b", "b c</w>"]), ("two", ["b c</w>", "a b"])):
        path = tmp_path / f"{name}.txt"
        path.write_text("\n".join(["#version: 0.2", *merges, ""]))
        tokenizers.append(CTRLTokenizer(str(tmp_path / "vocab.json"), str(path)))
    one, two = tokenizers
    assert one.get_vocab() == two.get_vocab()
    with pytest.raises(ValueError, match="in: model"):
        check_tokenizer(tokenizer_fingerprint(one, [1]), two, [1])


def test_fingerprint_of_python_rules_is_observed() -> None:
    class Lower(ByT5Tokenizer):
        def _tokenize(self, text: str) -> list[str]:
            return super()._tokenize(text.lower() if self.lower else text)

    cased, uncased = Lower(), Lower()
    cased.lower, uncased.lower = False, True
    with pytest.raises(ValueError, match="in: normaliser, pretokeniser "):
        check_tokenizer(tokenizer_fingerprint(cased, [50]), uncased, [50])


def test_tekken_versions_share_what_a_catalog_needs(tekken: Any) -> None:
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    older = Tekkenizer.from_file(mistral_file("tekken_240718.json"))
    used = [1000, 5000, 131071]
    fingerprint = tokenizer_fingerprint(tekken, used)
    check_tokenizer(fingerprint, older, used)
    with pytest.raises(ValueError, match="in: tokens "):
        check_tokenizer(fingerprint, tekken, [*used, 5001])
    with pytest.raises(ValueError, match="in: model"):
        check_tokenizer(fingerprint, fast_tokenizer(), used)


@pytest.mark.parametrize("fingerprint", [None, ""])
def test_a_trie_built_from_ids_goes_with_every_tokenizer(fingerprint: str | None) -> None:
    check_tokenizer(fingerprint, fast_tokenizer(), [1, 2])


def test_ids_beyond_the_tokenizer_have_no_string_yet() -> None:
    tokenizer = fast_tokenizer()
    fingerprint = tokenizer_fingerprint(tokenizer, [len(tokenizer)])
    tokenizer.add_tokens(["<SOI>"])
    assert tokenizer_fingerprint(tokenizer, [len(tokenizer) - 1]) != fingerprint


def test_bad_token_ids_are_refused() -> None:
    with pytest.raises(TypeError, match="token_ids must be integers, got dtype float64"):
        tokenizer_fingerprint(fast_tokenizer(), [1.5])
    with pytest.raises(ValueError, match="token_ids must not be negative, got -1"):
        tokenizer_fingerprint(fast_tokenizer(), [3, -1])


def test_ids_of_special_tokens(tekken: Any) -> None:
    fast = fast_tokenizer()
    fast.add_tokens(["<SOI>"], special_tokens=True)
    for tokenizer, token, expected in (
        (fast, "</s>", 0),
        (fast, "<SOI>", len(fast) - 1),
        (fast.backend_tokenizer, "<SOI>", len(fast) - 1),
        (ByT5Tokenizer(), "</s>", 1),
        (tekken, "</s>", 2),
    ):
        assert token_id_of(tokenizer, token) == expected
        with pytest.raises(ValueError, match="the tokenizer has no token '<nonsense>'"):
            token_id_of(tokenizer, "<nonsense>")
