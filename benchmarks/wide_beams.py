"""Beam search over a catalog against ``generate`` with ever more beams: the ratio grows.

The model of ``beam_search.py`` (Llama-shaped, random weights, hidden 512, 8 layers, vocabulary 131,072), 4 prompts of
200 tokens, scores over the valid tokens, synthetic toys or ``--real FOLDER`` with ``catalog.jsonl``. One round of each,
as ``generate`` takes minutes and some 10 GB with 200 beams.

python benchmarks/wide_beams.py --beams 10 50 200 --rounds 1
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from _figures import VOCAB_SIZE, Figure, main
from transformers import LlamaConfig, LlamaForCausalLM

from gentrie import TokenTrie
from gentrie.bench.beams import measure_beams
from gentrie.bench.catalogs import tokenised_catalogs

BATCH, PROMPT = 4, 200
END = 2


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beams", type=int, nargs="+", default=[10, 50, 200], help="numbers of beams, fewest first")
    parser.set_defaults(rounds=1)


def measure(options: argparse.Namespace) -> list[Figure]:
    if options.real is None:
        (catalog,) = tokenised_catalogs(["toys"], VOCAB_SIZE)
    else:
        (catalog,) = tokenised_catalogs([], VOCAB_SIZE, Path(options.real) / "catalog.jsonl")
    trie = TokenTrie.from_sequences((catalog.values, catalog.indptr), vocab_size=VOCAB_SIZE, end_token_id=END)
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
    model = LlamaForCausalLM(config).eval()
    prompts = torch.randint(3, VOCAB_SIZE, (BATCH, PROMPT), generator=torch.Generator().manual_seed(1))
    figures: list[Figure] = []
    narrower: float | None = None
    for beams in options.beams:
        found = measure_beams(model, trie, prompts, beams=beams, scope="trie", repetitions=options.rounds, warmup=0)
        title = f"{catalog.name}, {BATCH} prompts, {beams} beams"
        note = f"{found.same_items:.0%} the same items; calls {found.generate_calls} and {found.calls}, "
        note += f"rows {found.generate_rows} and {found.rows}"
        figures += [
            Figure.of(f"{title}: generate over ours", "times", found.speedup, goal=narrower, at_least=True, note=note),
            Figure.of(f"{title}: ours", "s", found.seconds),
            Figure.of(f"{title}: generate", "s", found.generate_seconds),
            Figure.exact(f"{title}: padded slots", "", found.padded_slots, goal=0),
        ]
        narrower = found.speedup.median
    return figures


if __name__ == "__main__":
    main(measure, __doc__ or "", configure)
