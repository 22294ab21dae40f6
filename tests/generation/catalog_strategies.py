"""Hypothesis strategies of small catalogs and prompts."""

from __future__ import annotations

from hypothesis import strategies as st
from tiny_models import BEGIN, END, FIRST_TOKEN, TURN_END

# Titles use the tokens [FIRST_TOKEN, FIRST_WORD), prompts and free text those from FIRST_WORD on as well.
FIRST_WORD = 24
LAST_WORD = 47


@st.composite
def catalogs(draw: st.DrawFn, max_items: int = 12, max_length: int = 7) -> list[list[int]]:
    """Sequences without end token that share prefixes, repeat, and are prefixes of each other."""
    spread = draw(st.sampled_from([1, 2, 3, 20]))
    token = st.integers(FIRST_TOKEN, FIRST_TOKEN + spread - 1)
    return draw(st.lists(st.lists(token, min_size=1, max_size=max_length), min_size=1, max_size=max_items))


def words(min_size: int = 1, max_size: int = 6) -> st.SearchStrategy[list[int]]:
    """Tokens of a prompt: words of free text and of titles."""
    return st.lists(st.integers(FIRST_TOKEN, LAST_WORD), min_size=min_size, max_size=max_size)


def histories(max_size: int = 24) -> st.SearchStrategy[list[int]]:
    """Anything at all, control tokens and short title tokens more often than by chance."""
    token = st.one_of(
        st.sampled_from([BEGIN, END, TURN_END]),
        st.integers(FIRST_TOKEN, FIRST_TOKEN + 2),
        st.integers(0, LAST_WORD),
    )
    return st.lists(token, min_size=1, max_size=max_size)
