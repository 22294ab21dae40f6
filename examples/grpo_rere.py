"""Reinforcement learning of a recommender inside trl's GRPOTrainer, with the rewards of ReRe.

Each rollout of a prompt is another item of the catalog, so that a group holds as many different items as it has places:
drawn without replacement from the model's own distribution (``gentrie.generation.sample_items``), or with ``--rollouts
beams`` the items of a beam search, as in ReRe itself (``gentrie.generation.beam_rollouts``). Rewards
are those of ReRe ("Reinforced Preference Optimization for Recommendation"): 1 for the item that was bought, and in
groups that hold it a penalty for the others, the higher the more probable the model finds them. Forced tokens were no
choice: they are masked out of the loss.

python examples/grpo_rere.py --steps 150 --rollouts sampling
"""

from __future__ import annotations

import argparse
import math
import tempfile
from itertools import groupby
from typing import Any, Literal, get_args

import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

import gentrie
from gentrie import datasets as catalogs
from gentrie.generation import beam_rollouts, sample_items

Method = Literal["sampling", "beams"]


def rule_reward(item_ids: list[list[int]], target: list[int], **_: Any) -> list[float]:
    """1 for the item that was bought, 0 for any other."""
    return [float(bought in items) for items, bought in zip(item_ids, target, strict=True)]


class RankingReward:
    """ReRe's ranking reward: in a group that holds the target, each other item at rank r gets its share, negative, of
    ``1 / log2(r + 1)`` over all ranks; the target and groups without it get 0."""

    __name__ = "ranking_reward"

    def __init__(self, num_generations: int) -> None:
        shares = [1 / math.log2(rank + 2) for rank in range(num_generations)]
        self._penalties = [-share / sum(shares) for share in shares]

    def __call__(self, item_ids: list[list[int]], target: list[int], log_prob: list[float], **_: Any) -> list[float]:
        hits = rule_reward(item_ids, target)
        size = len(self._penalties)
        rewards = [0.0] * len(hits)
        for first in range(0, len(hits), size):
            group = range(first, first + size)
            if any(hits[row] for row in group):
                for rank, row in enumerate(sorted(group, key=lambda row: -log_prob[row])):
                    rewards[row] = 0.0 if hits[row] else self._penalties[rank]
        return rewards


class Rollouts:
    """What GRPOTrainer calls for completions: distinct items for the repeats of each prompt."""

    def __init__(self, trie: gentrie.TokenTrie, tokenizer: Any, method: Method) -> None:
        self._trie = trie
        self._tokenizer = tokenizer
        self._find = sample_items if method == "sampling" else beam_rollouts

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """Token ids and log-probabilities, and for the rewards each item's ids and log-probability."""
        groups = [(text, len(list(repeats))) for text, repeats in groupby(prompts)]
        ids = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in groups]
        width = max(map(len, ids))
        model = trainer.accelerator.unwrap_model(trainer.model)
        was_training = model.training
        model.eval()
        samples = self._find(
            model,
            torch.tensor([[0] * (width - len(row)) + row for row in ids], device=model.device),
            self._trie,
            attention_mask=torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids]),
            num_samples=max(count for _, count in groups),
            temperature=trainer.temperature,
        )
        model.train(was_training)
        output: dict[str, list[Any]] = {
            name: [] for name in ("prompt_ids", "completion_ids", "logprobs", "env_mask", "item_ids", "log_prob")
        }
        for row, (_, count) in enumerate(groups):
            for at in range(count):
                tokens = samples.token_log_probs[row][at].tolist()
                output["prompt_ids"].append(ids[row])
                output["completion_ids"].append(samples.sequences[row][at])
                output["logprobs"].append(tokens)
                output["env_mask"].append([int(value < 0) for value in tokens])
                output["item_ids"].append(samples.item_ids[row][at].tolist())
                output["log_prob"].append(float(samples.log_probs[row][at]))
        return output


def train(
    steps: int, *, method: Method = "sampling", num_generations: int = 8, num_items: int = 80, seed: int = 0
) -> list[dict[str, float]]:
    """Train a tiny model from scratch and return what the trainer logged."""
    catalog = catalogs.load("steam", num_items=num_items)
    tokenizer = catalog.train_tokenizer(1000)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # The prompt ends in a line break, the context in which titles are encoded.
    trie = gentrie.TokenTrie.from_titles(
        catalog.titles, tokenizer, context="\n", item_ids=catalog.item_ids, end_token_id=tokenizer.eos_token_id
    )
    history, target = catalogs.histories.draw(catalog, 200, seed=seed, length=3).train
    titles = dict(zip(catalog.item_ids.tolist(), catalog.titles, strict=True))
    rows = [
        {"prompt": "".join(f"{titles[item]}\n" for item in items), "target": bought}
        for items, bought in zip(history.tolist(), target.tolist(), strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=[rule_reward, RankingReward(num_generations)],
            train_dataset=Dataset.from_list(rows),
            rollout_func=Rollouts(trie, tokenizer, method),
            args=GRPOConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=4 * num_generations,
                num_generations=num_generations,
                max_completion_length=trie.max_depth,
                learning_rate=1e-3,
                beta=0.0,
                logging_steps=1,
                report_to=[],
                save_strategy="no",
                bf16=False,
                use_cpu=not torch.cuda.is_available(),
                seed=seed,
            ),
        )
        trainer.train()
        logged: list[dict[str, float]] = trainer.state.log_history
    return logged


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--rollouts", choices=get_args(Method), default="sampling")
    options = parser.parse_args()
    log = train(options.steps, method=options.rollouts)
    rewards = [entry["rewards/rule_reward/mean"] for entry in log if "reward" in entry]
    tenth = max(1, len(rewards) // 10)
    for name, part in (("first", rewards[:tenth]), ("last", rewards[-tenth:])):
        print(f"items that were bought, of those found, {name} tenth of the steps: {sum(part) / len(part):.4f}")
