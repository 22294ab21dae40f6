"""What one history of 300 to 500 tokens may go on with, asked from Python at every token of eight ten-item responses.

Ours is ``HistoryRules.allowed`` on a tensor [1, length]; inside items the time includes ``tokens(0)``, the allowed ids
as an array, outside them it returns None, "anything". No item is given twice. Beside it the published
approach (RecLM-cgen), which returns a list of ids.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

from _figures import Figure, main
from _response import NUM_ITEMS, Step, setting, steps

from gentrie.bench.baselines.dict_trie import DictTrie
from gentrie.bench.baselines.published import PublishedLookup
from gentrie.bench.harness import Spread, in_turns
from gentrie.history import HistoryRules

RESPONSES = 8


def measure(options: argparse.Namespace) -> list[Figure]:
    where = setting()
    responses = [step for seed in range(RESPONSES) for step in steps(where, seed)]
    rules = HistoryRules(
        where.trie,
        begin_token_id=where.begin,
        eos_token_id=where.eos,
        prompt_length=None,
        after=None,
        unique=True,
        item_filter=None,
        on_dead="eos",
    )
    published = PublishedLookup(
        DictTrie([*title, where.end] for title in where.catalog.titles()),
        begin_token_id=where.begin,
        end_token_id=where.end,
        eos_token_id=where.eos,
    )

    def ours(step: Step) -> object:
        allowed = rules.allowed(step.ids)
        return allowed.tokens(0) if allowed else None

    def theirs(step: Step) -> object:
        return published(0, step.ids[0])

    for step in responses:  # the same tokens, before any are timed
        expected, allowed = theirs(step), ours(step)
        assert (expected is not None) is (allowed is not None) is step.inside
        assert expected is None or sorted(expected) == allowed.tolist()

    methods: dict[str, Callable[[Step], object]] = {"gentrie": ours, "published": theirs}
    rounds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for turn, name in in_turns(tuple(methods), options.rounds + 1):
        taken: dict[str, list[float]] = defaultdict(list)
        for step in responses:
            step = replace(step, ids=step.ids.clone())  # as `generate` appends a token: the history was just written
            start = time.perf_counter()
            methods[name](step)
            seconds = time.perf_counter() - start
            taken["inside" if step.inside else "outside"].append(seconds)
            if step.inside and step.item in (1, NUM_ITEMS):
                taken[f"item {step.item}"].append(seconds)
        if turn == 0:
            continue
        for kind, values in taken.items():
            rounds[name, kind].append(sum(values) / len(values))
        rounds[name, "growth"].append(rounds[name, f"item {NUM_ITEMS}"][-1] / rounds[name, "item 1"][-1])

    spread = {key: Spread.of(values) for key, values in rounds.items()}
    return [
        Figure.of("lookup inside items", "us", spread["gentrie", "inside"], scale=1e6, goal=6),
        Figure.of("lookup outside items", "us", spread["gentrie", "outside"], scale=1e6, goal=3),
        Figure.of("lookup, item 10 over item 1", "times", spread["gentrie", "growth"], goal=2),
        Figure.of("published: lookup inside items", "us", spread["published", "inside"], scale=1e6),
        Figure.of("published: lookup outside items", "us", spread["published", "outside"], scale=1e6),
        Figure.of("published: lookup, item 10 over item 1", "times", spread["published", "growth"]),
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
