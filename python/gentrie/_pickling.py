"""Tries on their way to other processes: by the name of a file that holds them, or as that file's bytes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gentrie.trie import TokenTrie


def holds(cls: type[TokenTrie], path: str, fingerprint: str) -> bool:
    """Whether ``path`` is still a trie's file with this fingerprint; only its header is read."""
    try:
        return cls.load(path, verify=False).fingerprint == fingerprint
    except (OSError, ValueError):
        return False


def load_pickled(cls: type[TokenTrie], path: str, fingerprint: str) -> TokenTrie:
    """The trie of a file that must hold ``fingerprint``.

    Raises
    ------
    OSError
        If the file cannot be read in this process.
    ValueError
        If it holds another trie now, or none.
    """
    trie = cls.load(path)
    if trie.fingerprint != fingerprint:
        raise ValueError(f"{path} holds the trie {trie.fingerprint}, the one that was pickled is {fingerprint}")
    return trie


def to_file_bytes(trie: TokenTrie) -> bytes:
    """What :meth:`TokenTrie.save` writes."""
    with tempfile.TemporaryDirectory(prefix="gentrie-") as folder:
        path = Path(folder) / "trie"
        trie._core.save(os.fsencode(path), {**trie.metadata, **trie._own_metadata()})
        return path.read_bytes()


def from_file_bytes(cls: type[TokenTrie], content: bytes) -> TokenTrie:
    """The trie of :func:`to_file_bytes`, checked; it lies in a file without a name."""
    with tempfile.TemporaryDirectory(prefix="gentrie-") as folder:
        path = Path(folder) / "trie"
        path.write_bytes(content)
        trie = cls.load(path, verify=True)
    trie._path = None
    return trie
