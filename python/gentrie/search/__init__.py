"""Beam search over a catalog for any engine that can score tokens; loads neither torch nor transformers."""

from gentrie.search.beam_rows import BeamItems, BeamRows, BeamStep
from gentrie.search.beam_stepper import BeamStepper

__all__ = ["BeamItems", "BeamRows", "BeamStep", "BeamStepper"]
