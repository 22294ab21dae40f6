"""Exact top-10 by best-first search: rows computed over the fewest possible, and what beam search leaves out.

A small model is trained for some minutes on histories over the catalog (synthetic toys, or ``--real FOLDER`` with
``catalog.jsonl`` and ``test.jsonl``). The fewest rows are those of a search that opens one prefix at a time:
every prefix it opens is at least as probable as the tenth item, so every exact search has to. PruningRate@10 is the
share of the true ten that beam search with ten beams does not return.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _figures import VOCAB_SIZE, Figure, main
from transformers import LlamaConfig, LlamaForCausalLM

from gentrie import TokenTrie, datasets
from gentrie.bench.catalogs import tokenised_catalogs
from gentrie.bench.harness import Spread, compare
from gentrie.generation import BestFirstResult, TrieLogitsProcessor, best_first_search

NUM_RESULTS, PROMPTS = 10, 16
HISTORY = 4  # items in a prompt
STEPS, BATCH = 300, 16
END, SEPARATOR, FIRST = 0, 1, 2


def purchases(real: str | None) -> tuple[list[list[int]], list[list[int]]]:
    """Titles as token ids from FIRST on, and rows of titles in the order they were bought."""
    if real is None:
        (catalog,) = tokenised_catalogs(["toys"], VOCAB_SIZE)
        source = datasets.load("toys")
        drawn = datasets.histories.draw(source, 5000)
        bought = [[*history, target] for part in drawn for history, target in zip(*part, strict=True)]
    else:
        (catalog,) = tokenised_catalogs([], VOCAB_SIZE, Path(real) / "catalog.jsonl")
        source = datasets.Catalog.from_jsonl(Path(real) / "catalog.jsonl")
        lines = (Path(real) / "test.jsonl").read_text(encoding="utf-8").splitlines()
        bought = [json.loads(line)["item_ids"] for line in lines]
    _, narrow = np.unique(catalog.values, return_inverse=True)  # the model needs no other tokens
    values = (narrow + FIRST).tolist()
    titles = [values[a:b] for a, b in zip(catalog.indptr[:-1], catalog.indptr[1:], strict=True)]
    row_of = {int(item): row for row, item in enumerate(source.item_ids)}
    return titles, [[row_of[int(item)] for item in items] for items in bought]


def prompt(titles: list[list[int]], rows: list[int]) -> list[int]:
    return [token for row in rows[-HISTORY:] for token in (*titles[row], SEPARATOR)]


def trained(titles: list[list[int]], bought: list[list[int]]) -> LlamaForCausalLM:
    """A small model after some steps on (prompt, next title)."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=max(map(max, titles)) + 1,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=None,
            eos_token_id=END,
            pad_token_id=END,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    draw = np.random.default_rng(0)
    for _ in range(STEPS):
        chosen = [bought[row] for row in draw.integers(len(bought), size=BATCH)]
        texts = [[*prompt(titles, rows[:-1]), *titles[rows[-1]], END] for rows in chosen]
        width = max(map(len, texts))
        ids = torch.tensor([text + [END] * (width - len(text)) for text in texts])
        labels = torch.tensor([text + [-100] * (width - len(text)) for text in texts])
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def measure(options: argparse.Namespace) -> list[Figure]:
    titles, bought = purchases(options.real)
    held_out = bought[-PROMPTS:]
    model = trained(titles, bought[: -len(bought) // 10])
    trie = TokenTrie.from_sequences(titles, vocab_size=model.config.vocab_size, end_token_id=END)
    texts = [prompt(titles, rows[:-1]) for rows in held_out]
    width = max(map(len, texts))
    ids = torch.tensor([[END] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])

    def exact(**settings: Any) -> BestFirstResult:
        return best_first_search(model, ids, trie, attention_mask=mask, num_results=NUM_RESULTS, **settings)

    rows_scored: list[int] = []

    def beams() -> torch.Tensor:
        rows_scored.clear()
        output: torch.Tensor = model.generate(
            ids,
            attention_mask=mask,
            logits_processor=[TrieLogitsProcessor(trie, prompt_length=width)],
            renormalize_logits=True,
            num_beams=NUM_RESULTS,
            num_return_sequences=NUM_RESULTS,
            length_penalty=0.0,
            max_new_tokens=trie.max_depth,
        )
        return output[:, width:]

    hook = model.register_forward_hook(lambda *call: rows_scored.append(call[2].logits.shape[0]))
    found = [{tuple(row[: row.index(END) + 1]) for row in part.tolist()} for part in beams().split(NUM_RESULTS)]
    beam_rows = sum(rows_scored)
    hook.remove()
    best, fewest = exact(), exact(max_rows_per_call=1, speculation=0.0)
    if not best.certified.all():
        raise RuntimeError("the search ended without a certificate")
    missed = [
        len({tuple(sequence) for sequence in sequences} - beam) / len(sequences)
        for sequences, beam in zip(best.sequences, found, strict=True)
    ]
    taken = compare({"exact": exact, "beams": beams}, rounds=options.rounds)
    name = "synthetic toys" if options.real is None else Path(options.real).name
    speed = Spread.of([b / e for b, e in zip(taken["beams"].rounds, taken["exact"].rounds, strict=True)])
    per_prompt = f"{PROMPTS} prompts, {trie.num_items:,} items"
    return [
        Figure.exact(
            f"best-first, {name}: rows computed over the fewest possible",
            "times",
            best.stats.rows / fewest.stats.rows,
            goal=1.25,
            note=f"{best.stats.rows} over {fewest.stats.rows}; {per_prompt}",
        ),
        Figure.exact(f"best-first, {name}: model calls", "", best.stats.model_calls, note=per_prompt),
        Figure.exact(f"best-first, {name}: tokens computed", "", best.stats.tokens_computed, note=per_prompt),
        Figure.exact(f"best-first, {name}: PruningRate@10", "%", 0.0, note="certified"),
        Figure.exact(f"beam search, {name}: PruningRate@10", "%", 100 * float(np.mean(missed)), note="10 beams"),
        Figure.exact(f"beam search, {name}: rows scored by generate", "", beam_rows, note=per_prompt),
        Figure.of(f"best-first, {name}", "s", taken["exact"], note=per_prompt),
        Figure.of(f"beam search by generate, {name}", "s", taken["beams"], note=per_prompt),
        Figure.of(f"beam search by generate over best-first, {name}", "times", speed),
    ]


if __name__ == "__main__":
    main(measure, __doc__ or "")
