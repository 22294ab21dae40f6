"""Text for terminals."""

from __future__ import annotations

import re

# Arguments of the API and the options of `gentrie build` that give them.
_SAME_NAME = ("vocab_size", "memory_limit", "on_collision", "item_ids", "token_ids", "template", "context", "metadata")
_OPTIONS = {
    "token_ids[0]": "--token-base",
    "token_ids[1]": "--token-stride",
    **{name: f"--{name.replace('_', '-')}" for name in _SAME_NAME},
    "end_token_id": "--end-token",
}
_ARGUMENT = re.compile(rf"(?<![\w.-])({'|'.join(map(re.escape, _OPTIONS))})(?=[\s=:,;\[)]|$)")


def printable(text: str) -> str:
    """Return text without characters that a terminal obeys: they are written as escape sequences of Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def with_options(message: str) -> str:
    """Return a message of the API with the names of options in the place of those of arguments."""
    return _ARGUMENT.sub(lambda found: _OPTIONS[found[1]], message)


def unescaped(option: str, text: str) -> str:
    r"""Return the text of an option, with ``\n``, ``\t`` and ``\\`` read as a line break, a tab and a backslash.

    Raises
    ------
    ValueError
        For a backslash before anything else.
    """
    meanings = {r"\n": "\n", r"\t": "\t", "\\\\": "\\"}

    def meaning(found: re.Match[str]) -> str:
        if found[0] not in meanings:
            raise ValueError(rf"{option}: {found[0]!r} means nothing; \n is a line break, \t a tab, \\ a backslash")
        return meanings[found[0]]

    return re.sub(r"\\.?", meaning, text, flags=re.DOTALL)
