"""Scripted answers: ten catalog items in numbered lines, with the token counts of RecLM-cgen's Table A2.

A random model says nothing worth timing, so every method is led through the same answer: a processor
ahead of it raises the scripted token above all others. Inside items it raises a token that is in no
title still higher, so that the answer comes out as scripted only if a method keeps every token that is
allowed and removes one that is not. Counts and contents are therefore the same for all methods, and a
wrong mask is found out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

OUTER_TOKENS = 59
"""Tokens of an answer outside its ten items (7,552 over 128 answers in the paper)."""

_LEAD = 4
"""Outer tokens before the begin token of an item (its number, a full stop, ...); one more ends a line."""

_TARGET_BIAS = 1e4
_DECOY_BIAS = 2e4


@dataclass(frozen=True)
class ControlTokens:
    """Token ids that are in no title."""

    begin: int
    end: int
    eos: int
    decoy: int

    @classmethod
    def unused(cls, vocabulary: np.ndarray, vocab_size: int) -> ControlTokens:
        """Take the largest ids below ``vocab_size`` that are not in ``vocabulary`` (ids used by titles).

        Raises
        ------
        ValueError
            Fewer than four are left.
        """
        free = np.setdiff1d(np.arange(vocab_size), vocabulary)[::-1][:4]
        if len(free) < 4:
            raise ValueError(f"vocab_size: {vocab_size} leaves {len(free)} ids that are in no title, 4 are needed")
        begin, end, eos, decoy = (int(token) for token in free)
        return cls(begin, end, eos, decoy)


@dataclass(frozen=True)
class Answer:
    """One scripted answer.

    Attributes
    ----------
    prompt
        int64 [prompt tokens]; a finished turn and the header of the next.
    tokens
        int64 [answer tokens].
    item
        int64 [answer tokens]; which item a token belongs to, its end token included, or -1.
    """

    prompt: np.ndarray
    tokens: np.ndarray
    item: np.ndarray

    @property
    def inside(self) -> np.ndarray:
        """bool [answer tokens]: chosen inside an item."""
        return np.asarray(self.item >= 0)

    def unconstrained(self, control: ControlTokens) -> np.ndarray:
        """int64 [answer tokens]: what comes out where nothing removes the decoy."""
        return np.where(self.inside, control.decoy, self.tokens)


def write_answers(
    titles: Sequence[Sequence[int]], control: ControlTokens, *, answers: int, prompt_tokens: int, seed: int
) -> list[Answer]:
    """Draw ten distinct titles for each answer and set them in a numbered list.

    Parameters
    ----------
    titles
        Token ids of each title, without the end token.
    control
        Ids of the control tokens.
    answers
        Answers to write.
    prompt_tokens
        Length of each prompt. It names the begin and end token once, as RecLM-cgen's do,
        and closes its turn before the answer.
    seed
        Seed of the draws.
    """
    draw = np.random.default_rng(seed)
    distinct = list(dict.fromkeys(tuple(title) for title in titles))
    ordinary = np.unique(np.concatenate([np.asarray(title) for title in distinct[:1000]]))
    written = []
    for _ in range(answers):
        prompt = draw.choice(ordinary, prompt_tokens)
        prompt[[prompt_tokens // 2, prompt_tokens // 2 + 2]] = control.begin, control.end
        prompt[-_LEAD] = control.eos
        tokens: list[int] = []
        item: list[int] = []
        for number, row in enumerate(draw.choice(len(distinct), 10, replace=False)):
            outer = draw.choice(ordinary, _LEAD + (number > 0)).tolist()
            title = distinct[row]
            tokens += [*outer, control.begin, *title, control.end]
            item += [-1] * (len(outer) + 1) + [number] * (len(title) + 1)
        written.append(Answer(prompt.astype(np.int64), np.array(tokens), np.array(item)))
    return written


class ScriptProcessor:
    """Logits processor that raises the scripted token of each step, and the decoy inside items.

    Reads nothing from the device, so that it adds no wait to a step on a GPU: which token is due follows from the
    length of the history.

    Parameters
    ----------
    answer
        What is to be said.
    control
        Ids of the control tokens.
    device
        Where the scores are.
    """

    def __init__(self, answer: Answer, control: ControlTokens, device: torch.device | str = "cpu") -> None:
        both = np.stack([answer.tokens, answer.unconstrained(control)], axis=1)
        self._tokens = torch.from_numpy(both).to(device)
        self._biases = torch.tensor([[_TARGET_BIAS, _DECOY_BIAS]], device=device)
        self._prompt_length = len(answer.prompt)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Raise ``scores`` (float32 [1, vocabulary]) in place and return them."""
        step = input_ids.shape[1] - self._prompt_length
        tokens = self._tokens[step : step + 1]
        return scores.scatter_(1, tokens, self._biases)
