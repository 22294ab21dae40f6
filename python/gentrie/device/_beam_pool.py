"""Beams that live on and items that are finished, where sequences end at different depths; all of it on a device."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from gentrie.kernels._lookups import _REMAINING_SHIFT


class LiveBeams(NamedTuple):
    """The beams of each prompt after a step, [prompts, beam_width]: scores float32, the others int64.

    ``ranks`` says which of the step's continuations each is. Where there is no beam, -inf and -1.
    """

    scores: torch.Tensor
    states: torch.Tensor
    tokens: torch.Tensor
    parents: torch.Tensor
    ranks: torch.Tensor


class BeamPool:
    """The ``beam_width`` best items that each prompt has finished.

    As in ``transformers`` a step keeps the best ``2 * beam_width`` continuations of a prompt, of which the first
    ``beam_width`` may finish and the best that do not finish live on, until nothing better can come.

    Parameters
    ----------
    num_prompts, beam_width, max_length, length_penalty, early_stopping, device
        As for :class:`gentrie.device.DeviceBeamStepper`.

    Attributes
    ----------
    columns
        Continuations that a step keeps.
    scores
        float32 [prompts, beam_width] on the device: log-probability over ``length ** length_penalty``, best first,
        then -inf.
    places
        int64 [prompts, beam_width] on the device: ``depth * columns + rank`` of the continuation that each is.
    """

    def __init__(
        self,
        num_prompts: int,
        beam_width: int,
        max_length: int,
        length_penalty: float,
        early_stopping: bool | Literal["never"],
        device: torch.device,
    ) -> None:
        self.columns = 2 * beam_width
        self._width, self._max_length, self._stops_when_full = beam_width, max_length, early_stopping is True
        self._norms = torch.arange(1, max_length + 2, dtype=torch.float64).pow(length_penalty).float().to(device)
        self._from_longest = early_stopping == "never" and length_penalty > 0
        self._order = torch.arange(self.columns, 0, -1, device=device)
        self.scores = torch.empty(num_prompts, beam_width, device=device)
        self.places = torch.empty(num_prompts, beam_width, dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Begin again."""
        self.scores.fill_(-torch.inf)
        self.places.fill_(-1)

    def take(
        self,
        depth: torch.Tensor,
        scores: torch.Tensor,
        states: torch.Tensor,
        tokens: torch.Tensor,
        parents: torch.Tensor,
        num_nodes: torch.Tensor,
    ) -> LiveBeams:
        """Keep what a step's continuations [prompts, columns] complete; the beams that live on.

        ``depth`` int64 [1] counts the steps before this one, ``num_nodes`` int64 [prompts or 1, 1] the nodes of each
        trie. States without a rest of a run are their target's number, and leaves come behind all nodes.
        """
        is_found = scores != -torch.inf
        is_complete = is_found & (states >= num_nodes) & (states < 1 << _REMAINING_SHIFT)
        norm = self._norms.index_select(0, depth)
        self._finish(depth, torch.where(is_complete, scores / norm, -torch.inf)[:, : self._width])
        order, ranks = torch.where(is_found & ~is_complete, self._order, 0).topk(self._width)
        is_live = order > 0
        best = torch.where(is_live[:, 0], scores.gather(1, ranks[:, :1])[:, 0], -torch.inf)
        is_live = is_live & ~self._is_over(depth, best, norm)[:, None]

        def live(values: torch.Tensor, none: float) -> torch.Tensor:
            return torch.where(is_live, values.gather(1, ranks), none)

        return LiveBeams(
            live(scores, -torch.inf),
            live(states, -1),
            live(tokens, -1),
            live(parents, -1),
            torch.where(is_live, ranks, -1),
        )

    def on_host(self) -> list[list[tuple[int, int]]]:
        """Depth and rank of what each prompt has finished, best first. Waits for the device."""
        places, is_found = self.places.cpu(), (self.scores != -torch.inf).cpu()
        return [
            [divmod(place, self.columns) for place in row[found].tolist()]
            for row, found in zip(places, is_found, strict=True)
        ]

    def _finish(self, depth: torch.Tensor, scores: torch.Tensor) -> None:
        places = (depth * self.columns + torch.arange(self._width, device=depth.device)).expand_as(scores)
        best, order = torch.cat([self.scores, scores], 1).sort(dim=1, descending=True, stable=True)
        self.scores.copy_(best[:, : self._width])
        self.places.copy_(torch.cat([self.places, places], 1).gather(1, order[:, : self._width]))

    def _is_over(self, depth: torch.Tensor, best: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """bool [prompts], whether nothing can come of a prompt's beams, ``best`` of which scores [prompts]:
        ``_check_early_stop_heuristic`` of ``transformers``."""
        worst = self.scores[:, -1]
        is_full = worst != -torch.inf
        if self._from_longest:
            norm = self._norms[self._max_length - 1]
        is_over = is_full if self._stops_when_full else is_full & ~(best / norm > worst)
        return is_over | (depth + 1 >= self._max_length)
