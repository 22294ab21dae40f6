"""Train a small model to recommend with BEAR, from scratch, on data made here or your own.

    python examples/train_bear.py
    python examples/train_bear.py --catalog catalog.jsonl --train train.jsonl --test test.jsonl

A catalog holds ``{"item_id": int, "title": str}`` a line, interactions ``{"item_ids": [...]}`` a line, oldest first:
the last is what the user chose, the others are the prompt. Needs ``pip install 'gentrie[train]'``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from gentrie import TokenTrie, datasets
from gentrie.training import (
    BearTrainer,
    ItemCollator,
    RecommendationCallback,
    linear_bear_loss,
    linear_masked_softmax_loss,
)

LOSSES = {
    "bear": (linear_bear_loss, {"form": "reweighted", "reg_weight": 0.25, "reg_temperature": 2.75}),
    "msl": (linear_masked_softmax_loss, {}),
    "sft": (linear_bear_loss, {"scope": "vocab", "reg_weight": 0.0}),
}


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, evaluate after every epoch, and return the last metrics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=LOSSES, default="bear")
    parser.add_argument("--catalog", type=Path, help="default: a synthetic catalog")
    parser.add_argument("--train", type=Path, help="interactions to learn from")
    parser.add_argument("--test", type=Path, help="interactions to recommend for")
    parser.add_argument("--items", type=int, default=1000, help="items of the synthetic catalog")
    parser.add_argument("--history", type=int, default=4, help="items of the past in a prompt")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--users", type=int, default=100, help="users to recommend for")
    parser.add_argument("--output", default="bear-model", help="folder for the model")
    options = parser.parse_args(arguments)

    if options.catalog is None:
        catalog = datasets.load("steam", num_items=options.items)
        users = 2 * options.items + options.users
        split = catalog.histories(users, test_share=options.users / users)
        train, test = (np.column_stack(part).tolist() for part in split)
    else:
        catalog = datasets.Catalog.from_jsonl(options.catalog)
        train, test = interactions(options.train), interactions(options.test)

    tokenizer = catalog.train_tokenizer(2048)
    end = tokenizer.eos_token_id
    trie = TokenTrie.from_titles(catalog.titles, tokenizer, end_token_id=end, item_ids=catalog.item_ids)
    values, indptr = catalog.token_sequences(tokenizer)
    titles = dict(zip(catalog.item_ids.tolist(), (row.tolist() for row in np.split(values, indptr[1:-1])), strict=True))

    def example(row: list[int]) -> dict[str, list[int]]:
        """Ids, never text: a title's tokens are the same here as in the trie."""
        past = [[*titles[item], end] for item in row[:-1][-options.history :]]
        return {
            "prompt_ids": [tokenizer.bos_token_id, *chain.from_iterable(past)],
            "response_ids": [*titles[row[-1]], end],
        }

    test = test[: options.users]
    learnt, held_out = [example(row) for row in train], [example(row) for row in test]

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.04,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
        )
    )
    loss, loss_options = LOSSES[options.loss]
    judge = RecommendationCallback(
        trie,
        [features["prompt_ids"] for features in held_out],
        [row[-1] for row in test],
        pad_token_id=tokenizer.pad_token_id,
    )
    trainer = BearTrainer(
        model,
        TrainingArguments(
            output_dir=options.output,
            num_train_epochs=options.epochs,
            per_device_train_batch_size=16,
            learning_rate=3e-3,
            warmup_steps=20,
            eval_strategy="epoch",
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=learnt,
        eval_dataset=held_out,
        data_collator=ItemCollator(trie, tokenizer.pad_token_id),
        trie=trie,
        loss=loss,
        loss_options=loss_options,
        callbacks=[judge],
    )
    trainer.train()
    trainer.save_model()
    tokenizer.save_pretrained(options.output)
    trie.save(Path(options.output) / "catalog.safetensors")
    for metrics in judge.history:
        print(json.dumps(metrics))
    return judge.history[-1]


def interactions(path: Path) -> list[list[int]]:
    return [json.loads(line)["item_ids"] for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
