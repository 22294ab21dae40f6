"""Exact top-10 by best-first search: rows computed over those needed, and what beam search leaves out at what cost.

A small model is trained for some minutes on histories over the catalog (synthetic toys, or ``--real FOLDER`` with
``catalog.jsonl`` and ``test.jsonl``). Needed are the branching prefixes that are as probable as the tenth item: every
exact search has to ask the model about them. They are counted by a plain walk without cache. PruningRate@10 is the
share of the true ten that beam search with ten beams does not return; ``generate`` runs the same beam search.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from _figures import VOCAB_SIZE, Figure, main
from transformers import LlamaConfig, LlamaForCausalLM

from gentrie import TokenTrie, datasets
from gentrie.bench.catalogs import tokenised_catalogs
from gentrie.bench.harness import Spread, compare
from gentrie.generation import BestFirstResult, TrieLogitsProcessor, best_first_search
from gentrie.generation.beam_results import BeamSearchResult
from gentrie.generation.beam_search import beam_search

NUM_RESULTS, PROMPTS = 10, 16
HISTORY = 4  # items in a prompt
STEPS, BATCH = 300, 16
END, SEPARATOR, FIRST = 0, 1, 2
ROUNDING = 1e-6  # of log-probabilities


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


def needed(model: LlamaForCausalLM, trie: TokenTrie, text: list[int], least: float) -> int:
    """Branching prefixes whose log-probability behind ``text`` is at least ``least``."""
    count = 0
    level: list[tuple[float, list[int]]] = [(0.0, [])]
    while level:
        branching = []
        for score, path in level:
            state = trie.walk(path)
            while not trie.is_leaf(state) and trie.next_tokens(state).size == 1:
                path = [*path, int(trie.next_tokens(state)[0])]
                state = trie.walk(path)
            if not trie.is_leaf(state):
                branching.append((score, path, trie.next_tokens(state).tolist()))
        count += len(branching)
        level = []
        for at in range(0, len(branching), BATCH):
            rows = branching[at : at + BATCH]
            width = max(len(path) for _, path, _ in rows)
            ids = torch.tensor([[*text, *path, *[END] * (width - len(path))] for _, path, _ in rows])
            with torch.no_grad():
                logits = model(ids).logits
            for (score, path, tokens), own in zip(rows, logits, strict=True):
                log_probs = score + own[len(text) + len(path) - 1, tokens].double().log_softmax(-1)
                level += [
                    (value, [*path, token])
                    for value, token in zip(log_probs.tolist(), tokens, strict=True)
                    if value >= least - ROUNDING
                ]
    return count


def measure(options: argparse.Namespace) -> list[Figure]:
    titles, bought = purchases(options.real)
    held_out = bought[-PROMPTS:]
    model = trained(titles, bought[: -len(bought) // 10])
    trie = TokenTrie.from_sequences(titles, vocab_size=model.config.vocab_size, end_token_id=END)
    texts = [prompt(titles, rows[:-1]) for rows in held_out]
    width = max(map(len, texts))
    ids = torch.tensor([[END] * (width - len(text)) + text for text in texts])
    mask = torch.tensor([[0] * (width - len(text)) + [1] * len(text) for text in texts])

    def exact() -> BestFirstResult:
        return best_first_search(model, ids, trie, attention_mask=mask, num_results=NUM_RESULTS)

    def beams() -> BeamSearchResult:
        return beam_search(model, ids, trie, attention_mask=mask, beam_width=NUM_RESULTS, length_penalty=0.0)

    rows_scored: list[int] = []

    def generate() -> list[list[list[int]]]:
        rows_scored.clear()
        output = model.generate(
            ids,
            attention_mask=mask,
            logits_processor=[TrieLogitsProcessor(trie, prompt_length=width)],
            renormalize_logits=True,
            num_beams=NUM_RESULTS,
            num_return_sequences=NUM_RESULTS,
            length_penalty=0.0,
            max_new_tokens=trie.max_depth,
        )
        rows = [row[: row.index(END) + 1] for row in output[:, width:].tolist()]
        return [rows[at : at + NUM_RESULTS] for at in range(0, len(rows), NUM_RESULTS)]

    best, wide = exact(), beams()
    if not best.certified.all():
        raise RuntimeError("the search ended without a certificate")
    hook = model.register_forward_hook(lambda *call: rows_scored.append(call[2].logits.shape[0]))
    pairs = zip(generate(), wide.sequences, strict=True)
    same = np.mean([theirs == ours for pair in pairs for theirs, ours in zip(*pair, strict=True)])
    hook.remove()
    generate_calls, generate_rows = len(rows_scored), sum(rows_scored)
    fewest = sum(
        needed(model, trie, text, float(scores[-1])) for text, scores in zip(texts, best.sequences_scores, strict=True)
    )
    missed = [
        len({*map(tuple, sequences)} - {*map(tuple, found)}) / len(sequences)
        for sequences, found in zip(best.sequences, wide.sequences, strict=True)
    ]
    taken = compare({"exact": exact, "beams": beams, "generate": generate}, rounds=options.rounds)
    name = "synthetic toys" if options.real is None else Path(options.real).name
    note = f"{PROMPTS} prompts, {trie.num_items:,} items"
    figures = [
        Figure.exact(
            f"best-first, {name}: rows computed over those needed",
            "times",
            best.stats.rows / fewest,
            goal=1.25,
            note=f"{best.stats.rows} over {fewest}; {note}",
        ),
        Figure.exact(f"best-first, {name}: PruningRate@10", "%", 0.0, note="certified"),
        Figure.exact(f"beam search, {name}: PruningRate@10", "%", 100 * float(np.mean(missed)), note="10 beams"),
    ]
    stats = (("best-first", "exact", best.stats), ("beam search", "beams", wide.stats))
    for title, key, cost in stats:
        figures += [
            Figure.exact(f"{title}, {name}: rows computed", "", cost.rows, note=note),
            Figure.exact(f"{title}, {name}: model calls", "", cost.model_calls, note=note),
            Figure.exact(f"{title}, {name}: tokens computed behind the prompts", "", cost.tokens_computed, note=note),
            Figure.of(f"{title}, {name}", "s", taken[key], note=note),
        ]
    figures += [
        Figure.exact(
            f"generate, {name}: rows computed", "", generate_rows, note=f"{same:.0%} the same items as beam search"
        ),
        Figure.exact(f"generate, {name}: model calls", "", generate_calls),
        Figure.of(f"generate, {name}", "s", taken["generate"]),
    ]
    for title, key in (("beam search", "beams"), ("generate", "generate")):
        rounds = zip(taken[key].rounds, taken["exact"].rounds, strict=True)
        times = Spread.of([theirs / ours for theirs, ours in rounds])
        figures.append(Figure.of(f"{title} over best-first, {name}", "times", times))
    return figures


if __name__ == "__main__":
    main(measure, __doc__ or "")
