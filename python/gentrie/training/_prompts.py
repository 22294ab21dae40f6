"""Whether prompts end as those do behind which the catalog's titles were encoded."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from gentrie.trie import TokenTrie


def warn_of_other_ends(trie: TokenTrie, prompts: Sequence[Any], named: str, stacklevel: int) -> bool:
    """Warn where prompts (token ids each) do not end in the last token of the catalog's context, naming the first.

    ``named`` is the prompts' name with ``{}`` for the row. A text may end in the context by another token: this is no
    error. Returns whether there was a warning.
    """
    end = trie.metadata.get("context_end_token_id")
    if end is None:
        return False
    rows = [row for row, prompt in enumerate(prompts) if len(prompt) == 0 or int(prompt[-1]) != int(end)]
    if not rows:
        return False
    first = prompts[rows[0]]
    found = "is empty" if len(first) == 0 else f"ends in token {int(first[-1])}"
    others = f" (as {len(rows) - 1} others of {len(prompts)} do)" if len(rows) > 1 else ""
    warnings.warn(
        f"{named.format(rows[0])} {found}{others}, the catalog's context {trie.metadata.get('context')!r} in token "
        f"{end}: titles may be split otherwise behind such a prompt than in the catalog",
        UserWarning,
        stacklevel + 1,
    )
    return True
