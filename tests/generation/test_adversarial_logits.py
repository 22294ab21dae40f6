"""Logits that no sound model gives, through every search: an item of the catalog, nothing, or an error that says so."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import BEGIN, END, FIRST_TOKEN, PAD, TURN_END, VOCAB_SIZE, ScriptedModel
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor

import gentrie
from gentrie.device import DeviceBeamStepper
from gentrie.generation import (
    BeamStepper,
    TrieLogitsProcessor,
    beam_search,
    best_first_search,
    generate_with_items,
    sample_items,
)

CASES = int(os.environ.get("GENTRIE_ADVERSARIAL_CASES", "20"))
"""Random cases of each test; 25 times as many in the slow ones."""

FILLER = -1e8  # what `generate` returns below is no answer
EXTREMES = [np.nan, np.inf, -np.inf, 1e38, -1e38, 1e9, -1e9, 0.0]


class Case:
    """A catalog, prompts, and logits of which a share is spoiled."""

    def __init__(self, seed: int) -> None:
        self.random = random = np.random.default_rng(seed)
        width, longest = int(random.integers(1, 5)), int(random.integers(1, 6))
        rows = {tuple(random.integers(FIRST_TOKEN, FIRST_TOKEN + width, longest).tolist()) for _ in range(12)}
        rows |= {row[: int(random.integers(1, longest + 1))] for row in rows}
        self.rows = sorted(rows)
        self.items = {(*row, END) for row in self.rows}
        self.trie = gentrie.TokenTrie.from_sequences(self.rows, vocab_size=VOCAB_SIZE, end_token_id=END)
        self.prompts = torch.from_numpy(random.integers(FIRST_TOKEN + 8, VOCAB_SIZE, (2, 3)))
        table = torch.from_numpy(random.normal(size=(64, VOCAB_SIZE)).round()).float()  # with ties
        self._numbers = [EXTREMES[at] for at in random.integers(0, len(EXTREMES), random.integers(1, 3))]
        self.table = self.spoiled(table)
        self.num_beams = int(random.integers(2, 6))

    def spoiled(self, values: torch.Tensor) -> torch.Tensor:
        where = torch.from_numpy(self.random.random(values.shape) < self.random.choice([0.0, 0.02, 0.3, 1.0]))
        return torch.where(where, torch.from_numpy(self.random.choice(self._numbers, values.shape)).float(), values)

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table[(ids[:, -1] * 7 + ids.shape[1]) % len(self.table)]

    def other_processor(self) -> LogitsProcessor:
        return _Spoiler(self.random)


class _Spoiler(LogitsProcessor):
    """Adds something to the scores of half of the rows or of the tokens, the same at every step."""

    def __init__(self, random: np.random.Generator) -> None:
        self._added = float(random.choice(EXTREMES))
        self._tokens = torch.from_numpy(random.random(VOCAB_SIZE) < random.choice([0.5, 1.0]))
        self._all_rows = bool(random.integers(2))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        changed = torch.where(self._tokens, scores + self._added, scores)
        return changed if self._all_rows else torch.cat([changed[: len(scores) // 2], scores[len(scores) // 2 :]])


def refused(call: Callable[[], Any]) -> Any:
    """What a call returns, or None where it raised, as it should, that logits are not numbers."""
    try:
        return call()
    except ValueError as error:
        if "not a number" not in str(error) and "not numbers" not in str(error):
            raise
        return None


def check_row(case: Case, response: Sequence[int]) -> bool:
    """Whether a response is an item; if it claims to have ended it must be."""
    if END not in response:
        return False
    assert tuple(response[: list(response).index(END) + 1]) in case.items, response
    return True


def check_generate(seed: int) -> int:
    case = Case(seed)
    random = case.random
    options: dict[str, Any] = {"renormalize_logits": bool(random.integers(2)), "do_sample": bool(random.integers(2))}
    if random.integers(2):
        returned = int(random.integers(1, case.num_beams + 1))
        options |= {"num_beams": case.num_beams, "num_return_sequences": returned}
    if options["do_sample"] and random.integers(2):
        options |= {"top_k": 2, "temperature": float(random.choice([0.5, 3.0]))}
    processors: list[LogitsProcessor] = [TrieLogitsProcessor(case.trie, prompt_length=3)]
    if random.integers(2):
        processors.insert(0, case.other_processor())
    torch.manual_seed(seed)
    output = refused(
        lambda: ScriptedModel(case.logits, VOCAB_SIZE, END).generate(
            case.prompts,
            attention_mask=torch.ones_like(case.prompts),
            logits_processor=processors,
            max_new_tokens=case.trie.max_depth + 1,
            return_dict_in_generate=True,
            output_scores=True,
            **options,
        )
    )
    if output is None:
        return 0
    rows = output.sequences[:, 3:].tolist()
    if "num_beams" not in options:
        return sum(check_row(case, row) or pytest.fail(f"{row} did not end") for row in rows)
    assert not output.sequences_scores.isnan().any()
    real = [row for row, score in zip(rows, output.sequences_scores.tolist(), strict=True) if score > FILLER]
    assert all(check_row(case, row) for row in real)
    best = output.sequences_scores[:: len(rows) // 2]
    assert (best > FILLER).all(), "a prompt without an item"
    return len(real)


def check_text(seed: int) -> int:
    """Free text with items inside, by ``generate`` and by ``generate_with_items``."""
    case = Case(seed)
    options: dict[str, Any] = {
        "attention_mask": torch.ones_like(case.prompts),
        "max_new_tokens": 12,
        "do_sample": bool(case.random.integers(2)),
        "renormalize_logits": bool(case.random.integers(2)),
        "eos_token_id": TURN_END,
        "pad_token_id": PAD,
    }
    model = spoiled_model(case)
    case.prompts[:, -1] = BEGIN
    processor = TrieLogitsProcessor(case.trie, begin_token_id=BEGIN, eos_token_id=TURN_END)
    torch.manual_seed(seed)
    texts = []
    with suppress(RuntimeError):  # torch's own, where free text is sampled from NaN
        output = refused(lambda: model.generate(case.prompts, logits_processor=[processor], **options))
        texts += [] if output is None else output[:, 2:].tolist()
    with suppress(RuntimeError):
        output = refused(
            lambda: generate_with_items(model, case.prompts, trie=case.trie, begin_token_id=BEGIN, **options)
        )
        texts += [] if output is None else output.sequences[:, 2:].tolist()
    found = 0
    for text in texts:
        while BEGIN in text:
            text = text[text.index(BEGIN) + 1 :]
            item = tuple(text[: text.index(END) + 1]) if END in text else tuple(text)
            if BEGIN not in item and TURN_END not in item and END in item:
                assert item in case.items
                found += 1
    return found


def spoiled_model(case: Case) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    model.lm_head.weight = torch.nn.Parameter(case.spoiled(model.lm_head.weight.detach()))
    return model


def check_found(case: Case, sequences: Sequence[Sequence[int]], scores: Any) -> int:
    """Distinct items of the catalog, with scores that are numbers."""
    found = [tuple(sequence) for sequence in sequences]
    assert set(found) <= case.items
    assert len(set(found)) == len(found)
    assert not np.isnan(np.asarray(scores)).any()
    return len(found)


def check_searches(seed: int) -> int:
    """Our own searches, with a model and without one."""
    case = Case(seed)
    scope = str(case.random.choice(["trie", "vocab"]))
    width, count = case.num_beams, 0
    steppers: list[Any] = [BeamStepper(case.trie, beam_width=width, scope=scope, length_penalty=0.0)]
    stepper = steppers[0]
    stepper.add_request(0)

    def stepped() -> Any:
        while len(rows := stepper.rows()):
            total = int(rows.logit_counts.sum())
            stepper.step(case.table[case.random.integers(0, len(case.table), total)])
        return stepper.pop_result(0)

    def on_device() -> Any:
        search = DeviceBeamStepper(case.trie, num_prompts=1, beam_width=width, device="cpu", scope=scope)
        for _ in range(search.max_length):
            search.step(case.table[case.random.integers(0, len(case.table), width)])
        return search.result()[0]

    for call in (stepped, on_device):
        result = refused(call)
        if result is not None:
            count += check_found(case, result.sequences, result.scores)
    return count


def check_model_searches(seed: int) -> int:
    case = Case(seed)
    model, scope, count = spoiled_model(case), str(case.random.choice(["trie", "vocab"])), 0
    calls: list[Callable[[], Any]] = [
        lambda: beam_search(model, case.prompts, case.trie, beam_width=case.num_beams, scope=scope),
        lambda: best_first_search(model, case.prompts, case.trie, num_results=case.num_beams, scope=scope),
        lambda: sample_items(model, case.prompts, case.trie, num_samples=case.num_beams, seed=seed),
    ]
    for call in calls:
        result = refused(call)
        if result is not None:
            scores = getattr(result, "sequences_scores", None) or result.log_probs
            for sequences, own in zip(result.sequences, scores, strict=True):
                count += check_found(case, sequences, own)
    return count


CHECKS = {
    "generate": check_generate,
    "text": check_text,
    "searches": check_searches,
    "model searches": check_model_searches,
}


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_outside_the_catalog(name: str) -> None:
    assert sum(CHECKS[name](seed) for seed in range(CASES)) > CASES // 4


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_nothing_outside_the_catalog_in_many_cases(name: str) -> None:
    assert sum(CHECKS[name](seed) for seed in range(1000, 1000 + 25 * CASES)) > CASES


def main() -> None:
    """Random cases until so many items have been checked: ``python tests/generation/test_adversarial_logits.py``."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--items", type=int, default=1_000_000, help="items to check (1,000,000)")
    parser.add_argument("--seed", type=int, default=1_000_000, help="of the first case; each has the next one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = dict.fromkeys(CHECKS, 0)
    with tqdm(total=options.items, unit="item") as progress:
        for seed in itertools.count(options.seed):
            for name, check in CHECKS.items():
                try:
                    found = check(seed)
                except BaseException:
                    print(f"case {seed} of {name!r}")
                    raise
                counts[name] += found
                progress.update(found)
            if sum(counts.values()) >= options.items:
                break
    cases = seed + 1 - options.seed
    print(f"{cases} cases each, {sum(counts.values())} items, none outside the catalog: {counts}")


if __name__ == "__main__":
    main()
