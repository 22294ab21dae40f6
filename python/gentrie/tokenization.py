"""Titles to token ids, and what names the tokenizer that did it.

A trie of titles is only as good as the agreement between the tokenizer that built it and the one whose
model is constrained by it. :func:`encode_titles` turns titles into token sequences,
:func:`tokenizer_fingerprint` names the tokenizer, and :func:`check_tokenizer` refuses another one.

Three families of tokenizers are understood, none of which is imported here: ``transformers`` (fast, slow and
its wrapper of mistral-common), ``tokenizers.Tokenizer``, and mistral-common's ``MistralTokenizer``,
``Tekkenizer`` and ``SentencePieceTokenizer``.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["check_tokenizer", "encode_titles", "token_id_of", "tokenizer_fingerprint", "vocab_size_of"]

_CHUNK = 4096
_DIGITS = 16  # hexadecimal digits of the fingerprint per part

# Tokenizers whose rules are Python code cannot be read as data, so their handling of case, accents, spaces,
# digits, punctuation and scripts is observed on these strings instead.
_PROBES = (
    "QuXeJ quxej QUXEJ",
    " zwvk  zwvk   zwvk",
    "zwvk\nzwvk\r\n\tzwvk\n",
    "1 12 123 1234567890 3.14",
    'zwvk\'s "zwvk" (zwvk), zwvk&amp;zwvk!?',
    "\u00e9\u0301 e\u0301 \u00c5ngstr\u00f6m \ufb01 \uff21 \u00b2",
    "\u6f22\u5b57 \u0440\u0443\u0441 \u05d0\u05d1 \u0e44\u0e17\u0e22 \U0001f9e9\u200d\U0001f600",
)


class _Parts(NamedTuple):
    """What a fingerprint is made of, each as bytes in a canonical form."""

    model: bytes
    normaliser: bytes
    pretokeniser: bytes
    tokens: bytes


class AddedToken(NamedTuple):
    """A token that is matched in the text, before the model sees it; ``rules`` as in ``_MATCHING_RULES``."""

    token_id: int
    content: str
    rules: tuple[bool, ...]


class Adapter(Protocol):
    """What is needed of a tokenizer, whatever its kind."""

    def encode(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, rows: list[list[int]]) -> list[str]: ...

    def normalise(self, text: str) -> str: ...

    def added_tokens(self) -> list[AddedToken]: ...

    def token_rows(self, token_ids: list[int]) -> list[list[Any]]:
        """Id, string and matching rules of each token."""

    def unknown_token_id(self) -> int | None: ...

    def vocab_size(self) -> int: ...

    def token_id(self, token: str) -> int | None: ...

    def parts(self, token_ids: list[int]) -> _Parts: ...


def encode_titles(
    titles: Iterable[str],
    tokenizer: Any,
    *,
    template: str = "{title}",
    context: str = "",
    progress: bool = False,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Encode titles as a model sees them behind ``context``, without special tokens.

    Each row is ``context`` + ``template`` with every ``{title}`` replaced by the title (plain replacement:
    other braces are left alone), encoded in one piece, less the tokens of ``context``.

    Parameters
    ----------
    titles
        N titles in any ordered iterable: a list, an array, a column of pandas or pyarrow.
    tokenizer
        A tokenizer of ``transformers``, ``tokenizers`` or mistral-common.
    template
        Text around the title. It must contain ``{title}``.
    context
        Text that stands right before the template in the prompt. What it ends with changes how a title is
        split: a line break is safe with most tokenizers, a space is not.
    progress
        Shows a progress bar.

    Returns
    -------
    values
        int32: the token ids of all rows, one row after the other.
    indptr
        int64 [N + 1]: where each row begins and ends in ``values``.

    Raises
    ------
    TypeError
        If the tokenizer is of an unknown kind, or ``titles`` is one string, a set or a mapping.
    ValueError
        If ``titles`` is empty, the template lacks ``{title}``, or a title (named by its row) is not a string,
        is empty, holds half of a surrogate pair, gives no token, or merges with the context so that the
        context's tokens are not a prefix of the row's.
    """
    adapter = adapter_of(tokenizer)
    _check_text("template", template)
    _check_text("context", context)
    if "{title}" not in template:
        raise ValueError(f"template must contain '{{title}}', got {template!r}")
    checked = checked_titles(titles)
    prefix = np.asarray(adapter.encode([context])[0] if context else [], dtype=np.int32)

    values, lengths = [], []
    for start, chunk in _chunks(checked, progress):
        rows = adapter.encode([context + template.replace("{title}", title) for title in chunk])
        chunk_values, chunk_lengths = _without_prefix(rows, prefix, chunk, start)
        values.append(chunk_values)
        lengths.append(chunk_lengths)
    indptr = np.zeros(len(checked) + 1, dtype=np.int64)
    np.cumsum(np.concatenate(lengths), out=indptr[1:])
    return np.concatenate(values), indptr


def vocab_size_of(tokenizer: Any) -> int:
    """Return the number of token ids of a tokenizer, added tokens included, as Hugging Face's ``len`` does.

    Raises
    ------
    TypeError
        If the tokenizer is of an unknown kind.
    """
    return adapter_of(tokenizer).vocab_size()


def token_id_of(tokenizer: Any, token: str) -> int:
    """Return the id of a token, most often a special one, given as the tokenizer writes it (``"</s>"``).

    Raises
    ------
    TypeError
        If the tokenizer is of an unknown kind.
    ValueError
        If the tokenizer has no such token.
    """
    token_id = adapter_of(tokenizer).token_id(token)
    if token_id is None:
        raise ValueError(f"the tokenizer has no token {token!r}")
    return token_id


def tokenizer_fingerprint(tokenizer: Any, token_ids: npt.ArrayLike) -> str:
    """Name the tokenizer as far as a catalog depends on it.

    It covers the model (vocabulary, merges or scores), the normaliser, the pre-tokeniser, and the strings
    and matching rules of ``token_ids``. Padding, truncation, sides, templates and added tokens outside
    ``token_ids`` do not change it. Rules that are Python or compiled code (slow tokenizers, mistral-common)
    are observed on fixed strings.

    Parameters
    ----------
    tokenizer
        A tokenizer of ``transformers``, ``tokenizers`` or mistral-common.
    token_ids
        Integers of any shape and order: the token ids that the catalog uses (``trie.vocabulary``).

    Returns
    -------
    str
        64 hexadecimal digits: 16 of the SHA-256 of each of the four parts, in the order above.

    Raises
    ------
    TypeError
        If the tokenizer is of an unknown kind, or the token ids are not integers.
    ValueError
        If a token id is negative.
    """
    ids = np.unique(np.asarray(token_ids))
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(f"token_ids must be integers, got dtype {ids.dtype}")
    if ids.size and ids[0] < 0:
        raise ValueError(f"token_ids must not be negative, got {ids[0]}")
    parts = adapter_of(tokenizer).parts([int(i) for i in ids])
    return "".join(hashlib.sha256(part).hexdigest()[:_DIGITS] for part in parts)


def check_tokenizer(fingerprint: str | None, tokenizer: Any, token_ids: npt.ArrayLike) -> None:
    """Refuse a tokenizer other than the one a catalog was built with.

    Parameters
    ----------
    fingerprint
        What :func:`tokenizer_fingerprint` gave at build time; None or empty if the trie was built from token
        ids, and then every tokenizer passes.
    tokenizer
        The tokenizer to check.
    token_ids
        The token ids that the catalog uses.

    Raises
    ------
    ValueError
        If the tokenizer differs, naming the parts that do.
    TypeError
        As :func:`tokenizer_fingerprint`.
    """
    if not fingerprint:
        return
    other = tokenizer_fingerprint(tokenizer, token_ids)
    if other == fingerprint:
        return
    differing = [
        name
        for i, name in enumerate(_Parts._fields)
        if other[i * _DIGITS : (i + 1) * _DIGITS] != fingerprint[i * _DIGITS : (i + 1) * _DIGITS]
    ]
    raise ValueError(
        f"tokenizer differs from the one the trie was built with, in: {', '.join(differing)} "
        f"(fingerprint {other}, the trie's is {fingerprint}); use that tokenizer or rebuild the trie"
    )


def _chunks(titles: Sequence[str], progress: bool) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield (first row, titles), with a progress bar over titles on request."""
    from tqdm import tqdm

    with tqdm(total=len(titles), desc="encode", unit="title", disable=not progress) as bar:
        for start in range(0, len(titles), _CHUNK):
            chunk = titles[start : start + _CHUNK]
            yield start, chunk
            bar.update(len(chunk))


class TitleList(list[str]):
    """Titles that have been checked."""


def checked_titles(titles: Iterable[str]) -> TitleList:
    """Return the titles of any ordered iterable as a list; raises as :func:`encode_titles` does."""
    if isinstance(titles, TitleList):
        return titles
    if isinstance(titles, str | bytes):
        raise TypeError(f"titles must be an iterable of strings, got one {type(titles).__name__}")
    if isinstance(titles, Set | Mapping):
        raise TypeError(
            "titles must be in a fixed order because items are numbered by row, "
            f"got a {type(titles).__name__}; pass a list"
        )
    if getattr(titles, "ndim", 1) != 1:
        raise ValueError(f"titles must be one-dimensional, got shape {getattr(titles, 'shape', None)}")
    # Arrays and columns convert themselves to Python strings, much faster than by iteration.
    for method in ("to_pylist", "tolist"):
        if hasattr(titles, method):
            titles = getattr(titles, method)()
            break
    try:
        rows = TitleList(titles)
    except TypeError:
        raise TypeError(f"titles must be an iterable of strings, got {type(titles).__name__}") from None
    if not rows:
        raise ValueError("titles is empty: a catalog needs at least one title")
    for row, title in enumerate(rows):
        _check_text(f"titles[{row}]", title)
        if not title:
            raise ValueError(f"titles[{row}] is empty")
    return rows


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a string, got {type(text).__name__}: {text!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} is not Unicode, it holds half of a surrogate pair: {text!r}") from None


def _without_prefix(
    rows: list[list[int]], prefix: npt.NDArray[np.int32], titles: Sequence[str], first_row: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Drop ``prefix`` from the front of each row; return the values left and their count in each row."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    values = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum()))
    if prefix.size:
        starts = np.cumsum(lengths) - lengths
        agrees = lengths >= prefix.size
        head = starts[agrees, None] + np.arange(prefix.size)
        agrees[agrees] = (values[head] == prefix).all(axis=1)
        if not agrees.all():
            i = int(np.argmin(agrees))
            raise ValueError(
                f"titles[{first_row + i}] = {titles[i]!r}: the tokens of the context, {prefix.tolist()}, are "
                f"not a prefix of the row's, {rows[i][: prefix.size + 2]}...: the tokenizer merges text over "
                "the boundary; end the context where its last token ends, for example after a line break"
            )
        keep = np.ones(values.size, dtype=bool)
        keep[head.ravel()] = False
        values = values[keep]
        lengths -= prefix.size
    if not lengths.all():
        i = int(np.argmin(lengths))
        raise ValueError(f"titles[{first_row + i}] = {titles[i]!r} gives no token")
    return values, lengths


def adapter_of(tokenizer: Any) -> Adapter:
    """Return what reads a tokenizer of any kind; raises ``TypeError`` for others."""
    if _has_base(tokenizer, "transformers", "MistralCommonBackend", "MistralCommonTokenizer"):
        tokenizer = tokenizer.tokenizer
    if _has_base(tokenizer, "mistral_common", "MistralTokenizer"):
        tokenizer = tokenizer.instruct_tokenizer.tokenizer
    if _has_base(tokenizer, "mistral_common", "Tekkenizer", "SentencePieceTokenizer"):
        return _Mistral(tokenizer)
    if _has_base(tokenizer, "transformers", "PreTrainedTokenizerBase"):
        return _TransformersFast(tokenizer) if tokenizer.is_fast else _TransformersSlow(tokenizer)
    if _has_base(tokenizer, "tokenizers", "Tokenizer"):
        return _Tokenizers(tokenizer)
    raise TypeError(
        "tokenizer must be a tokenizer of transformers, a tokenizers.Tokenizer, or mistral-common's "
        f"MistralTokenizer, Tekkenizer or SentencePieceTokenizer, got {type(tokenizer).__name__}"
    )


def _has_base(value: Any, package: str, *names: str) -> bool:
    """Tell whether the value is an instance of a package's class, without importing the package."""
    return any(base.__name__ in names and base.__module__.partition(".")[0] == package for base in type(value).__mro__)


class _Tokenizers:
    """``tokenizers.Tokenizer``."""

    def __init__(self, tokenizer: Any, *, split_special_tokens: bool | None = None) -> None:
        self._tokenizer = tokenizer
        given = split_special_tokens
        self._split_special = getattr(tokenizer, "encode_special_tokens", False) if given is None else given

    def encode(self, texts: list[str]) -> list[list[int]]:
        tokenizer = self._tokenizer
        if tokenizer.padding is not None or tokenizer.truncation is not None:
            # Both are state of the object, and the caller's object is not ours to change.
            clone = type(tokenizer).from_str(tokenizer.to_str())
            clone.no_padding()
            clone.no_truncation()
            clone.encode_special_tokens = tokenizer.encode_special_tokens
            tokenizer = clone
        return [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, rows: list[list[int]]) -> list[str]:
        texts: list[str] = self._tokenizer.decode_batch(rows, skip_special_tokens=False)
        return texts

    def normalise(self, text: str) -> str:
        normaliser = self._tokenizer.normalizer
        return text if normaliser is None else str(normaliser.normalize_str(text))

    def added_tokens(self) -> list[AddedToken]:
        return [
            AddedToken(i, token.content, _rules_of(token))
            for i, token in sorted(self._tokenizer.get_added_tokens_decoder().items())
            if not (token.special and self._split_special)
        ]

    def token_rows(self, token_ids: list[int]) -> list[list[Any]]:
        added = {token["id"]: token for token in self._state["added_tokens"]}
        return [[i, self._tokenizer.id_to_token(i), _matching_rules(added.get(i))] for i in token_ids]

    def unknown_token_id(self) -> int | None:
        model = self._state["model"]
        token = model.get("unk_token")
        unknown: int | None = model.get("unk_id") if token is None else self._tokenizer.token_to_id(token)
        return unknown

    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    @cached_property
    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self._tokenizer.to_str())
        return state

    def parts(self, token_ids: list[int]) -> _Parts:
        model = self._state["model"]
        if "merges" in model:  # older versions of `tokenizers` write "a b" for ["a", "b"]
            model["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        parts = (model, self._state["normalizer"], self._state["pre_tokenizer"], self.token_rows(token_ids))
        return _Parts(*map(canonical, parts))


class _Transformers:
    """What all tokenizers of ``transformers`` have in common."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> list[list[int]]:
        rows: list[list[int]] = self._tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return rows

    def vocab_size(self) -> int:
        return len(self._tokenizer)

    def token_id(self, token: str) -> int | None:
        token_id: int | None = self._tokenizer.get_vocab().get(token)
        return token_id


class _TransformersFast(_Transformers):
    """A ``transformers`` tokenizer on top of ``tokenizers``."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        split = bool(getattr(tokenizer, "split_special_tokens", False))
        self._backend = _Tokenizers(tokenizer.backend_tokenizer, split_special_tokens=split)

    def decode(self, rows: list[list[int]]) -> list[str]:
        return self._backend.decode(rows)

    def normalise(self, text: str) -> str:
        return self._backend.normalise(text)

    def added_tokens(self) -> list[AddedToken]:
        return self._backend.added_tokens()

    def token_rows(self, token_ids: list[int]) -> list[list[Any]]:
        return self._backend.token_rows(token_ids)

    def unknown_token_id(self) -> int | None:
        return self._backend.unknown_token_id()

    def parts(self, token_ids: list[int]) -> _Parts:
        return self._backend.parts(token_ids)


class _TransformersSlow(_Transformers):
    """A ``transformers`` tokenizer whose rules are Python code or SentencePiece."""

    def decode(self, rows: list[list[int]]) -> list[str]:
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return [self._tokenizer.decode(row, **options) for row in rows]

    def normalise(self, text: str) -> str:
        return text

    def added_tokens(self) -> list[AddedToken]:
        if getattr(self._tokenizer, "split_special_tokens", False):
            return []
        return [
            AddedToken(i, token.content, _rules_of(token))
            for i, token in sorted(self._tokenizer.added_tokens_decoder.items())
        ]

    def token_rows(self, token_ids: list[int]) -> list[list[Any]]:
        tokenizer, size = self._tokenizer, len(self._tokenizer)
        added = {
            i: {rule: getattr(token, rule) for rule in _MATCHING_RULES}
            for i, token in tokenizer.added_tokens_decoder.items()
        }
        return [
            [i, tokenizer.convert_ids_to_tokens(i) if i < size else None, _matching_rules(added.get(i))]
            for i in token_ids
        ]

    def unknown_token_id(self) -> int | None:
        unknown: int | None = self._tokenizer.unk_token_id
        return unknown

    def parts(self, token_ids: list[int]) -> _Parts:
        tokenizer = self._tokenizer
        base_size = tokenizer.vocab_size
        vocabulary = sorted((i, token) for token, i in tokenizer.get_vocab().items() if i < base_size)
        model = canonical([type(tokenizer).__name__, vocabulary]) + self._vocabulary_files()
        behaviour = canonical(self.encode(list(_PROBES)))
        return _Parts(model, behaviour, behaviour, canonical(self.token_rows(token_ids)))

    def _vocabulary_files(self) -> bytes:
        """The files that hold merges and scores, where the class has any."""
        with tempfile.TemporaryDirectory() as folder:
            try:
                self._tokenizer.save_vocabulary(folder)
            except NotImplementedError:
                return b""
            return b"".join(path.read_bytes() for path in sorted(Path(folder).iterdir()))


class _Mistral:
    """mistral-common's ``Tekkenizer`` and ``SentencePieceTokenizer``."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [self._tokenizer.encode(text, bos=False, eos=False) for text in texts]

    def decode(self, rows: list[list[int]]) -> list[str]:
        return list(map(self._tokenizer.decode, rows))

    def normalise(self, text: str) -> str:
        return text

    def added_tokens(self) -> list[AddedToken]:
        return []  # control tokens are never matched in text

    def token_rows(self, token_ids: list[int]) -> list[list[Any]]:
        size = self.vocab_size()
        return [[i, self._tokenizer.id_to_piece(i) if i < size else None] for i in token_ids]

    def unknown_token_id(self) -> int | None:
        # A Tekkenizer encodes every byte, its <unk> is never written.
        return None if hasattr(self._tokenizer, "id_to_byte_piece") else int(self._tokenizer.unk_id)

    def vocab_size(self) -> int:
        return int(self._tokenizer.n_words)

    def token_id(self, token: str) -> int | None:
        return int(self._tokenizer.get_special_token(token)) if self._tokenizer.is_special(token) else None

    def parts(self, token_ids: list[int]) -> _Parts:
        tokenizer, size = self._tokenizer, self.vocab_size()
        if hasattr(tokenizer, "id_to_byte_piece"):
            # The order of the pieces is the order of the merges; as strings, pieces of bytes would be lossy.
            pieces = map(tokenizer.id_to_byte_piece, range(size))
            model = b"".join(len(piece).to_bytes(4, "little") + piece for piece in pieces)
        else:
            model = canonical(tokenizer.vocab())
        behaviour = canonical(self.encode(list(_PROBES)))
        return _Parts(model, behaviour, behaviour, canonical(self.token_rows(token_ids)))


_MATCHING_RULES = ("single_word", "lstrip", "rstrip", "normalized")


def _matching_rules(added_token: Mapping[str, Any] | None) -> list[bool] | None:
    """How an added token is found in text; None for an ordinary one."""
    return None if added_token is None else [bool(added_token[rule]) for rule in _MATCHING_RULES]


def _rules_of(token: Any) -> tuple[bool, ...]:
    """The matching rules of an ``AddedToken`` of ``tokenizers``."""
    return tuple(bool(getattr(token, rule)) for rule in _MATCHING_RULES)


def canonical(value: Mapping[str, Any] | Sequence[Any] | None) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
