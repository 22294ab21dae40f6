"""The whole logits processor on float32 scores, against writing them once.

A fresh block of 42 MB costs more than filling it: the operating system hands it out page by page. Serving stacks keep
their memory, so malloc is told to (``mallopt``: nothing is mapped apart, nothing is given back), and what a block
costs without that is reported as a row of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap

import torch
from _figures import VOCAB_SIZE, Figure, main
from _response import PROMPT_LENGTH, Setting, setting, steps
from transformers import LogitsProcessor, PrefixConstrainedLogitsProcessor

from gentrie.bench.baselines.dict_trie import DictTrie
from gentrie.bench.baselines.published import PublishedLookup, PublishedProcessor
from gentrie.bench.harness import Spread, compare
from gentrie.generation import TrieLogitsProcessor

ROWS = 80
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_memory() -> None:
    """Tell glibc's malloc to keep what it has."""
    libc = ctypes.CDLL(None)
    for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1)):
        if libc.mallopt(option, value) != 1:
            raise OSError(f"mallopt({option}, {value}) failed")


def touch_fresh_pages(nbytes: int) -> None:
    """What a block costs that the operating system has to hand out: map it, touch each page, give it back."""
    with mmap.mmap(-1, nbytes) as block:
        torch.frombuffer(block, dtype=torch.uint8)[:: mmap.PAGESIZE].fill_(1)


def difference(a: Spread, b: Spread) -> Spread:
    return Spread.of([x - y for x, y in zip(a.rounds, b.rounds, strict=True)])


def ratio(a: Spread, b: Spread) -> Spread:
    return Spread.of([x / y for x, y in zip(a.rounds, b.rounds, strict=True)])


def batch_of_beams(where: Setting, rounds: int) -> list[Figure]:
    """80 histories, each some tokens into a title of its own: eight prompts of ten beams."""
    titles = where.catalog.titles()
    step = len(titles) // ROWS
    width = 5
    prompt = torch.tensor(where.outer[:1] * PROMPT_LENGTH).expand(ROWS, -1)
    beams = [title[:width] for title in titles[::step] if len(title) > width][:ROWS]
    ids = torch.cat([prompt[: len(beams)], torch.tensor(beams)], dim=1)
    scores, written = torch.randn(len(beams), VOCAB_SIZE), torch.empty(len(beams), VOCAB_SIZE)
    ours = TrieLogitsProcessor(where.trie, prompt_length=PROMPT_LENGTH)
    trie = DictTrie([*title, where.end] for title in titles)

    def prefix_fn(_: int, history: torch.Tensor) -> list[int]:
        node = trie.root
        for token in history[PROMPT_LENGTH:].tolist():
            node = node.children[token]
        return list(node.children)

    theirs = PrefixConstrainedLogitsProcessor(prefix_fn, num_beams=10)
    assert torch.equal(ours(ids, scores), theirs(ids, scores))
    taken = compare(
        {
            "fill": lambda: written.fill_(-torch.inf),
            "gentrie": lambda: ours(ids, scores),
            "transformers": lambda: theirs(ids, scores),
            "fresh pages": lambda: touch_fresh_pages(scores.nbytes),
        },
        rounds=rounds,
        number=3,
    )
    shape = f"[{len(beams)}, {VOCAB_SIZE}]"
    return [
        Figure.of(f"processor on {shape} over fill_(-inf)", "times", ratio(taken["gentrie"], taken["fill"]), goal=2),
        Figure.of(f"processor on {shape}", "ms", taken["gentrie"], scale=1e3),
        Figure.of(f"fill_(-inf) on {shape}", "ms", taken["fill"], scale=1e3),
        Figure.of(f"allocation of {shape} from the system", "ms", taken["fresh pages"], scale=1e3),
        Figure.of(f"transformers: processor on {shape}", "ms", taken["transformers"], scale=1e3),
    ]


def one_row(where: Setting, rounds: int) -> list[Figure]:
    """Every history of a ten-item response, inside and outside items; no item twice."""
    response = steps(where)
    scores, written = torch.randn(1, VOCAB_SIZE), torch.empty(1, VOCAB_SIZE)
    ours = TrieLogitsProcessor(where.trie, begin_token_id=where.begin, eos_token_id=where.eos, unique=True)
    lookup = PublishedLookup(
        DictTrie([*title, where.end] for title in where.catalog.titles()),
        begin_token_id=where.begin,
        end_token_id=where.end,
        eos_token_id=where.eos,
    )
    theirs = PublishedProcessor(lookup)
    figures = []
    shape = f"[1, {VOCAB_SIZE}]"
    for where_to, histories in (
        ("inside", [step.ids for step in response if step.inside]),
        ("outside", [step.ids for step in response if not step.inside]),
    ):
        for ids in histories:
            if not torch.equal(ours(ids, scores), theirs(ids, scores)):
                raise RuntimeError("the two processors differ")

        def call_all(processor: LogitsProcessor, histories: list[torch.Tensor] = histories) -> None:
            for ids in histories:
                processor(ids, scores)

        def fill(count: int = len(histories)) -> None:
            for _ in range(count):
                written.fill_(-torch.inf)

        taken = compare(
            {
                "fill": fill,
                "gentrie": lambda call=call_all: call(ours),
                "published": lambda call=call_all: call(theirs),
            },
            rounds=rounds,
        )
        scale = 1e6 / len(histories)
        above = {name: difference(taken[name], taken["fill"]) for name in ("gentrie", "published")}
        name = f"processor on {shape} {where_to} items, above fill_(-inf)"
        figures += [
            Figure.of(name, "us", above["gentrie"], scale=scale, goal=25),
            Figure.of(f"published: {name}", "us", above["published"], scale=scale),
        ]
    return [*figures, Figure.of(f"fill_(-inf) on {shape}", "us", taken["fill"], scale=scale)]


def measure(options: argparse.Namespace) -> list[Figure]:
    keep_memory()
    where = setting()
    return batch_of_beams(where, options.rounds) + one_row(where, options.rounds)


if __name__ == "__main__":
    main(measure, __doc__ or "")
