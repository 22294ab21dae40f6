"""Random rules and histories for hypothesis: what a matcher or a processor may meet."""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from oracle import Rules
from strategies import BEGIN, EOS, OTHER_EOS, OUTSIDER, Catalog, catalogs

from gentrie import TokenTrie


class Case(NamedTuple):
    """A catalog, the arguments of a matcher, and what they mean."""

    catalog: Catalog
    trie: TokenTrie
    arguments: dict[str, Any]
    rules: Rules

    @property
    def is_triggered(self) -> bool:
        return self.rules.begin is not None


@st.composite
def cases(draw: st.DrawFn, *, needs_eos: bool = False) -> Case:
    catalog = draw(catalogs(min_item_id=0))
    oracle = catalog.oracle()
    begin = draw(st.sampled_from([None, BEGIN]))
    eos = draw(st.sampled_from([(EOS,), (EOS, OTHER_EOS)] if needs_eos else [(), (EOS,), (EOS, OTHER_EOS)]))
    unique = draw(st.sampled_from([False, True, "item"]))
    every_item = sorted({item for items in oracle.items.values() for item in items})
    allowed = draw(st.none() | st.sets(st.sampled_from(every_item)))
    item_filter: Any = None if allowed is None else sorted(allowed)
    if allowed is not None and max(every_item) < 100 and draw(st.booleans()):
        item_filter = np.isin(np.arange(max(every_item) + 1 + draw(st.integers(0, 2))), sorted(allowed))
    arguments = {
        "begin_token_id": begin,
        "eos_token_id": list(eos) or None,
        "unique": unique,
        "item_filter": item_filter,
    }
    rules = Rules(oracle, begin=begin, eos=eos, unique=unique, items=allowed)
    return Case(catalog, catalog.build(), arguments, rules)


def tokens_met(case: Case) -> st.SearchStrategy[list[int]]:
    """Whole items, beginnings of items, control tokens and tokens that fit nowhere, in any order."""
    sequence = st.sampled_from(case.rules.oracle.sequences).map(list)
    beginning = sequence.flatmap(lambda s: st.integers(0, len(s)).map(lambda n: s[:n]))
    opened = st.one_of(sequence, sequence, beginning).map(lambda s: [BEGIN, *s])
    other = st.sampled_from([[BEGIN], [EOS], [OTHER_EOS], [OUTSIDER], [case.catalog.vocab_size - 1]])
    parts = st.lists(st.one_of(opened, opened, beginning, sequence, other), max_size=7)
    return parts.map(lambda lists: list(chain.from_iterable(lists)))
