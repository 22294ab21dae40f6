"""A prefix of the catalog in a beam search, and the rules it is grown by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gentrie import _core, _validate
from gentrie.trie import TokenTrie

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

PROMPT = -1
MAX_BEAM_WIDTH = 512
_MAX_LENGTH_PENALTY = 32  # of the longest sequence that a trie takes its power is a float64


@dataclass(frozen=True)
class BeamRules:
    """How a request searches; the names are those of :meth:`BeamStepper.add_request`."""

    beam_width: int
    scope: Literal["trie", "vocab"]
    length_penalty: float
    early_stopping: bool | Literal["never"]
    max_length: int
    num_beam_groups: int
    diversity_penalty: float

    @property
    def group_width(self) -> int:
        """Live beams of one group."""
        return self.beam_width // self.num_beam_groups


def make_rules(
    *,
    beam_width: int,
    scope: str,
    length_penalty: float,
    early_stopping: Any,
    max_length: int,
    num_beam_groups: int,
    diversity_penalty: float,
) -> BeamRules:
    """The rules, checked: ValueError or TypeError by name."""
    if early_stopping not in (True, False, "never"):
        raise ValueError(f'early_stopping={early_stopping!r}, expected True, False or "never"')
    width = _validate.integer("beam_width", beam_width, 1, MAX_BEAM_WIDTH)
    groups = _validate.integer("num_beam_groups", num_beam_groups, 1, width)
    if width % groups:
        raise ValueError(f"num_beam_groups={groups} does not divide beam_width={width}")
    penalty = _finite("diversity_penalty", diversity_penalty)
    if penalty < 0:
        raise ValueError(f"diversity_penalty={penalty} is negative")
    return BeamRules(
        width,
        _validate.choice("scope", scope, ("trie", "vocab")),
        _length_penalty(length_penalty),
        early_stopping,
        _validate.integer("max_length", max_length, 1, 2**31 - 1),
        groups,
        penalty,
    )


def _length_penalty(value: Any) -> float:
    penalty = _finite("length_penalty", value)
    if abs(penalty) > _MAX_LENGTH_PENALTY:
        raise ValueError(
            f"length_penalty={penalty} is outside [-{_MAX_LENGTH_PENALTY}, {_MAX_LENGTH_PENALTY}]: scores divided by "
            "length ** length_penalty would not be numbers"
        )
    return penalty


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{name}={value!r} is not a finite number")
    return float(value)


class Beam:
    """A prefix of the catalog, linked to the one it grew from.

    Parameters
    ----------
    parent, token, token_score
        The beam one token before, and that token.
    state
        Of the trie.
    first_leaf
        Number of the first sequence below it, in lexicographic order; kept up where items have scores of their own.
    matcher
        The same place under a filter; None without one.
    children
        Tokens allowed next, none behind a complete sequence.
    """

    __slots__ = (
        "children",
        "first_leaf",
        "handle",
        "known",
        "matcher",
        "parent",
        "pending",
        "score",
        "state",
        "token",
        "token_score",
    )

    def __init__(
        self,
        parent: Beam | None,
        token: int,
        token_score: float,
        state: int,
        first_leaf: int,
        matcher: _core.Matcher | None,
        children: Int64Array,
    ) -> None:
        self.parent = parent
        self.token = token
        self.token_score = token_score
        self.score: float = token_score if parent is None else parent.score + token_score
        self.state = state
        self.first_leaf = first_leaf
        self.matcher = matcher
        self.children = children
        self.handle: int = PROMPT if parent is None else parent.handle
        """The row whose engine state this beam continues."""
        self.pending: list[int] = [] if parent is None else [*parent.pending, token]
        """Tokens behind that row that the model has not read."""
        self.known: list[Float64Array] = []
        """Log-probabilities of the children here, and then of the only child at each following place of a run that was
        read."""
        if parent is not None and len(parent.known) > 1:  # inside a run that has been read
            self.known, self.pending = parent.known[1:], []

    def path(self) -> tuple[list[int], list[float], int]:
        """Tokens, their scores, and how many of them were the only choice."""
        tokens, scores, forced = [], [], 0
        beam = self
        while beam.parent is not None:
            tokens.append(beam.token)
            scores.append(beam.token_score)
            forced += len(beam.parent.children) == 1
            beam = beam.parent
        return tokens[::-1], scores[::-1], forced


def allowed_tokens(trie: TokenTrie, matcher: _core.Matcher) -> Int64Array:
    """Tokens that trie and filter allow where a matcher stands, ascending."""
    verdict, tokens = matcher.allowed_tokens()
    if verdict == _core.Verdict.EMPTIED or trie.is_leaf(matcher.state):
        return np.empty(0, dtype=np.int64)
    return np.sort(tokens).astype(np.int64)
