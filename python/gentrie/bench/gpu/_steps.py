"""One step of a beam search as benchmarks call it, and the same from whole rows of scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gentrie.device import DeviceTrie
from gentrie.kernels.beam_step import beam_step


@dataclass(frozen=True)
class Step:
    """What goes into a step.

    Attributes
    ----------
    resident
        The catalog on the device.
    logits
        [prompts * num_beams, V].
    states, scores
        int64 and float32 [prompts * num_beams].
    num_beams
        Beams of a prompt, before and after.
    over_vocab
        Softmax over whole rows; otherwise over the valid tokens.
    """

    resident: DeviceTrie
    logits: torch.Tensor
    states: torch.Tensor
    scores: torch.Tensor
    num_beams: int
    over_vocab: bool

    @classmethod
    def random(
        cls, resident: DeviceTrie, states: list[int], num_beams: int, *, over_vocab: bool, dtype: torch.dtype
    ) -> Step:
        """A step from these states with random scores; beams of a prompt side by side."""
        generator = torch.Generator().manual_seed(0)
        logits = 3 * torch.randn(len(states), resident.trie.vocab_size, generator=generator)
        scores = -3 * torch.rand(len(states), generator=generator)
        device = resident.device
        return cls(
            resident,
            logits.to(device, dtype),
            torch.tensor(states, device=device),
            scores.to(device),
            num_beams,
            over_vocab,
        )

    def run(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores, parents, tokens and next states [prompts, num_beams]; no wait for the device."""
        found: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor] = beam_step(
            self.logits,
            self.states,
            self.scores,
            self.num_beams,
            self.num_beams,
            self.over_vocab,
            None,
            False,
            self.resident.trie.max_branching,
            self.resident.descriptors,
            None,
            None,
            None,
        )
        return found

    def best_scores(self) -> torch.Tensor:
        """float32 [prompts, num_beams] on the CPU: the same scores, from every valid token of every beam in float64."""
        trie, logits = self.resident.trie, self.logits.double().cpu()
        candidates = torch.full_like(logits, -torch.inf)
        for row, state in enumerate(self.states.tolist()):
            tokens = torch.from_numpy(trie.next_tokens(state)).long()
            whole = logits[row] if self.over_vocab else logits[row, tokens]
            candidates[row, tokens] = self.scores[row].double().cpu() + logits[row, tokens] - whole.logsumexp(0)
        best = candidates.view(-1, self.num_beams * logits.shape[1]).topk(self.num_beams).values
        return best.float()

    def check(self) -> None:
        """Raises AssertionError where :meth:`run` is wrong: its scores, and where its tokens lead."""
        scores, parents, tokens, after = (found.cpu() for found in self.run())
        torch.testing.assert_close(scores, self.best_scores(), rtol=1e-5, atol=1e-5)
        there = scores > -torch.inf
        rows = parents + self.num_beams * torch.arange(len(scores))[:, None]
        before = self.states.cpu()[rows[there]]
        expected = self.resident.trie.advance_batch(before.numpy(), tokens[there].numpy())
        torch.testing.assert_close(after[there], torch.from_numpy(expected))
