"""A small Llama-shaped model that learns what people buy next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gentrie._optional import require

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

    from gentrie.trie import TokenTrie

# Sizes and rates at which copying from the history is learnt within half a minute on one core.
_HIDDEN, _LAYERS, _HEADS = 128, 2, 4
_INITIAL_SCALE = 0.04
_BATCH = 8
_LEARNING_RATE = 5e-3
_WARM_UP_SHARE = 0.1
_IGNORED = -100

# BEAR with its authors' weights. Probabilities are over the whole vocabulary, so that the model also learns to write
# titles by itself, and what it writes free is a fair thing to compare with.
_LOSS = {"scope": "vocab", "reg_weight": 0.25, "reg_temperature": 2.75}


def build(vocab_size: int, pad_id: int, bos_id: int, eos_id: int) -> LlamaForCausalLM:
    """Return a Llama of about half a million parameters with random weights."""
    transformers = require("transformers", extra="demo")
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=_HIDDEN,
        intermediate_size=3 * _HIDDEN,
        num_hidden_layers=_LAYERS,
        num_attention_heads=_HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=_INITIAL_SCALE,
        pad_token_id=pad_id,
        bos_token_id=bos_id,
        eos_token_id=eos_id,
    )
    model: LlamaForCausalLM = transformers.LlamaForCausalLM(config)
    return model


def train(
    model: LlamaForCausalLM,
    sequences: Sequence[Sequence[int]],
    trie: TokenTrie,
    *,
    epochs: int,
    begin_id: int,
    pad_id: int,
    seed: int,
    on_step: Callable[[int, int], None],
) -> float:
    """Train on token sequences with BEAR inside items and plain cross entropy around them.

    Parameters
    ----------
    model
        Trained in place.
    sequences
        Token ids, one sequence for each user.
    trie
        The catalog whose items the sequences hold.
    epochs
        How many times each sequence is seen.
    begin_id
        Token that opens an item.
    pad_id
        Token that fills shorter sequences; it is in no loss.
    seed
        Seed of the order of the sequences.
    on_step
        Called after each step with its number, from 1, and the number of all steps.

    Returns
    -------
    float
        Mean loss over the steps of the last epoch, of a token.
    """
    torch = require("torch", extra="demo")
    loss_of = require("gentrie.training", extra="demo").TrieLoss(trie, begin_token_id=begin_id, **_LOSS)
    order = np.random.RandomState(seed)
    steps = epochs * -(-len(sequences) // _BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=_LEARNING_RATE, total_steps=steps, pct_start=_WARM_UP_SHARE
    )
    model.train()
    done = 0
    for _ in range(epochs):
        losses = []
        for chosen in np.array_split(order.permutation(len(sequences)), steps // epochs):
            inputs = _batch([sequences[i] for i in chosen], pad_id)
            labels = inputs.pop("labels")
            loss = loss_of(model(**inputs), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            losses.append(float(loss.detach()))
            done += 1
            on_step(done, steps)
    model.train(False)
    return float(np.mean(losses))


def _batch(sequences: Sequence[Sequence[int]], pad_id: int) -> dict[str, Any]:
    torch = require("torch", extra="demo")
    width = max(map(len, sequences))
    ids: npt.NDArray[np.int64] = np.full((len(sequences), width), pad_id, dtype=np.int64)
    used = np.zeros((len(sequences), width), dtype=bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
        used[row, : len(sequence)] = True
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(used.astype(np.int64)),
        "labels": torch.from_numpy(np.where(used, ids, _IGNORED)),
    }
