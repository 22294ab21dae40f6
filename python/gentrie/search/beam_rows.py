"""What a beam search over a catalog asks of a model, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BeamRows:
    """What the model has to be asked next, N rows.

    Attributes
    ----------
    handles
        int64 [N], names of the rows, by which later rows refer to them; never used twice.
    requests
        int64 [N], the request of each.
    parents
        int64 [N], handle of the row it continues; -1: the request's prompt.
    states
        int64 [N], state of the trie where the row's next token is chosen, forced tokens fed with it left out.
    tokens, indptr
        int64 [T] and [N + 1]: row i feeds ``tokens[indptr[i]:indptr[i + 1]]`` behind its parent; none stands for the
        prompt's end itself.
    logit_counts
        int64 [N], how many rows of logits :meth:`BeamStepper.step` wants of each: those behind its last tokens. 1 under
        ``scope="trie"``; under ``"vocab"`` one behind each token, or 1 at the prompt's end.
    """

    handles: Int64Array
    requests: Int64Array
    parents: Int64Array
    states: Int64Array
    tokens: Int64Array
    indptr: Int64Array
    logit_counts: Int64Array

    def __len__(self) -> int:
        return len(self.handles)


@dataclass(frozen=True)
class BeamStep:
    """What became of the rows: the live beams of every request that was stepped.

    Attributes
    ----------
    requests, parents, tokens, states
        int64 [N], for each live beam its request, the handle of the row it continues (-1: the prompt), the token chosen
        there (-1: none, the beam is where that row ends) and its state.
    forced
        For each, the tokens that follow the chosen one without a choice so far.
    finished
        Requests that are done; :meth:`BeamStepper.pop_result` gives what they found.
    """

    requests: Int64Array
    parents: Int64Array
    tokens: Int64Array
    states: Int64Array
    forced: list[tuple[int, ...]]
    finished: list[int]


@dataclass(frozen=True)
class BeamItems:
    """The complete sequences that one request found, best first.

    Attributes
    ----------
    sequences
        Token ids of each.
    scores
        float64 [found]: log-probability over ``length ** length_penalty``.
    token_scores
        For each float64 [tokens], log-probabilities.
    item_ids
        For each int64 [n], the allowed items that share the sequence.
    num_forced
        Tokens of them all that were the only choice.
    """

    sequences: list[list[int]]
    scores: Float64Array
    token_scores: list[Float64Array]
    item_ids: list[Int64Array]
    num_forced: int
