"""Beam search over a catalog against ``generate`` with a TrieLogitsProcessor: time, calls, rows and padding.

A Llama-shaped model of random weights (hidden 512, 8 layers, vocabulary 131,072), 4 prompts of 200 tokens, 10 beams,
synthetic toys or ``--real FOLDER`` with ``catalog.jsonl``. Both return the same items, which is checked. A round of
``generate`` takes some 15 seconds: ``--rounds 3`` is enough.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import torch
from _figures import VOCAB_SIZE, Figure, main
from transformers import LlamaConfig, LlamaForCausalLM

from gentrie import TokenTrie
from gentrie.bench.catalogs import tokenised_catalogs
from gentrie.bench.harness import Spread, compare
from gentrie.generation import BeamSearchResult, TrieLogitsProcessor, beam_search

BATCH, PROMPT, BEAMS = 4, 200, 10
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


def measure(options: argparse.Namespace) -> list[Figure]:
    if options.real is None:
        (catalog,) = tokenised_catalogs(["toys"], VOCAB_SIZE)
    else:
        (catalog,) = tokenised_catalogs([], VOCAB_SIZE, Path(options.real) / "catalog.jsonl")
    name = "synthetic toys" if options.real is None else Path(options.real).name
    trie = TokenTrie.from_sequences((catalog.values, catalog.indptr), vocab_size=VOCAB_SIZE, end_token_id=END)
    model: Any = random_model()
    ids = torch.randint(3, VOCAB_SIZE, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    figures = []
    for scope, goal in GOALS.items():

        def ours(scope: Literal["trie", "vocab"] = scope) -> BeamSearchResult:
            return beam_search(model, ids, trie, beam_width=BEAMS, scope=scope)

        def theirs(scope: Literal["trie", "vocab"] = scope) -> list[list[int]]:
            output: torch.Tensor = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                logits_processor=[TrieLogitsProcessor(trie, prompt_length=PROMPT)],
                renormalize_logits=scope == "trie",
                do_sample=False,
                num_beams=BEAMS,
                num_return_sequences=BEAMS,
                max_new_tokens=trie.max_depth,
            )
            return [row[: row.index(END) + 1] for row in output[:, PROMPT:].tolist()]

        result = ours()
        if [sequence for found in result.sequences for sequence in found] != theirs():
            raise RuntimeError(f"scope={scope}: other items than those of generate")
        taken = compare({"ours": ours, "generate": theirs}, rounds=options.rounds, warmup=0)
        ratio = Spread.of([b / a for a, b in zip(taken["ours"].rounds, taken["generate"].rounds, strict=True)])
        title = f"beam search, {name}, scope={scope}"
        stats = result.stats
        figures += [
            Figure.of(f"{title}: generate over ours", "times", ratio, goal=goal, at_least=True, note="same items"),
            Figure.of(f"{title}: ours", "s", taken["ours"]),
            Figure.of(f"{title}: generate", "s", taken["generate"]),
            Figure.exact(f"{title}: model calls", "", stats.model_calls, note=f"{BATCH} prompts, {BEAMS} beams"),
            Figure.exact(f"{title}: rows scored", "", stats.rows),
            Figure.exact(f"{title}: tokens behind the prompts", "", stats.tokens_computed),
            Figure.exact(f"{title}: padded slots", "", stats.padded_slots, goal=0),
        ]
    return figures


if __name__ == "__main__":
    main(measure, __doc__ or "")
