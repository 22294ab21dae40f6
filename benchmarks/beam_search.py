"""Beam search over a catalog against ``generate`` with a TrieLogitsProcessor: time, calls, rows, padding and memory.

A Llama-shaped model of random weights (hidden 512, 8 layers, vocabulary 131,072), 4 prompts of 200 tokens, 10 beams,
synthetic toys or ``--real FOLDER`` with ``catalog.jsonl``. Both return the same items, which is checked. A round of
``generate`` takes some 15 seconds: ``--rounds 3`` is enough. ``--beams 50 200 --rounds 1`` measures wider beams, for
which ``generate`` takes minutes and 10 GB. Memory is that of the keys and values held, whose floor is one copy of each
prompt's and of each token's fed behind them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from _figures import VOCAB_SIZE, Figure, main
from _keys_and_values import held_bytes
from transformers import LlamaConfig, LlamaForCausalLM

from gentrie import TokenTrie
from gentrie.bench.catalogs import tokenised_catalogs
from gentrie.bench.harness import Spread, compare
from gentrie.generation import BeamSearchResult, TrieLogitsProcessor, beam_search

BATCH, PROMPT = 4, 200
BEAMS = 10
"""The goals are for this many."""
END = 2
GOALS: dict[Literal["trie", "vocab"], float] = {"trie": 12, "vocab": 5}


def random_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
    )
    return LlamaForCausalLM(config).eval()


def measure(options: argparse.Namespace, widths: Sequence[int] = (BEAMS,)) -> list[Figure]:
    if options.real is None:
        (catalog,) = tokenised_catalogs(["toys"], VOCAB_SIZE)
    else:
        (catalog,) = tokenised_catalogs([], VOCAB_SIZE, Path(options.real) / "catalog.jsonl")
    name = "synthetic toys" if options.real is None else Path(options.real).name
    trie = TokenTrie.from_sequences((catalog.values, catalog.indptr), vocab_size=VOCAB_SIZE, end_token_id=END)
    model: Any = random_model()
    ids = torch.randint(3, VOCAB_SIZE, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    return [
        figure
        for width in widths
        for scope in GOALS
        for figure in compared(options, model, ids, trie, name, width, scope)
    ]


def compared(
    options: argparse.Namespace,
    model: Any,
    ids: torch.Tensor,
    trie: TokenTrie,
    name: str,
    width: int,
    scope: Literal["trie", "vocab"],
) -> list[Figure]:
    """Both searches with so many beams, in turn."""
    found: dict[str, Any] = {}

    def ours() -> None:
        found["ours"] = beam_search(model, ids, trie, beam_width=width, scope=scope)

    def theirs() -> None:
        output: torch.Tensor = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=[TrieLogitsProcessor(trie, prompt_length=PROMPT)],
            renormalize_logits=scope == "trie",
            do_sample=False,
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=trie.max_depth,
        )
        found["generate"] = [row[: row.index(END) + 1] for row in output[:, PROMPT:].tolist()]

    # The first round of generate takes too long for one that is not timed.
    ours()
    with held_bytes(model) as held:
        taken = compare({"ours": ours, "generate": theirs}, rounds=options.rounds, warmup=0)
    result: BeamSearchResult = found["ours"]
    pairs = [(prompt, tuple(row)) for prompt, rows in enumerate(result.sequences) for row in rows]
    theirs_too = {(at // width, tuple(row)) for at, row in enumerate(found["generate"])}
    same = len(theirs_too.intersection(pairs)) / len(theirs_too)
    if same < (1 if width == BEAMS else 0.98):  # the last of many beams may be ties
        raise RuntimeError(f"{width} beams, scope={scope}: {same:.1%} of the items of generate")
    ratio = Spread.of([b / a for a, b in zip(taken["ours"].rounds, taken["generate"].rounds, strict=True)])
    title = f"beam search, {name}, {width} beams, scope={scope}"
    goal = GOALS[scope] if width == BEAMS else None
    stats = result.stats
    config = model.config
    of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * model.dtype.itemsize
    copies = held.prompts / (BATCH * PROMPT * of_token)
    floor = (BATCH * PROMPT + stats.tokens_computed) * of_token
    return [
        Figure.of(
            f"{title}: generate over ours", "times", ratio, goal=goal, at_least=True, note=f"{same:.1%} the same items"
        ),
        Figure.of(f"{title}: ours", "s", taken["ours"]),
        Figure.of(f"{title}: generate", "s", taken["generate"]),
        Figure.exact(f"{title}: model calls", "", stats.model_calls, note=f"{BATCH} prompts"),
        Figure.exact(f"{title}: rows scored", "", stats.rows),
        Figure.exact(f"{title}: tokens behind the prompts", "", stats.tokens_computed),
        Figure.exact(f"{title}: padded slots", "", stats.padded_slots, goal=0),
        Figure.exact(f"{title}: copies of each prompt's keys and values", "", copies, goal=1),
        Figure.exact(f"{title}: keys and values held by ours", "MB", (held.prompts + held.tree) / 1e6),
        Figure.exact(f"{title}: keys and values held by generate", "MB", held.dynamic / 1e6),
        Figure.exact(f"{title}: one copy of each token's keys and values", "MB", floor / 1e6, note="floor"),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--beams", type=int, nargs="+", default=[BEAMS])
    own, sys.argv[1:] = parser.parse_known_args()
    main(partial(measure, widths=own.beams), __doc__ or "")
