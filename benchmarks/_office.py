"""Data, model, training and evaluation of ``office_training.py``: one run in one process."""

from __future__ import annotations

import json
import logging
import resource
import time
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from gentrie import TokenTrie, datasets
from gentrie.bench.harness import write_json
from gentrie.evaluation import hit_rate, ndcg, ood_rate, pruning, resolve_lists, target_token_ranks
from gentrie.evaluation.pruned import leaves_of
from gentrie.generation import best_first_search
from gentrie.training import BearTrainer, ItemCollator, linear_bear_loss, linear_masked_softmax_loss
from gentrie.training.recommendation_callback import beam_recommend

VOCAB_SIZE = 4096
K = 10

# Batches of like lengths: a third less padding. transformers 5 renamed the argument.
GROUP_BY_LENGTH: dict[str, Any] = (
    {"train_sampling_strategy": "group_by_length"}
    if hasattr(TrainingArguments, "train_sampling_strategy")
    else {"group_by_length": True}
)

# The authors' setting of BEAR's reweighted form.
BEAR = {"form": "reweighted", "reg_weight": 0.25, "reg_temperature": 2.75, "beam_width": K}
METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "sft": (linear_bear_loss, {"scope": "vocab", "reg_weight": 0.0}),
    "msl": (linear_masked_softmax_loss, {}),
    "bear": (linear_bear_loss, BEAR),
}


@dataclass(frozen=True)
class Run:
    """One model: its name says where its results lie."""

    method: str
    seed: int
    epochs: float
    reg_weight: float | None = None
    reg_temperature: float | None = None

    @property
    def name(self) -> str:
        swept = "" if self.reg_weight is None else f"-w{self.reg_weight:g}-t{self.reg_temperature:g}"
        return f"{self.method}{swept}-seed{self.seed}-epochs{self.epochs:g}"

    def loss(self) -> tuple[Any, dict[str, Any]]:
        function, options = METHODS[self.method]
        if self.reg_weight is not None:
            options = {**options, "reg_weight": self.reg_weight, "reg_temperature": self.reg_temperature}
        return function, options


@dataclass(frozen=True)
class Size:
    """How much is trained and judged."""

    history: int = 2
    batch: int = 32
    users: int = 1925
    users_free: int = 48


@dataclass(frozen=True)
class Office:
    """The catalog and its interactions as token ids."""

    trie: TokenTrie
    pad: int
    train: list[dict[str, list[int]]]
    prompts: list[list[int]]
    targets: np.ndarray[Any, np.dtype[np.int64]]

    @classmethod
    def load(cls, folder: Path, size: Size) -> Office:
        catalog = datasets.Catalog.from_jsonl(folder / "catalog.jsonl")
        tokenizer = catalog.train_tokenizer(VOCAB_SIZE)
        end = tokenizer.eos_token_id
        trie = TokenTrie.from_titles(catalog.titles, tokenizer, end_token_id=end, item_ids=catalog.item_ids)
        values, indptr = catalog.token_sequences(tokenizer)
        titles = {
            int(item): row.tolist() for item, row in zip(catalog.item_ids, np.split(values, indptr[1:-1]), strict=True)
        }

        def prompt(items: list[int]) -> list[int]:
            """The last titles, an end token behind each, which is what one is written behind as well."""
            past = [[*titles[item], end] for item in items[-size.history :]]
            return [tokenizer.bos_token_id, *chain.from_iterable(past)]

        def read(name: str) -> list[list[int]]:
            return [json.loads(line)["item_ids"] for line in (folder / name).read_text().splitlines()]

        rows = read("train.jsonl")
        train = [{"prompt_ids": prompt(row[:-1]), "response_ids": [*titles[row[-1]], end]} for row in rows]
        for features in train:  # its length is what batches are grouped by
            features["input_ids"] = features["prompt_ids"] + features["response_ids"]
        test = read("test.jsonl")[: size.users]
        return cls(
            trie,
            tokenizer.pad_token_id,
            train,
            [prompt(row[:-1]) for row in test],
            np.array([row[-1] for row in test], dtype=np.int64),
        )


def model_of(seed: int, office: Office) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            initializer_range=0.04,
            pad_token_id=office.pad,
            bos_token_id=1,
            eos_token_id=office.trie.end_token_id,
        )
    )


def carry_out(run: Run, folder: Path, size: Size, work: Path) -> dict[str, Any]:
    """Train and judge, or read what was found before."""
    kept = work / f"{run.name}.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    office = Office.load(folder, size)
    model = model_of(run.seed, office)
    loss, options = run.loss()
    trainer = BearTrainer(
        model,
        TrainingArguments(
            output_dir=str(work / run.name),
            per_device_train_batch_size=size.batch,
            num_train_epochs=run.epochs,
            learning_rate=3e-3,
            lr_scheduler_type="cosine",
            warmup_steps=50,
            weight_decay=0.01,
            seed=run.seed,
            logging_strategy="no",
            **GROUP_BY_LENGTH,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=office.train,
        data_collator=ItemCollator(office.trie, office.pad),
        trie=office.trie,
        loss=loss,
        loss_options=options,
    )
    started = time.process_time()  # one thread: what it takes on a core of its own, whatever else runs
    output = trainer.train()
    seconds = time.process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {
        "run": asdict(run),
        "steps": output.global_step,
        "training_loss": output.training_loss,
        "cpu_seconds_per_step": seconds / output.global_step,
        "peak_memory_bytes": peak,
        **judge(model.eval(), office, size, free=run.reg_weight is None),
    }
    found["cpu_seconds"] = time.process_time() - started
    write_json(kept, found)
    return found


@torch.no_grad()
def judge(model: LlamaForCausalLM, office: Office, size: Size, *, free: bool) -> dict[str, float]:
    """HR, NDCG and OOD, constrained and free; what constrained beam search loses of the model's own best items."""
    constrained = beam_recommend(model, office.prompts, K, trie=office.trie, pad_token_id=office.pad)
    ways = {"constrained": constrained, **({"free": free_lists(model, office, size.users_free)} if free else {})}
    found = {}
    for name, lists in ways.items():
        found[f"hr@{K} {name}"] = hit_rate(lists, office.targets[: len(lists)], K, trie=office.trie)
        found[f"ndcg@{K} {name}"] = ndcg(lists, office.targets[: len(lists)], K, trie=office.trie)
        found[f"ood@{K} {name}"] = ood_rate(lists, K)
    logprobs, ranks = best_of_catalog(model, office)
    lost = pruning(logprobs, office.targets, constrained, K, office.trie, token_ranks=ranks)
    found.update({f"pruned@{K}": lost.num_pruned, f"top@{K}": lost.num_top, "violating": lost.num_violating})
    found[f"pruning_rate@{K}"] = lost.pruning_rate
    return found


def best_of_catalog(model: LlamaForCausalLM, office: Office) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Log-probabilities [users, sequences] of the exact top K (-inf elsewhere), and the targets' ranks at each step."""
    logprobs = np.full((len(office.prompts), office.trie.num_sequences), -np.inf)
    ranks, batch = np.ones((len(office.prompts), office.trie.max_depth), dtype=np.int64), 16
    order = sorted(range(len(office.prompts)), key=lambda row: len(office.prompts[row]))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        ids, mask = left_padded([office.prompts[row] for row in rows], office.pad)
        exact = best_first_search(model, ids, office.trie, attention_mask=mask, num_results=K)
        for row, items, scores in zip(rows, exact.item_ids, exact.sequences_scores, strict=True):
            leaves = leaves_of(np.array([int(same[0]) for same in items]), office.trie, "items")
            logprobs[row, leaves] = np.asarray(scores)
        found = target_token_ranks(model, ids, office.trie, office.targets[rows], attention_mask=mask)
        ranks[rows, : found.shape[1]] = found
    return logprobs, ranks


def left_padded(prompts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``input_ids`` and ``attention_mask``."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts])
    lengths = torch.tensor([len(row) for row in prompts])
    return ids, (torch.arange(width) >= width - lengths[:, None]).long()


def free_lists(model: LlamaForCausalLM, office: Office, users: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The same beam search without the catalog, for the first users: item ids, -2 for what is none."""
    end, rows, batch = office.trie.end_token_id, [], 16
    for start in range(0, users, batch):
        prompts = office.prompts[start : min(start + batch, users)]
        ids, mask = left_padded(prompts, office.pad)
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            num_beams=K,
            num_return_sequences=K,
            length_penalty=0.0,
            max_new_tokens=office.trie.max_depth,
            pad_token_id=office.pad,
            eos_token_id=end,
        )
        written = [row[: row.index(end) + 1] if end in row else row for row in output[:, ids.shape[1] :].tolist()]
        rows += [written[i * K : (i + 1) * K] for i in range(len(prompts))]
    return resolve_lists(office.trie, rows, K)
