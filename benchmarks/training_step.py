"""A whole training step with BEAR against the same step with the loss of ``transformers``.

A small Llama-shaped model learns one title behind four: forward pass, loss, backward pass and AdamW. The step of
``transformers`` computes logits for the labelled positions only (prompts padded on the left, ``logits_to_keep``) and
takes the model's own loss; ours is that of ``BearTrainer``. Once with the size that a small catalog's own tokenizer
needs, once with a large vocabulary. Peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from _figures import VOCAB_SIZE, Figure, main
from _fresh import PeakMemory, in_fresh_process
from processor import keep_memory, ratio
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from gentrie import TokenTrie, datasets
from gentrie.bench.harness import compare
from gentrie.training import BearTrainer, ItemCollator

BATCH, HISTORY = 16, 4
METHODS = ("BEAR", "transformers")
SIZES = {4096: (128, 2), VOCAB_SIZE: (256, 4)}
"""Hidden size and layers by vocabulary."""
Step = Callable[[], float]


def batch_of(vocab_size: int) -> tuple[TokenTrie, dict[str, torch.Tensor]]:
    """Prompts of four titles, and a title to learn."""
    catalog = datasets.load("toys", num_items=10_000)
    tokenizer = catalog.train_tokenizer(4096)
    end = tokenizer.eos_token_id
    values, indptr = catalog.token_sequences(tokenizer)
    trie = TokenTrie.from_sequences((values, indptr), vocab_size=vocab_size, end_token_id=end)
    titles = [[*values[indptr[i] : indptr[i + 1]].tolist(), end] for i in range((HISTORY + 1) * BATCH)]
    users = [titles[start : start + HISTORY + 1] for start in range(0, len(titles), HISTORY + 1)]
    features = [{"prompt_ids": [*chain.from_iterable(user[:-1])], "response_ids": user[-1]} for user in users]
    return trie, ItemCollator(trie, tokenizer.pad_token_id, padding_side="left")(features)


def step_of(method: str, vocab_size: int) -> Step:
    """One step of training, which returns the loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    trie, batch = batch_of(vocab_size)
    hidden, layers = SIZES[vocab_size]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=3 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labelled = int((batch["labels"] >= 0).sum(1).max())

    def theirs() -> torch.Tensor:
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            logits_to_keep=labelled + 1,
            use_cache=False,
        ).logits
        loss: torch.Tensor = model.loss_function(logits, batch["labels"][:, -labelled - 1 :], vocab_size=vocab_size)
        return loss

    with tempfile.TemporaryDirectory() as folder:
        trainer = BearTrainer(model, TrainingArguments(output_dir=folder, report_to=[], use_cpu=True), trie=trie)
    inputs = {**batch, "use_cache": False}

    def step() -> float:
        loss: Any = theirs() if method == "transformers" else trainer.compute_loss(model, inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    model.train()
    return step


def peak(method: str, vocab_size: int) -> int:
    """Bytes beyond model and optimizer."""
    step = step_of(method, vocab_size)
    step()
    with PeakMemory() as taken:
        step()
    return taken.bytes


def measure(options: argparse.Namespace) -> list[Figure]:
    figures = []
    memory = {(method, size): in_fresh_process(peak, method, size) for size in SIZES for method in METHODS}
    keep_memory()
    for size, (hidden, layers) in SIZES.items():
        taken = compare({method: step_of(method, size) for method in METHODS}, rounds=options.rounds)
        note, name = f"hidden {hidden}, {layers} layers, batch {BATCH}", f"training step, vocabulary {size:,}"
        time, space = ratio(taken["BEAR"], taken["transformers"]), memory["BEAR", size] / memory["transformers", size]
        figures += [
            Figure.of(f"{name}: BEAR over transformers", "times", time, goal=1, note=note),
            Figure.exact(f"{name}: memory of BEAR over transformers", "times", space, goal=1, note=note),
            *(Figure.of(f"{method}: {name}", "ms", spread, scale=1e3) for method, spread in taken.items()),
            *(Figure.exact(f"{method}: {name}, memory", "MB", memory[method, size] / 1e6) for method in taken),
        ]
    return figures


if __name__ == "__main__":
    main(measure, __doc__ or "")
