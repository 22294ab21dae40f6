"""RecLM-cgen's Table A2 (arXiv 2505.03336): what it costs to keep the items of an answer in a catalog.

Protocol of the paper: batch 1, greedy, 128 answers of ten items each, 5 answers to warm up, the time to the
first token left out, the mean of 5 repetitions. Each answer is given by every method in turn, so that all of
them see the same machine; the text is scripted (``gentrie.bench.responses``), so that they also say the same
tokens, as many outside items as the paper counts and as many inside as the catalog's titles have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gentrie.bench.harness import Spread

if TYPE_CHECKING:
    from gentrie.bench.beams import BeamFigures

UNCONSTRAINED = "unconstrained"
PUBLISHED = "published approach"
TRANSFORMERS = "transformers prefix"
GENTRIE = "gentrie"
SKIPPING = "gentrie, forced runs skipped"
METHODS = (UNCONSTRAINED, PUBLISHED, TRANSFORMERS, GENTRIE, SKIPPING)
"""In the order of the table. The published approach and both of gentrie's give no item twice in an answer."""


@dataclass(frozen=True)
class PaperRow:
    """One row of the published table: an A100 with 40 GB, Llama-3-8B, ``transformers``."""

    items: int
    tokens_per_item: float
    tokens_inside: int
    tokens_outside: int
    tokens_per_second: float
    tokens_per_second_unconstrained: float
    lookup_ms_inside: float
    lookup_ms_outside: float


PAPER = {
    "steam": PaperRow(11_726, 6.0, 7_726, 7_552, 35.04, 36.70, 1.0725, 0.3234),
    "movies": PaperRow(34_452, 10.1, 12_970, 7_552, 34.53, 36.38, 1.4535, 0.3221),
    "toys": PaperRow(49_985, 16.3, 20_838, 7_552, 34.09, 36.95, 1.9922, 0.3237),
}


@dataclass(frozen=True)
class Settings:
    """What is run; the defaults are the paper's protocol on a small model.

    Attributes
    ----------
    catalogs
        Names of the synthetic catalogs, of ``PAPER``.
    real
        JSON lines of a real catalog (``item_id``, ``title``) to run beside them.
    model
        Name of a model of ``gentrie.bench.models.MODELS``; its weights are random.
    device
        torch device of model and logits.
    answers
        Answers timed per repetition.
    repetitions
        Times that all answers are given.
    warmup
        Answers given before, untimed.
    prompt_tokens
        Length of each prompt.
    beams
        Beams of the beam searches that are timed besides; 0 for none.
    threads
        Threads of torch's operators on the CPU.
    seed
        Seed of weights, prompts and answers.
    """

    catalogs: tuple[str, ...] = tuple(PAPER)
    real: Path | None = None
    model: str = "small"
    device: str = "cpu"
    answers: int = 128
    repetitions: int = 5
    warmup: int = 5
    prompt_tokens: int = 300
    beams: int = 10
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("answers", "repetitions", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "beams"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.prompt_tokens < 16:
            raise ValueError(f"prompt_tokens must be at least 16, got {self.prompt_tokens}")
        for catalog in self.catalogs:
            if catalog not in PAPER:
                raise ValueError(f"catalogs: {catalog!r} is not one of {', '.join(PAPER)}")

    def quick(self) -> Settings:
        """Return the same with few answers: two minutes on two cores."""
        return replace(self, answers=1, repetitions=3, warmup=1)

    def cuts(self) -> list[str]:
        """Say where these settings run less than the paper's protocol."""
        protocol = Settings()
        return [
            f"{name}: {getattr(self, name)} instead of {getattr(protocol, name)}"
            for name in ("answers", "repetitions", "warmup")
            if getattr(self, name) < getattr(protocol, name)
        ]


@dataclass(frozen=True)
class MethodFigures:
    """What a method came to; one round for each repetition.

    Attributes
    ----------
    tokens_per_second
        From the first token of an answer to its last.
    speedup
        Over the unconstrained speed of the same repetition, times; below 1 where constraint costs speed.
    lookup_ms_inside
        Finding the allowed tokens of a step inside an item, milliseconds.
    lookup_ms_outside
        The same outside items.
    lookup_ms_first_item
        The same inside the first item of an answer.
    lookup_ms_last_item
        The same inside the last.
    call_ms_inside
        The whole processor inside items, masking included.
    call_ms_outside
        The same outside items.
    call_share
        The processor's share of the time from the first token to the last. Taken within the same steps, it is
        steadier than the speed-up, which compares runs.
    """

    tokens_per_second: Spread
    speedup: Spread
    lookup_ms_inside: Spread | None = None
    lookup_ms_outside: Spread | None = None
    lookup_ms_first_item: Spread | None = None
    lookup_ms_last_item: Spread | None = None
    call_ms_inside: Spread | None = None
    call_ms_outside: Spread | None = None
    call_share: Spread | None = None


@dataclass(frozen=True)
class CatalogFigures:
    """One catalog's rows.

    Attributes
    ----------
    items
        Items of the catalog.
    tokens_per_item
        Their mean length in tokens, end token included.
    tokens_inside
        Tokens inside items over all answers of a repetition.
    tokens_outside
        The others.
    tokens_branching
        Tokens inside items with more than one valid choice; the others are forced.
    methods
        Figures by method.
    beam_search
        Beam searches for items as the whole response, by scope.
    """

    items: int
    tokens_per_item: float
    tokens_inside: int
    tokens_outside: int
    tokens_branching: int
    methods: Mapping[str, MethodFigures]
    beam_search: Mapping[str, BeamFigures] = field(default_factory=dict)

    @property
    def bound(self) -> float:
        """How many times as fast as without constraint an answer can be where forced tokens cost nothing."""
        return (self.tokens_inside + self.tokens_outside) / (self.tokens_outside + self.tokens_branching)

    @property
    def share_of_bound(self) -> Spread:
        """Speed-up with forced runs skipped, as a share of the bound."""
        return Spread.of([times / self.bound for times in self.methods[SKIPPING].speedup.rounds])


@dataclass(frozen=True)
class Result:
    """A run of the benchmark, as it is written to JSON."""

    settings: Settings
    circumstances: Mapping[str, Any]
    catalogs: Mapping[str, CatalogFigures]
