"""What a catalog keeps of its texts, so that a tokenizer whose added tokens split one of them is found later.

A fingerprint cannot do it: added tokens are matched in the text before the model sees it, a catalog uses none of the
ids of those that were added after the build, and most of them (``<pad>``, ``<SOI>``) stand in no title. The record
holds which pairs of characters occur in the texts, which rules out nearly every token, and a digest of the texts: where
decoding gives the texts back, the remaining tokens are tried on them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gentrie.tokenization import Adapter, AddedToken, adapter_of, canonical

__all__ = ["RECORD_KEY", "TextRecord", "check_texts", "record_texts", "tokenizers_agree"]

RECORD_KEY = "tokenizer_texts"
"""Metadata key of the record."""

_CHUNK = 4096
_BLOCK = 1 << 20
_PAIR_BITS = 16  # 3,720 pairs in 14,172 English titles set 6% of the bits
_ODD = 0x9E3779B97F4A7C15

Sequences = Callable[[], tuple[npt.NDArray[Any], npt.NDArray[np.int64]]]


class TextRecord(NamedTuple):
    """Facts about the texts of a catalog and about the tokenizer that encoded them.

    Attributes
    ----------
    texts
        Digest of the set of texts: the template with each title, without the context.
    pairs
        bool [2**16]: hashes of the characters and of the pairs of characters in context and texts, in each form in
        which added tokens are matched (as written, lower case, normalised).
    added
        Added tokens that the catalog uses or that may stand in a text.
    context
        Digest of the context's tokens.
    unknown_token_id
        Token of characters that the tokenizer lacks, or None.
    """

    texts: str
    pairs: npt.NDArray[np.bool_]
    added: tuple[AddedToken, ...]
    context: str
    unknown_token_id: int | None

    def to_json(self) -> str:
        """Return the record as the value of a metadata key."""
        packed = zlib.compress(np.packbits(self.pairs).tobytes(), 9)
        return json.dumps({**self._asdict(), "pairs": base64.b64encode(packed).decode()}, separators=(",", ":"))

    @classmethod
    def of(cls, metadata: dict[str, str]) -> TextRecord | None:
        """Read the record of a trie; None where it has none (not built from titles, or by an older version).

        Raises
        ------
        ValueError
            If the record is not one.
        """
        if RECORD_KEY not in metadata:
            return None
        try:
            fields = json.loads(metadata[RECORD_KEY])
            packed = zlib.decompressobj().decompress(base64.b64decode(fields["pairs"]), 1 << _PAIR_BITS)
            pairs = np.unpackbits(np.frombuffer(packed, dtype=np.uint8)).astype(bool)
            if pairs.size != 1 << _PAIR_BITS:
                raise ValueError(f"{pairs.size} bits")
            added = tuple(
                AddedToken(int(i), str(content), tuple(map(bool, rules))) for i, content, rules in fields["added"]
            )
            unknown = fields["unknown_token_id"]
            return cls(
                str(fields["texts"]), pairs, added, str(fields["context"]), None if unknown is None else int(unknown)
            )
        except (ValueError, KeyError, TypeError, RecursionError, zlib.error, binascii.Error) as error:
            raise ValueError(f"metadata {RECORD_KEY!r} is damaged: {error}") from None

    def may_hold(self, forms: Iterable[str]) -> bool:
        """Whether some form of a string may stand in some text; False is certain."""
        return any(bool(self.pairs[_hashes(form)].all()) for form in forms if form)


def record_texts(
    texts: Sequence[str], tokenizer: Any, *, context: str, token_ids: npt.NDArray[np.integer[Any]]
) -> TextRecord:
    """Record the texts of a catalog.

    Parameters
    ----------
    texts
        The template with each title.
    tokenizer
        The tokenizer that encoded them.
    context
        The text before each.
    token_ids
        The token ids that the catalog uses.
    """
    adapter = adapter_of(tokenizer)
    pairs = np.zeros(1 << _PAIR_BITS, dtype=bool)
    digests = []
    for start in range(0, len(texts), _CHUNK):
        chunk = texts[start : start + _CHUNK]
        digests.append(_digests(chunk))
        for form in _forms(adapter, [context + text for text in chunk]):
            for begin in range(0, len(form), _BLOCK):  # a title may have millions of characters
                pairs[_hashes(form[begin : begin + _BLOCK + 1])] = True
    context_ids, context_digest = _context(adapter, context)
    record = TextRecord(_digest_of(digests), pairs, (), context_digest, adapter.unknown_token_id())
    used = {*map(int, token_ids), *context_ids}
    return record._replace(
        added=tuple(
            token
            for token in adapter.added_tokens()
            if token.token_id in used or record.may_hold(_forms(adapter, [token.content]))
        )
    )


def check_texts(
    record: TextRecord, tokenizer: Any, *, context: str, token_ids: npt.NDArray[np.integer[Any]], sequences: Sequences
) -> None:
    """Refuse a tokenizer whose added tokens give one of a catalog's texts other tokens.

    Parameters
    ----------
    record
        Of the texts, made at build time.
    tokenizer
        The tokenizer to check. Its model, normaliser, pre-tokeniser and used tokens have been compared already.
    context
        The text before each title.
    token_ids
        The token ids that the catalog uses.
    sequences
        Called where the record cannot tell: returns the catalog's sequences as ``(values, indptr)``, without end
        tokens.

    Raises
    ------
    ValueError
        If a text has other tokens, or if that cannot be ruled out; names the added tokens.
    """
    adapter = adapter_of(tokenizer)
    advice = "use the tokenizer that the trie was built with, or rebuild the trie"
    if _context(adapter, context)[1] != record.context:
        raise ValueError(f"tokenizer encodes the context {context!r} differently from the one at build; {advice}")
    active = adapter.added_tokens()
    present = {(token.content, token.rules) for token in active}
    known = {(token.content, token.rules) for token in record.added}
    new = [
        token.content
        for token in active
        if (token.content, token.rules) not in known and record.may_hold(_forms(adapter, [token.content]))
    ]
    used = set(map(int, token_ids))
    gone = [
        token.content
        for token in record.added
        if (token.content, token.rules) not in present
        and token.token_id in used
        and record.may_hold(_forms(adapter, [token.content]))
    ]
    if not new and not gone:
        return
    problems = [
        f"{verb} {', '.join(map(repr, tokens[:5]))}{' and others' if len(tokens) > 5 else ''}"
        for verb, tokens in (("has the added tokens", new), ("does not match the added tokens", gone))
        if tokens
    ]
    found = _first_difference(record, adapter, context, sequences)
    if found is not None:
        raise ValueError(f"tokenizer {' and '.join(problems)}, unlike the one at build: {found}; {advice}")


def tokenizers_agree(
    old: tuple[dict[str, str], npt.NDArray[np.int32]], new: tuple[dict[str, str], npt.NDArray[np.int32]]
) -> bool:
    """Whether two tries, each given as (metadata, vocabulary), were built with tokenizers that encode alike.

    Fingerprints alone cannot say: their last part depends on the token ids that each catalog uses. An added token that
    no title of either catalog holds makes no difference.
    """
    prints = [metadata.get("tokenizer_fingerprint", "") for metadata, _ in (old, new)]
    if np.array_equal(old[1], new[1]) and prints[0] != prints[1]:
        return False
    if prints[0][:48] != prints[1][:48] or len(prints[0]) != len(prints[1]):
        return False
    records = [TextRecord.of(metadata) for metadata, _ in (old, new)]
    if records[0] is None or records[1] is None:
        return True  # by an older version: what can be compared has been
    return not any(
        _lacks(mine, theirs, set(vocabulary.tolist()))
        for mine, theirs, vocabulary in ((records[0], records[1], new[1]), (records[1], records[0], old[1]))
    )


def _lacks(mine: TextRecord, theirs: TextRecord, their_ids: set[int]) -> bool:
    """Whether a token of one record contradicts the other: it would be there if the tokenizers were the same."""
    by_id = {token.token_id: token for token in theirs.added}
    known = {(token.content, token.rules) for token in theirs.added}
    for token in mine.added:
        if token.token_id in by_id and by_id[token.token_id] != token:
            return True
        if token.token_id in their_ids and token.token_id not in by_id:
            return True
        if (token.content, token.rules) not in known and theirs.may_hold([token.content, token.content.lower()]):
            return True
    return False


def _first_difference(record: TextRecord, adapter: Adapter, context: str, sequences: Sequences) -> str | None:
    """What speaks against a tokenizer, after its encoding of every text; None where all have their tokens."""
    unsure = "its titles cannot be read back from their tokens, so a title with one of them cannot be ruled out"
    values, indptr = sequences()
    prefix = adapter.encode([context])[0] if context else []
    digests, first = [], None
    for rows in _chunks_of_rows(values, indptr):
        texts = adapter.decode(rows)
        digests.append(_digests(texts))
        if first is None:
            encoded = adapter.encode([context + text for text in texts])
            first = next(
                (text for text, row, ids in zip(texts, rows, encoded, strict=True) if [*prefix, *row] != ids), None
            )
    if _digest_of(digests) != record.texts:
        return unsure
    return None if first is None else f"{first!r} gets other tokens"


def _chunks_of_rows(values: npt.NDArray[Any], indptr: npt.NDArray[np.int64]) -> Iterator[list[list[int]]]:
    for start in range(0, indptr.size - 1, _CHUNK):
        yield [values[a:b].tolist() for a, b in pairwise(indptr[start : start + _CHUNK + 1])]


def _forms(adapter: Adapter, texts: Sequence[str]) -> tuple[str, ...]:
    """Texts in the forms in which added tokens are matched, joined by a character that no title holds."""
    written = "\0".join(texts)
    return written, written.lower(), "\0".join(map(adapter.normalise, texts))


def _hashes(text: str) -> npt.NDArray[np.uint64]:
    """Hashes, in [0, 2**16), of the characters and the pairs of neighbouring characters of a text."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    both = np.concatenate([codes, (codes[:-1] << np.uint64(21)) | codes[1:]])
    hashes: npt.NDArray[np.uint64] = (both * np.uint64(_ODD)) >> np.uint64(64 - _PAIR_BITS)
    return hashes


def _context(adapter: Adapter, context: str) -> tuple[list[int], str]:
    """Token ids of the context, and a digest of them, their strings and their matching rules."""
    ids = adapter.encode([context])[0] if context else []
    return ids, hashlib.sha256(canonical(adapter.token_rows(ids))).hexdigest()[:16]


def _digests(texts: Sequence[str]) -> npt.NDArray[np.uint64]:
    hashes = b"".join(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.unique(np.frombuffer(hashes, dtype="<u8"))


def _digest_of(digests: list[npt.NDArray[np.uint64]]) -> str:
    return hashlib.sha256(np.unique(np.concatenate(digests)).astype("<u8").tobytes()).hexdigest()[:32]
