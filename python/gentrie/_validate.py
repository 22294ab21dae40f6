"""Every check of shapes, dtypes, devices and ranges that the Python faces make, whatever the backend behind them."""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NoReturn, TypeGuard

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from gentrie.trie import TokenTrie

Int64Array = npt.NDArray[np.int64]

MAX_ROWS = 2**31 - 2
"""Rows that one trie is built from at most: nodes and leaves are counted in 32 bits."""


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether ``value`` is a torch tensor, without importing torch for those who do not use it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def integer(name: str, value: object, low: int, high: int) -> int:
    """``value`` as an int in [low, high]; bools and floats are refused."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}={value!r} is a bool, expected an integer")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, expected an integer") from None
    if not low <= number <= high:
        raise ValueError(f"{name}={number} is outside [{low}, {high}]")
    return number


def trie(name: str, value: object) -> TokenTrie:
    """``value`` if it is a :class:`gentrie.TokenTrie`."""
    module = sys.modules.get("gentrie.trie")  # loaded where there is a trie
    if module is not None and isinstance(value, module.TokenTrie):
        return value  # type: ignore[no-any-return]
    advice = ""
    if isinstance(value, str | bytes | os.PathLike):
        advice = f": {name}=TokenTrie.load({value!r}) reads a file"
    elif isinstance(value, Sequence | np.ndarray):
        advice = ": TokenTrie.from_sequences builds one from token ids"
    raise TypeError(f"{name} is a {type(value).__name__}, expected a TokenTrie{advice}")


def model_vocab_size(value: object, trie_vocab_size: int) -> int:
    """How many tokens a model has: as many as the trie's vocabulary, or more."""
    size = integer("vocab_size", value, 1, 2**31 - 1)
    if size < trie_vocab_size:
        raise ValueError(f"vocab_size={size} is less than the trie's, {trie_vocab_size}")
    return size


def optional_count(name: str, value: object, high: int) -> int:
    """A number in [1, high], or 0 for None."""
    return 0 if value is None else integer(name, value, 1, high)


def state(value: object) -> int:
    """A state as an int; whether it is one of a trie's is for the core to say."""
    return value if type(value) is int and -2 <= value < 2**63 else integer("state", value, -2, 2**63 - 1)


def token(value: object) -> int:
    """A token id as an int; one outside the vocabulary matches nothing."""
    return value if type(value) is int and abs(value) < 2**63 else integer("token", value, -(2**63), 2**63 - 1)


def path(value: str | os.PathLike[str]) -> bytes:
    """A file name as the operating system wants it."""
    name = os.fsencode(value)
    if b"\0" in name:
        raise ValueError(f"path={value!r} holds a null character")
    return name


def optional_token(name: str, value: object, vocab_size: int) -> int:
    """A token id, or -1 for None."""
    return -1 if value is None else integer(name, value, 0, vocab_size - 1)


def tokens_of(name: str, value: object, vocab_size: int) -> list[int]:
    """One token id or several as a list; None gives none."""
    if value is None:
        return []
    if not isinstance(value, Iterable):
        return [integer(name, value, 0, vocab_size - 1)]
    return [integer(f"{name}[{i}]", token, 0, vocab_size - 1) for i, token in enumerate(value)]


def choice(name: str, value: object, choices: Sequence[object]) -> Any:
    """``value`` if it is one of ``choices`` (compared by identity for bools)."""
    for option in choices:
        if value is option or (type(value) is type(option) and value == option):
            return value
    raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, choices))}")


def int64_array(name: str, value: object) -> Int64Array:
    """Any array-like of integers as int64, C-contiguous; floats, bools, strings and ragged lists are refused."""
    if type(value) is np.ndarray and value.dtype == np.int64 and value.flags.c_contiguous:
        return value  # what calls of a few microseconds are given
    if is_tensor(value):
        value = value.detach().cpu().numpy()
    refuse_masked(name, value)
    refuse_bools(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:  # ragged
        raise ValueError(f"{name} is not an array of integers: {error}") from None
    if array.size == 0 and array.dtype == np.float64 and not isinstance(value, np.ndarray):
        array = array.astype(np.int64)  # an empty list has no dtype of its own
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}, expected integers")
    if array.dtype == np.uint64 and array.size > 0 and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError(f"{name} holds {int(array.max())}, which int64 cannot hold")
    return np.asarray(array, dtype=np.int64, order="C")


def refuse_masked(name: str, value: object) -> None:
    """Refuse NumPy's masked arrays where something is masked: their other entries would be all that is meant."""
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        count = int(np.ma.getmaskarray(value).sum())  # type: ignore[no-untyped-call,unused-ignore]
        raise TypeError(f"{name} is a masked array with {count} entries masked: leave those out")


def refuse_bools(name: str, value: object) -> None:
    """Refuse bools among the numbers of a list, which NumPy would take for 0 and 1."""
    if isinstance(value, list | tuple):
        kinds = set(map(type, value))
        if kinds & {bool, np.bool_}:
            at = next(i for i, entry in enumerate(value) if isinstance(entry, bool | np.bool_))
            raise TypeError(f"{name}[{at}]={value[at]!r} is a bool, expected an integer")
        if kinds & {list, tuple}:
            for i, row in enumerate(value):
                refuse_bools(f"{name}[{i}]", row)


def token_row(name: str, value: object) -> Int64Array:
    """A one-dimensional array of token ids."""
    array = int64_array(name, value)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one dimension")
    return array


def sequences(value: object, name: str = "sequences") -> tuple[npt.NDArray[Any], Int64Array | None]:
    """Sequences in any of the accepted forms; ``name`` is what messages call them.

    Returns ``(values, indptr)``, or ``(values, None)`` for the rows of an array [N, L]; values are int32 or int64.
    """
    if isinstance(value, str | bytes | Mapping):
        raise TypeError(f"{name} is a {type(value).__name__}, expected rows of token ids")
    if isinstance(value, tuple) and len(value) == 2 and _is_array(value[0]) and _is_array(value[1]):
        indptr = token_row(f"{name}: indptr", value[1])
        if indptr.size < 1:
            raise ValueError(f"{name}: indptr is empty, expected N + 1 entries")
        _refuse_rows(name, indptr.size - 1)
        values = _token_values(f"{name}: values", value[0])
        if values.ndim != 1:
            raise ValueError(f"{name}: values has shape {values.shape}, expected one dimension")
        return values, indptr
    if _is_array(value):
        _refuse_rows(name, (*np.shape(value), 0)[0])  # before anything so large is copied
        values = _token_values(name, value)
        if values.ndim != 2:
            raise ValueError(f"{name} has shape {values.shape}, expected [N, L]")
        return values, None
    if not isinstance(value, Iterable):
        raise TypeError(f"{name} is a {type(value).__name__}, expected rows of token ids")
    return _ragged(name, value if isinstance(value, Sequence) else list(value))


def item_ids(value: object, num_rows: int, name: str = "item_ids", rows_name: str = "sequences") -> Int64Array | None:
    """Item ids, one a row, or None for the row numbers."""
    if value is None:
        return None
    refuse_bools(name, value)
    array: Any = value if _is_array(value) else np.asarray(value)
    if isinstance(array, np.ndarray) and array.dtype.kind in "USO":
        raise TypeError(f"{name} must be integers here; TokenTrie.from_sequences, all at once, takes strings")
    ids = token_row(name, array)
    if ids.size != num_rows:
        raise ValueError(f"{name} has {ids.size} entries, {rows_name} has {num_rows} rows")
    return ids


def string_map(name: str, value: Mapping[Any, Any] | None) -> dict[str, str]:
    """A mapping from str to str as a dict; None gives an empty one."""
    entries = dict(value or {})
    for key, entry in entries.items():
        if not isinstance(key, str) or not isinstance(entry, str):
            raise TypeError(f"{name}[{key!r}]={entry!r}: keys and values must be strings")
    return entries


def metadata(value: Mapping[Any, Any] | None, *, reserved: Sequence[str] = ()) -> dict[str, str]:
    """What users store with a trie: str to str, none of our own keys."""
    entries = string_map("metadata", value)
    for key, entry in entries.items():
        if key.startswith("gentrie.") or key in ("string_item_ids", *reserved):
            raise ValueError(f"metadata[{key!r}]: this key is set by gentrie")
        for text in (key, entry):
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ValueError(f"metadata[{key!r}]={entry!r} holds half of a surrogate pair") from None
    return entries


def bitmask(mask: object, vocab_size: int) -> tuple[int, int, int, int]:
    """An int32 token bitmask [batch, words] in host memory, a tensor or an array, whose rows are contiguous, apart, and
    cover ``vocab_size``.

    Returns ``(address, batch, words, words from one row to the next)``. Engines fill one at every token, so a sound
    mask is seen to be so in one expression.
    """
    if is_tensor(mask) and mask.is_cpu and mask.dim() == 2 and mask.dtype is sys.modules["torch"].int32:
        batch, words = mask.shape
        if words * 32 >= vocab_size and mask.layout is sys.modules["torch"].strided:
            if mask.is_contiguous():
                return address("bitmask", mask), batch, words, words
            if mask.stride(1) == 1 and mask.stride(0) >= words:
                return address("bitmask", mask), batch, words, mask.stride(0)
    if isinstance(mask, np.ndarray) and mask.dtype == np.int32 and mask.ndim == 2 and mask.flags.behaved:
        batch, words = mask.shape
        if words * 32 >= vocab_size and has_rows_apart(mask):
            return mask.ctypes.data, batch, words, mask.strides[0] // 4
    _refuse_bitmask(mask, vocab_size)


def has_rows_apart(array: npt.NDArray[Any]) -> bool:
    """Whether the rows of a two-dimensional array are contiguous and share no memory."""
    rows, width = array.shape
    step = array.itemsize
    return (width < 2 or array.strides[1] == step) and (
        rows < 2 or (array.strides[0] >= width * step and array.strides[0] % step == 0)
    )


def address(name: str, tensor: torch.Tensor) -> int:
    """Where a tensor's data lies. Fake and functional tensors and those of zeros without storage have none."""
    try:
        pointer = 0 if type(tensor).__name__ == "FakeTensor" else tensor.data_ptr()
    except RuntimeError:
        pointer = 0
    if pointer == 0 and tensor.numel() > 0:
        raise TypeError(
            f"{name} is a {type(tensor).__name__} without data in memory, expected an ordinary torch.Tensor"
        )
    return pointer


def row_indices(name: str, value: object, count: int | None, num_rows: int) -> Int64Array:
    """Row numbers in [0, num_rows): ``value``, or 0, 1, ... where it is None.

    An array of their own: what another thread writes to ``value`` after this check cannot lead outside.
    """
    if value is None and (count is None or count <= num_rows):
        return np.arange(num_rows if count is None else count)
    rows = np.arange(count or 0) if value is None else token_row(name, value).copy()
    if count is not None and rows.size != count:
        raise ValueError(f"{name} has {rows.size} entries, expected {count}")
    for i in np.flatnonzero((rows < 0) | (rows >= num_rows))[:1]:
        raise ValueError(f"{name}[{i}]={rows[i]} is outside [0, {num_rows})")
    return rows


def history_and_scores(input_ids: object, scores: object, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [batch, length] and the scores [batch, >= vocab_size] that follow them, on one device."""
    if not is_tensor(input_ids) or not is_tensor(scores):
        wrong, name = (scores, "scores") if is_tensor(input_ids) else (input_ids, "input_ids")
        raise TypeError(f"{name} is a {type(wrong).__name__}, expected a torch.Tensor")
    ids, values = input_ids, scores
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == sys.modules["torch"].bool:
        raise TypeError(f"input_ids has dtype {ids.dtype}, expected integers")
    if not values.is_floating_point():
        raise TypeError(f"scores has dtype {values.dtype}, expected a floating point type")
    if ids.dim() != 2 or values.dim() != 2 or ids.shape[0] != values.shape[0]:
        raise ValueError(
            f"input_ids has shape {tuple(ids.shape)} and scores {tuple(values.shape)}, "
            "expected [batch, length] and [batch, vocabulary]"
        )
    if values.shape[1] < vocab_size:
        raise ValueError(f"scores has {values.shape[1]} columns, fewer than the trie's vocab_size={vocab_size}")
    if ids.device != values.device:
        raise ValueError(f"input_ids is on {ids.device}, scores on {values.device}, expected one device")
    return ids.resolve_neg(), values.resolve_neg()  # a view of negated numbers holds others than it shows


def _refuse_bitmask(mask: object, vocab_size: int) -> NoReturn:
    if isinstance(mask, np.ndarray):
        if mask.dtype != np.int32:
            raise TypeError(f"bitmask has dtype {mask.dtype}, expected int32")
        if mask.ndim != 2:
            raise ValueError(f"bitmask has shape {mask.shape}, expected [batch, ceil(vocab_size / 32)]")
        if mask.shape[1] * 32 < vocab_size:
            raise ValueError(f"bitmask has {mask.shape[1]} words a row, fewer than vocab_size={vocab_size} needs")
        if not mask.flags.behaved:
            raise ValueError("bitmask is read-only or not aligned")
        raise ValueError(f"bitmask has strides {mask.strides}, expected contiguous rows that share no memory")
    if not is_tensor(mask):
        raise TypeError(f"bitmask is a {type(mask).__name__}, expected a torch.Tensor or a numpy array")
    if mask.dtype != sys.modules["torch"].int32:
        raise TypeError(f"bitmask has dtype {mask.dtype}, expected torch.int32")
    if mask.dim() != 2:
        raise ValueError(f"bitmask has shape {tuple(mask.shape)}, expected [batch, ceil(vocab_size / 32)]")
    if mask.device.type != "cpu":
        raise ValueError(f"bitmask is on {mask.device}, expected the CPU")
    if mask.shape[1] * 32 < vocab_size:
        raise ValueError(f"bitmask has {mask.shape[1]} words a row, fewer than vocab_size={vocab_size} needs")
    if mask.layout != sys.modules["torch"].strided:
        raise TypeError(f"bitmask has layout {mask.layout}, expected torch.strided")
    raise ValueError(f"bitmask has strides {mask.stride()}, expected contiguous rows that share no memory")


def _is_array(value: object) -> TypeGuard[npt.NDArray[Any] | torch.Tensor]:
    return is_tensor(value) or isinstance(value, np.ndarray)


def _token_values(name: str, value: object) -> npt.NDArray[Any]:
    refuse_masked(name, value)
    array = value.detach().cpu().numpy() if is_tensor(value) else np.asarray(value)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} has dtype {array.dtype}, expected integers")
    if array.dtype.kind == "i" and array.dtype.itemsize in (4, 8) and array.dtype.isnative:
        return np.ascontiguousarray(array)
    if array.dtype.itemsize < 4:
        return np.ascontiguousarray(array, dtype=np.int32)
    if array.dtype == np.uint64 and array.size > 0 and int(array.max()) > np.iinfo(np.int64).max:
        row = np.unravel_index(int(array.argmax()), array.shape)[0]
        raise ValueError(f"{name}[{row}] holds token {int(array.max())}, more than a token id can be")
    return np.ascontiguousarray(array, dtype=np.int64)


def _refuse_rows(name: str, num_rows: int) -> None:
    if num_rows > MAX_ROWS:
        raise ValueError(
            f"{name} has {num_rows} rows, more than the {MAX_ROWS} that one trie holds; build several by first tokens"
        )


def _ragged(name: str, rows: Sequence[Any]) -> tuple[npt.NDArray[Any], Int64Array]:
    lengths = np.empty(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        try:
            lengths[i] = len(row)
        except TypeError:
            raise TypeError(f"{name}[{i}] is a {type(row).__name__}, expected a row of token ids") from None
    indptr = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    tokens = list(chain.from_iterable(rows))
    try:
        values = np.array(tokens)
    except ValueError:  # ragged: some "tokens" are rows themselves
        values = np.array(_checked_tokens(name, rows), dtype=np.int64)
    if values.size == 0:
        values = values.astype(np.int64)
    if values.dtype.kind != "i" or values.ndim != 1 or bool in set(map(type, tokens)):
        values = np.array(_checked_tokens(name, rows), dtype=np.int64)
    return values.astype(np.int64, copy=False), indptr


def _checked_tokens(name: str, rows: Sequence[Any]) -> list[int]:
    """One by one, for rows of mixed or unsigned integers and for those that hold something else, which is named."""
    least, greatest = -(2**63), 2**63 - 1
    return [
        integer(f"{name}[{i}][{position}]", token, least, greatest)
        for i, row in enumerate(rows)
        for position, token in enumerate(row)
    ]
