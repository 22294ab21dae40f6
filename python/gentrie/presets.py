"""How published recommenders write their items and search for them, as their authors' code does.

A preset says two things: how titles become token sequences, ``TokenTrie.from_titles(titles, tokenizer,
end_token_id=tokenizer.eos_token_id, **preset.titles)``, and how items are searched for,
``model.generate(..., **preset.search)`` with this library's ``TrieLogitsProcessor`` or ``trie_beam_search``, or
``beam_search(model, ids, trie, **preset.beam_search)``. ``search`` holds settings of ``transformers`` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Preset", "bear", "d3", "minionerec", "msl", "reclm_cgen"]

_RESPONSE = "### Response:\n"


@dataclass(frozen=True)
class Preset:
    """One paper's settings.

    Attributes
    ----------
    template
        What the model writes for a title, ``{title}`` replaced; the end token comes on top.
    context
        The end of the prompt, behind which titles are encoded; empty: they are encoded by themselves.
    scope
        ``"vocab"``: log-probabilities over the whole vocabulary, masked afterwards; ``"trie"``: over the valid tokens.
    length_penalty
        Scores are divided by ``length ** length_penalty``.
    early_stopping
        As in ``transformers``.
    num_beams
        Beams, and items returned; 1 for greedy text with items inside.
    """

    template: str
    context: str
    scope: Literal["trie", "vocab"]
    length_penalty: float
    early_stopping: bool
    num_beams: int

    @property
    def titles(self) -> dict[str, str]:
        """Arguments of ``TokenTrie.from_titles``."""
        return {"template": self.template, "context": self.context}

    @property
    def search(self) -> dict[str, Any]:
        """Arguments of ``generate``; ``renormalize_logits`` is what ``scope`` is called there."""
        settings: dict[str, Any] = {"do_sample": False, "renormalize_logits": self.scope == "trie"}
        if self.num_beams > 1:
            settings |= {
                "num_beams": self.num_beams,
                "num_return_sequences": self.num_beams,
                "length_penalty": self.length_penalty,
                "early_stopping": self.early_stopping,
            }
        return settings

    @property
    def beam_search(self) -> dict[str, Any]:
        """Arguments of ``gentrie.generation.beam_search`` and ``BeamStepper``."""
        return {
            "beam_width": self.num_beams,
            "scope": self.scope,
            "length_penalty": self.length_penalty,
            "early_stopping": self.early_stopping,
        }


msl = Preset('"{title}"', _RESPONSE, "vocab", length_penalty=1.0, early_stopping=False, num_beams=10)
"""MSL, as ``inference.py`` of github.com/WANGBohaO-jpg/MSL: quoted titles; ``generate`` with its defaults and
``prefix_allowed_tokens_fn``, ten beams."""

bear = Preset('"{title}"', _RESPONSE, "trie", length_penalty=1.0, early_stopping=False, num_beams=10)
"""BEAR (SIGIR 2026), as ``cmd/run.py`` of github.com/Tiny-Snow/BEAR-SIGIR-2026 runs ``inference.py``: titles and search
of MSL, whose loss it replaces, but with ``--constrained_before_softmax``, a softmax over the valid tokens."""

d3 = Preset('"{title}"\n', "### Response: \n", "vocab", length_penalty=0.0, early_stopping=False, num_beams=10)
"""D3 (EMNLP 2024), as ``evaluate2.sh`` of github.com/SAI990323/DecodingMatters runs ``code/evaluate.py``: quoted titles
and a line break behind a prompt whose colon is followed by a space, no length normalisation. ``item_scores`` and
``alpha`` of the search are the user's: there the softmax of a recommender's logits, and ``guidance_scale``, 1 unless
set."""

minionerec = Preset("{title}\n", _RESPONSE, "vocab", length_penalty=0.0, early_stopping=False, num_beams=50)
"""MiniOneRec, as ``evaluate.sh`` of github.com/AkaliKong/MiniOneRec runs ``evaluate.py``: semantic ids, written as text
in the place of the title, and a line break; fifty beams, no length normalisation."""

reclm_cgen = Preset("{title}", "", "vocab", length_penalty=1.0, early_stopping=False, num_beams=1)
"""RecLM-cgen, as ``RecLM-cgen/task_test.py`` of github.com/microsoft/RecAI: titles, encoded by themselves
(``train_utils/dataset.py``), between ``<SOI>`` and ``<EOI>`` in text; the trie's ``end_token_id`` is ``<EOI>``'s, the
``begin_token_id`` of processor or ``generate_with_items`` is ``<SOI>``'s, and ``unique="item"`` of either counts as
``train_utils/processor.py`` does. The text is greedy here; there, it is sampled where a model's ``generation_config``
says so."""
