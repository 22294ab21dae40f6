"""The catalog as a compressed trie of token sequences."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie._chunks import build_from_chunks
from gentrie._collisions import refuse_collisions, suffixed
from gentrie._item_names import NAMES_KEY, ItemNames, split_item_ids
from gentrie._pickling import from_file_bytes, holds, load_pickled, to_file_bytes
from gentrie._progress import progress_bar
from gentrie._text_record import RECORD_KEY, TextRecord, check_texts, record_texts
from gentrie._titles import errors_name_titles, refuse_title_collisions
from gentrie.tokenization import (
    adapter_of,
    check_tokenizer,
    checked_titles,
    encode_titles,
    tokenizer_fingerprint,
    vocab_size_of,
)

if TYPE_CHECKING:
    import torch


Sequences = Sequence[Sequence[int]] | tuple[npt.NDArray[Any], npt.NDArray[Any]] | npt.NDArray[Any]

_TOKENIZER_KEY = "tokenizer_fingerprint"


class TokenTrie:
    """Every valid token sequence of a catalog, path-compressed; immutable, shared freely by threads and processes.

    Build one with :meth:`from_sequences`, :meth:`from_titles` or :meth:`from_semantic_ids`, or :meth:`load` one. The
    same set of (sequence, item id) pairs gives the same bytes whatever their order and the number of threads, and
    :attr:`fingerprint` names it.

    A *state* is an opaque int64 that names a place in the trie: 0 is the root, -1 says that a history has left the
    trie, -2 stands for free text outside any item. States belong to one fingerprint.

    Pickled, as for processes that are spawned, a trie that was loaded from or saved to a file is that file's name and
    its fingerprint: the other process maps the same file and refuses another. One in memory alone is copied.
    """

    __slots__ = ("_core", "_fingerprint", "_item_names", "_metadata", "_path", "_vocabulary")

    def __init__(self, core: _core.Trie, metadata: Mapping[str, str] | None = None) -> None:
        if not isinstance(core, _core.Trie):
            raise TypeError(
                f"TokenTrie() is given a {type(core).__name__}: TokenTrie.from_sequences builds one from token ids, "
                "from_titles and from_semantic_ids from what they say, and TokenTrie.load reads a file"
            )
        self._core = core
        self._path: str | None = None  # of a file that holds it, metadata included
        self._metadata = dict(core.metadata if metadata is None else metadata)
        names = self._metadata.pop(NAMES_KEY, None)
        self._item_names = None if names is None else ItemNames(names)  # of items, where their ids are strings
        self._fingerprint: str | None = None
        self._vocabulary: npt.NDArray[np.int32] | None = None

    # --- Building ---------------------------------------------------------------------------------------------------

    @classmethod
    def from_sequences(
        cls,
        sequences: Sequences,
        *,
        vocab_size: int,
        end_token_id: int | None = None,
        item_ids: Sequence[int] | Sequence[str] | npt.NDArray[Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        num_threads: int | None = None,
        memory_limit: int | None = None,
        progress: bool = False,
    ) -> TokenTrie:
        """Build from token ids.

        Parameters
        ----------
        sequences
            A list of lists, ``(values, indptr)`` arrays where row i is ``values[indptr[i]:indptr[i + 1]]``, or an
            array [N, L]; any integer dtype. Order and repeats do not matter. Arrays are not copied: no other thread
            may write to them meanwhile, and a build that sees it done raises.
        vocab_size
            Token ids lie in [0, vocab_size): the width of the model's logits, or less.
        end_token_id
            Appended to every sequence. Without it no sequence may be a prefix of another.
        item_ids
            int64 [N], by default the row number; or strings [N], such as ASINs, which lookups, filters and searches
            then take and give, and which are saved with the trie. Several items may share a sequence; a pair
            (sequence, item id) that is listed twice counts once.
        metadata
            Kept as :attr:`metadata` and saved with the trie, such as ``{"codebook": "v7"}``.
        num_threads
            Default: the processors this process may use.
        memory_limit
            Bytes that the build may take beside its input, the finished trie included. Default: what the system has
            available and the cgroup allows.
        progress
            Show a progress bar on stderr.

        Raises
        ------
        ValueError, TypeError
            Naming row, value and limit: no sequences, an empty one, a token outside the vocabulary, the end token
            inside a sequence, a sequence that is a prefix of another, wrong dtypes or shapes, more than 2**31 - 2 rows.
        MemoryError
            Before more than ``memory_limit`` is taken.
        """
        values, indptr = _validate.sequences(sequences)
        return cls._build(
            values,
            indptr,
            vocab_size,
            end_token_id=end_token_id,
            item_ids=item_ids,
            metadata=metadata,
            num_threads=num_threads,
            memory_limit=memory_limit,
            progress=progress,
        )

    @classmethod
    def from_chunks(
        cls,
        chunks: Iterable[Any],
        *,
        vocab_size: int,
        end_token_id: int | None = None,
        with_item_ids: bool = False,
        metadata: Mapping[str, str] | None = None,
        num_threads: int | None = None,
        memory_limit: int | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> TokenTrie:
        """Build from chunks that together need not fit in memory.

        Each chunk is sorted and compacted when it comes, to about half the bytes that its items take in the finished
        trie, and all are merged at the end. The trie is the one that :meth:`from_sequences` builds from all rows at
        once, whatever the cuts. Beside the chunk at hand the build holds at most 2.5 times the finished trie.

        Parameters
        ----------
        chunks
            An iterable; each chunk has any form that :meth:`from_sequences` takes, such as slices of a memory-mapped
            array [N, L]. A chunk may have no rows, and one of a few hundred thousand costs least.
        vocab_size, end_token_id, metadata, num_threads
            As in :meth:`from_sequences`.
        with_item_ids
            Each chunk is a pair (sequences, item_ids). Default: an item's id is its row number over all chunks.
        memory_limit
            As in :meth:`from_sequences`, the chunk at hand not counted.
        spill_dir
            Keep compacted chunks in nameless files in this folder, not in memory; the system removes them however the
            process ends.
        progress
            Show progress bars on stderr.

        Raises
        ------
        ValueError, TypeError, MemoryError
            As :meth:`from_sequences` does, naming ``chunks[number][row]``; for a sequence that is a prefix of one of
            another chunk, the items.
        OSError
            If ``spill_dir`` cannot be written to.
        """
        vocab_size = _validate.integer("vocab_size", vocab_size, 1, 2**31 - 1)
        kept = _validate.metadata(metadata)
        return cls(
            build_from_chunks(
                chunks,
                vocab_size=vocab_size,
                end_token_id=_validate.optional_token("end_token_id", end_token_id, vocab_size),
                with_item_ids=_validate.choice("with_item_ids", with_item_ids, (False, True)),
                num_threads=_validate.optional_count("num_threads", num_threads, 4096),
                memory_limit=_validate.optional_count("memory_limit", memory_limit, 2**62),
                spill_folder=b"" if spill_dir is None else _validate.path(spill_dir),
                progress=progress,
            ),
            kept,
        )

    @classmethod
    def from_titles(
        cls,
        titles: Iterable[str],
        tokenizer: Any,
        *,
        template: str = "{title}",
        context: str = "",
        end_token_id: int | None = None,
        item_ids: Sequence[int] | Sequence[str] | npt.NDArray[Any] | None = None,
        vocab_size: int | None = None,
        on_collision: Literal["keep", "error"] = "keep",
        metadata: Mapping[str, str] | None = None,
        num_threads: int | None = None,
        memory_limit: int | None = None,
        progress: bool = False,
    ) -> TokenTrie:
        """Build from titles, as the model will write them.

        Parameters
        ----------
        titles
            One str an item.
        tokenizer
            Of transformers (fast or slow), ``tokenizers.Tokenizer``, or of mistral-common.
        template
            What the model writes for an item; ``{title}`` is replaced.
        context
            The text right before the item. Tokens depend on it, so each title is encoded behind it, without special
            tokens, and the context's own tokens are dropped. Prompts must end in the same text, and prompt and title
            must be joined as ids, never as text.
        end_token_id
            As in :meth:`from_sequences`; needed where one title's tokens are a prefix of another's.
        item_ids, num_threads
            As in :meth:`from_sequences`.
        vocab_size
            Default: ``len(tokenizer)``.
        on_collision
            What becomes of items with the same tokens, be it that their titles are equal or that they differ only in
            characters that the tokenizer drops or lacks: ``"keep"`` lets one sequence stand for all of them (see
            :meth:`collisions`), ``"error"`` refuses them.
        metadata
            As in :meth:`from_sequences`, beside the tokenizer's fingerprint, template and context, which are kept too.
        memory_limit
            As in :meth:`from_sequences`; titles and their tokens are the input, and not counted.
        progress
            Show progress bars on stderr.

        Raises
        ------
        ValueError, TypeError, MemoryError
            Naming the row: an empty title, one that is no str, a context whose tokens are not a prefix of the whole
            encoding; collisions that ``on_collision`` refuses; and what :meth:`from_sequences` refuses.
        """
        on_collision = _validate.choice("on_collision", on_collision, ("keep", "error"))
        kept = _validate.metadata(metadata, reserved=(_TOKENIZER_KEY, "template", "context", RECORD_KEY))
        rows = checked_titles(titles)
        values, indptr = encode_titles(rows, tokenizer, template=template, context=context, progress=progress)
        if vocab_size is None:
            vocab_size = vocab_size_of(tokenizer)
        with errors_name_titles(rows):
            trie = cls._build(
                values,
                indptr,
                vocab_size,
                end_token_id=end_token_id,
                item_ids=item_ids,
                num_threads=num_threads,
                memory_limit=memory_limit,
                progress=progress,
            )
        texts = [template.replace("{title}", title) for title in rows]
        record = record_texts(texts, tokenizer, context=context, token_ids=trie.vocabulary)
        if on_collision == "error":
            ids, names = split_item_ids(item_ids, len(rows))
            ids = ids if ids is None or names is None else names.of(ids)
            refuse_title_collisions(trie, rows, ids, record.unknown_token_id)
        trie._metadata = {
            **kept,
            _TOKENIZER_KEY: tokenizer_fingerprint(tokenizer, trie.vocabulary),
            RECORD_KEY: record.to_json(),
            "template": template,
            "context": context,
        }
        if context and (before := adapter_of(tokenizer).encode([context])[0]):
            trie._metadata["context_end_token_id"] = str(before[-1])  # by which prompts of other ends are found
        return trie

    @classmethod
    def from_semantic_ids(
        cls,
        codes: npt.NDArray[Any],
        *,
        token_ids: npt.NDArray[Any] | Sequence[Sequence[int]] | tuple[int, int],
        vocab_size: int,
        end_token_id: int | None = None,
        item_ids: Sequence[int] | Sequence[str] | npt.NDArray[Any] | None = None,
        on_collision: Literal["keep", "error", "suffix"] = "keep",
        metadata: Mapping[str, str] | None = None,
        num_threads: int | None = None,
        memory_limit: int | None = None,
        progress: bool = False,
    ) -> TokenTrie:
        """Build from semantic ids: L codes an item, each in [0, K).

        Parameters
        ----------
        codes
            Integers [N, L].
        token_ids
            [L, K]: the token id that stands for each code at each position; or ``(base, stride)`` for
            ``base + position * stride + code``, where K is the stride.
        vocab_size, end_token_id, item_ids, metadata, num_threads, memory_limit, progress
            As in :meth:`from_sequences`.
        on_collision
            What becomes of items with the same codes: ``"keep"`` lets one sequence stand for all of them (see
            :meth:`collisions`), ``"error"`` refuses them. ``"suffix"`` gives every item one code more, as TIGER does
            (Rajput et al., arXiv 2305.05065, section 3.1): its place by item id among the items with its codes, 0 where
            it is alone. A table of ``token_ids`` then has a row for the suffix, [L + 1, K].

        Raises
        ------
        ValueError, TypeError, MemoryError
            For a code outside [0, K) naming row and position, for collisions that ``on_collision`` refuses or that
            are more than K suffixes can tell apart, and what :meth:`from_sequences` refuses.
        """
        rows = _validate.int64_array("codes", codes)
        if rows.ndim != 2:
            raise ValueError(f"codes has shape {rows.shape}, expected [N, L]")
        vocab_size = _validate.integer("vocab_size", vocab_size, 1, 2**31 - 1)
        on_collision = _validate.choice("on_collision", on_collision, ("keep", "error", "suffix"))
        length = rows.shape[1]
        num_positions = length + 1 if on_collision == "suffix" else length
        values: npt.NDArray[Any]
        if isinstance(token_ids, tuple) and len(token_ids) == 2 and not np.ndim(token_ids[0]):
            base = _validate.integer("token_ids[0]", token_ids[0], 0, vocab_size - 1)
            stride = _validate.integer("token_ids[1]", token_ids[1], 1, vocab_size)
            _refuse_codes(rows, stride)
            values = base + stride * np.arange(length) + rows
            suffix_tokens: range | npt.NDArray[np.int64] = range(base + stride * length, base + stride * (length + 1))
        else:
            table = _validate.int64_array("token_ids", token_ids)
            if table.ndim != 2 or table.shape[0] != num_positions:
                raise ValueError(f"token_ids has shape {table.shape}, expected [{num_positions}, K]")
            _refuse_codes(rows, table.shape[1])
            values = table[np.arange(length), rows]
            suffix_tokens = table[-1]
        options: dict[str, Any] = {
            "end_token_id": end_token_id,
            "metadata": metadata,
            "num_threads": num_threads,
            "memory_limit": memory_limit,
            "progress": progress,
        }
        trie = cls._build(values, None, vocab_size, item_ids=item_ids, **options)
        if on_collision == "error":
            refuse_collisions(trie)
        if on_collision == "suffix":
            names = trie._item_names
            values, ids = suffixed(trie, suffix_tokens)
            trie = cls._build(values, None, vocab_size, item_ids=ids, **options)
            trie._item_names = names
        return trie

    @classmethod
    def _build(
        cls,
        values: npt.NDArray[Any],
        indptr: npt.NDArray[np.int64] | None,
        vocab_size: int,
        *,
        end_token_id: int | None = None,
        item_ids: Sequence[int] | Sequence[str] | npt.NDArray[Any] | None = None,
        metadata: Mapping[str, str] | None = None,
        num_threads: int | None = None,
        memory_limit: int | None = None,
        progress: bool = False,
    ) -> TokenTrie:
        kept = _validate.metadata(metadata)
        vocab_size = _validate.integer("vocab_size", vocab_size, 1, 2**31 - 1)
        end = _validate.optional_token("end_token_id", end_token_id, vocab_size)
        threads = _validate.optional_count("num_threads", num_threads, 4096)
        limit = _validate.optional_count("memory_limit", memory_limit, 2**62)
        num_rows = values.shape[0] if indptr is None else indptr.size - 1
        ids, names = split_item_ids(item_ids, num_rows)
        with progress_bar("building", num_rows) if progress else nullcontext() as report:
            core = _core.Trie.build(values, indptr, vocab_size, end, ids, threads, limit, report)
        trie = cls(core, kept)
        trie._item_names = names
        return trie

    # --- Files ------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> None:
        """Write a ``.safetensors`` file: to a temporary name beside ``path``, synced, then renamed over it.

        ``metadata`` (str to str) is stored beside what :attr:`metadata` holds already and replaces equal keys. A
        symbolic link is followed; a file that is replaced passes on its permissions. What a save that was killed left
        beside ``path`` is removed by the next one.

        Raises
        ------
        OSError
            If the file cannot be written; nothing half-written is left.
        ValueError, TypeError
            For metadata that is not str to str, uses keys beginning with ``gentrie.``, or takes more than 100 MB.
        """
        stored = {**self._metadata, **_validate.metadata(metadata)}
        self._core.save(_validate.path(path), {**stored, **self._own_metadata()})
        if stored == self._metadata:
            self._path = os.path.abspath(os.fsdecode(path))

    def _own_metadata(self) -> dict[str, str]:
        """What files hold beside :attr:`metadata`."""
        return {} if self._item_names is None else {NAMES_KEY: self._item_names.text}

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        verify: bool | None = None,
        require: Mapping[str, str] | None = None,
        prefault: bool = False,
        copy: bool = False,
    ) -> TokenTrie:
        """Map a file written by :meth:`save`; its pages are shared by all processes that load it.

        Parameters
        ----------
        path
            The file.
        verify
            Check every byte against the checksums, and the arrays against each other, on all processors. Default: for
            files under 16 MB. The header and the table of arrays are checked in any case, and an altered body that is
            not checked may give wrong answers but never a read outside the file.
        require
            Metadata that the file must carry, such as ``{"codebook": "v7"}``.
        prefault
            Read the whole file into memory now. Default: each page at the first lookup that touches it, so that a file
            of any size opens in milliseconds.
        copy
            Read the file into memory of this process's own. Default: map it, and then nobody may write to it in place,
            as ``cp new old`` does: lookups would give other answers, and a file that became shorter would end the
            process with SIGBUS. :meth:`save` and ``mv`` put a new file in its place and disturb nobody.

        Raises
        ------
        OSError
            If the file cannot be read.
        ValueError
            If it is not a gentrie file, truncated, altered, of another format version, or lacks what ``require``
            asks for.
        """
        prefault = _validate.choice("prefault", prefault, (False, True))
        copy = _validate.choice("copy", copy, (False, True))
        trie = cls(_core.Trie.load(_validate.path(path), verify, prefault, copy))
        for key, value in _validate.string_map("require", require).items():
            if trie._metadata.get(key) != value:
                raise ValueError(f"{os.fspath(path)}: metadata {key}={trie._metadata.get(key)!r}, required {value!r}")
        trie._path = os.path.abspath(os.fsdecode(path))
        return trie

    def verify(self, *, progress: bool = False) -> None:
        """Check every array against the fingerprint and against the others, on all processors.

        Parameters
        ----------
        progress
            Show a progress bar on stderr.

        Raises
        ------
        ValueError
            Naming what does not fit.
        """
        with progress_bar("verifying", self.num_sequences) if progress else nullcontext() as report:
            self._core.verify(report)
        if self._item_names is not None:
            self._item_names.verify(self._core.items_below(0))

    def check_tokenizer(self, tokenizer: Any) -> None:
        """Refuse a tokenizer that would write this catalog's titles differently from the one at build.

        Raises
        ------
        ValueError
            If it differs: in its model, normaliser, pre-tokeniser or in a token that the catalog uses; in the tokens of
            the context; or in added tokens that split a title. Added tokens that stand in no title are harmless. Where
            they may stand in one, all titles are encoded to find out, and where titles cannot be read back from their
            tokens, the tokenizer is refused. A trie that was not built from titles accepts any tokenizer.
        """
        check_tokenizer(self._metadata.get(_TOKENIZER_KEY), tokenizer, self.vocabulary)
        record = TextRecord.of(self._metadata)
        if record is not None:
            context = self._metadata.get("context", "")
            check_texts(record, tokenizer, context=context, token_ids=self.vocabulary, sequences=self._title_sequences)

    def _title_sequences(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Sequences as ``(values, indptr)`` without their end tokens."""
        values, indptr, _, _ = self._core.to_sequences(False)
        if self.end_token_id is None:
            return values, indptr
        return np.delete(values, indptr[1:] - 1), indptr - np.arange(indptr.size)

    # --- Facts ------------------------------------------------------------------------------------------------------

    @property
    def num_items(self) -> int:
        """Distinct (sequence, item id) pairs."""
        return self._core.num_items

    @property
    def num_sequences(self) -> int:
        """Distinct sequences."""
        return self._core.num_sequences

    @property
    def vocab_size(self) -> int:
        """Token ids lie in [0, vocab_size)."""
        return self._core.vocab_size

    @property
    def end_token_id(self) -> int | None:
        """The token that ends every sequence, or None."""
        return None if self._core.end_token_id < 0 else self._core.end_token_id

    @property
    def vocabulary(self) -> npt.NDArray[np.int32]:
        """The distinct token ids in use, ascending; int32, read-only."""
        if self._vocabulary is None:
            self._vocabulary = self._core.arrays()["vocabulary"]
        return self._vocabulary

    @property
    def max_depth(self) -> int:
        """Tokens of the longest sequence, its end token included."""
        return self._core.max_depth

    @property
    def max_branching(self) -> int:
        """Most valid next tokens at any place."""
        return self._core.max_branching

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that name the contents; states and filters belong to one fingerprint."""
        if self._fingerprint is None:
            rows = self._core.fingerprint
            self._fingerprint = rows if self._item_names is None else self._item_names.fingerprint(rows)
        return self._fingerprint

    @property
    def metadata(self) -> dict[str, str]:
        """What is stored beside the arrays: the tokenizer's fingerprint, template, context, and your own keys."""
        return dict(self._metadata)

    @property
    def nbytes_by_array(self) -> dict[str, int]:
        """Bytes of each array; ``item_ids`` and ``item_indptr`` are the leaf-to-item table.

        ``token_index`` (of the vocabulary and of the root's children) is made at load and stands in no file;
        ``item_names`` are item ids that are strings.
        """
        arrays = {name: array.nbytes for name, array in self._core.arrays().items()}
        if self._item_names is not None:
            arrays["item_names"] = self._item_names.nbytes
        return {**arrays, "token_index": self._core.token_index_nbytes}

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(self.nbytes_by_array.values())

    def __repr__(self) -> str:
        return (
            f"TokenTrie(num_items={self.num_items}, num_sequences={self.num_sequences}, vocab_size={self.vocab_size}, "
            f"max_depth={self.max_depth}, nbytes={self.nbytes}, fingerprint={self.fingerprint!r})"
        )

    def __copy__(self) -> TokenTrie:
        return self  # immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> TokenTrie:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """A trie that a file holds pickles as the file's name and its fingerprint, any other as the file's bytes."""
        if self._path is not None and holds(type(self), self._path, self.fingerprint):
            return load_pickled, (type(self), self._path, self.fingerprint)
        return from_file_bytes, (type(self), to_file_bytes(self))

    # --- Lookups ----------------------------------------------------------------------------------------------------

    @property
    def root(self) -> int:
        """The state in which nothing of an item has been written: 0."""
        return 0

    def next_tokens(self, state: int) -> npt.NDArray[np.int32]:
        """Valid next tokens, ascending; int32. None after a complete sequence and for negative states.

        Raises
        ------
        ValueError
            If ``state`` is not one of this trie's (so for every lookup by state).
        """
        return self._core.next_tokens(_validate.state(state))

    def advance(self, state: int, token: int) -> int:
        """State after ``token``: -1 where it is not valid; negative states stay as they are."""
        return self._core.advance(_validate.state(state), _validate.token(token))

    def walk(self, tokens: Sequence[int] | npt.NDArray[Any], state: int = 0) -> int:
        """State after several tokens."""
        if type(tokens) is list and type(state) is int and -2 <= state < 2**63:
            reached = self._core.walk_list(tokens, state)
            if reached != -3:  # otherwise what is no token is named below
                return reached
        return self._core.walk(_validate.token_row("tokens", tokens), _validate.state(state))

    def next_tokens_batch(
        self, states: Sequence[int] | npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Valid next tokens of states [N] as ``(tokens, indptr)``: row i's are ``tokens[indptr[i]:indptr[i + 1]]``."""
        return self._core.next_tokens_batch(_validate.token_row("states", states))

    def advance_batch(
        self,
        states: Sequence[int] | npt.NDArray[Any],
        tokens: Sequence[int] | npt.NDArray[Any],
        *,
        num_threads: int = 1,
    ) -> npt.NDArray[np.int64]:
        """States [N] after one token [N] each; int64."""
        before, chosen = _validate.token_row("states", states), _validate.token_row("tokens", tokens)
        if before.size != chosen.size:
            raise ValueError(f"states has {before.size} entries, tokens has {chosen.size}")
        return self._core.advance_batch(before, chosen, _validate.integer("num_threads", num_threads, 1, 4096))

    def forced_tokens(self, state: int) -> npt.NDArray[np.int32]:
        """Tokens that are the only continuation, one after the other, up to a branch or the sequence's end; int32."""
        return self._core.forced_tokens(_validate.state(state))

    def is_leaf(self, state: int) -> bool:
        """Whether ``state`` is the end of a complete sequence."""
        return self._core.is_leaf(_validate.state(state))

    def num_sequences_below(self, state: int) -> int:
        """Distinct sequences that ``state`` can still reach; 0 for negative states."""
        return self._core.num_sequences_below(_validate.state(state))

    def items_below(self, state: int) -> npt.NDArray[Any]:
        """Items that ``state`` can still reach; int64, or str objects where item ids are strings.

        Those of one sequence stand together, ascending by id. Sequences come in the order in which the trie numbers
        them: at every branch first those that share no more tokens with another, then those below the branches that
        follow, each time in the order of the next token.
        """
        return self._named(self._core.items_below(_validate.state(state)))

    def resolve(self, tokens: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Items of one complete sequence, its end token optional, as in :meth:`items_below`; none if there is none."""
        return self._named(self._core.resolve(_validate.token_row("tokens", tokens)))

    def _named(self, items: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Items as the core numbers them by the ids that users know."""
        return items if self._item_names is None else self._item_names.of(items)

    def token_states(
        self,
        token_ids: torch.Tensor | npt.NDArray[Any] | Sequence[Any],
        *,
        begin_token_id: int | None = None,
        start: int | Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> Any:
        """State that each token is chosen from.

        Parameters
        ----------
        token_ids
            Integers [..., T]. Negative ones (such as the ignored label -100) belong to no item.
        begin_token_id
            An item begins behind each of these tokens; the token itself is chosen in free text.
        start
            Instead: one item a row, from this position on (an int, or [...] ints). Default without
            ``begin_token_id``: each row's first token that is not negative.

        Returns
        -------
        int64 [..., T], a tensor where a tensor came in. -2 outside items, -1 from the first token on that an item's
        history has made impossible.
        """
        ids = _validate.int64_array("token_ids", token_ids)
        if ids.ndim == 0:
            raise ValueError("token_ids has shape (), expected [..., T]")
        rows = ids.reshape(int(np.prod(ids.shape[:-1])), ids.shape[-1])
        begin = _validate.optional_token("begin_token_id", begin_token_id, self.vocab_size)
        if begin >= 0 and start is not None:
            raise ValueError(f"begin_token_id={begin} and start={start!r}: give one of the two")
        starts: npt.NDArray[np.int64] | None = None
        if begin < 0:
            if start is None:
                ours = rows >= 0
                first = ours.argmax(axis=1) if rows.shape[1] > 0 else np.zeros(rows.shape[0], np.int64)
                starts = np.where(ours.any(axis=1), first, rows.shape[1])
            else:
                given = _validate.int64_array("start", start)
                for row in np.flatnonzero(given < 0)[:1]:
                    raise ValueError(f"start[{row}]={given.flat[row]} is negative")
                if given.ndim > 0 and given.shape != ids.shape[:-1]:
                    raise ValueError(f"start has shape {given.shape}, expected {ids.shape[:-1]} or one int")
                starts = np.ascontiguousarray(np.broadcast_to(given.reshape(-1), (rows.shape[0],)))
        states = self._core.token_states(rows, begin, starts, 1).reshape(ids.shape)
        if _validate.is_tensor(token_ids):
            import torch

            return torch.from_numpy(states).to(token_ids.device)
        return states

    def to_sequences(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The catalog back as arrays ``(values, indptr, item_ids, item_indptr)``.

        Sequence i (lexicographic order, end token included) is ``values[indptr[i]:indptr[i + 1]]``, its items are
        ``item_ids[item_indptr[i]:item_indptr[i + 1]]``.
        """
        return self._sequences(only_shared=False)

    def collisions(
        self,
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The sequences that stand for several items, and those items, in the form of :meth:`to_sequences`."""
        return self._sequences(only_shared=True)

    def _sequences(
        self, *, only_shared: bool
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[Any], npt.NDArray[np.int64]]:
        values, indptr, items, item_indptr = self._core.to_sequences(only_shared)
        return values, indptr, self._named(items), item_indptr


def _refuse_codes(codes: npt.NDArray[np.int64], limit: int) -> None:
    for row, position in np.argwhere((codes < 0) | (codes >= limit))[:1]:
        raise ValueError(f"codes[{row}][{position}]={codes[row, position]} is outside [0, {limit})")
