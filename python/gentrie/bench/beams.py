"""Beam search over a catalog against ``generate`` with a processor: times, calls, rows and padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from gentrie.bench.harness import Spread, compare
from gentrie.generation import TrieLogitsProcessor
from gentrie.generation.beam_results import BeamSearchResult
from gentrie.generation.beam_search import beam_search
from gentrie.trie import TokenTrie

Scope = Literal["trie", "vocab"]
SCOPES: tuple[Scope, ...] = ("trie", "vocab")


@dataclass(frozen=True)
class BeamFigures:
    """Two searches for the same prompts over one catalog, in one scope.

    Attributes
    ----------
    prompts, beams
        How many.
    generate_seconds, seconds
        ``generate`` with :class:`TrieLogitsProcessor`, and :func:`beam_search`; one round for each repetition.
    speedup
        The first over the second of the same round.
    generate_calls, calls
        Calls of the model.
    generate_rows, rows
        Rows of scores that were computed, over the vocabulary or the catalog's tokens.
    tokens_computed
        Tokens that :func:`beam_search` fed behind the prompts.
    padded_slots
        Places in its inputs behind the prompts that held no token.
    same_items
        Share of the ranks at which both found the same item. Below 1 only where rounding decided: in half precision,
        or between scores that are all but equal.
    """

    prompts: int
    beams: int
    generate_seconds: Spread
    seconds: Spread
    speedup: Spread
    generate_calls: int
    calls: int
    generate_rows: int
    rows: int
    tokens_computed: int
    padded_slots: int
    same_items: float


def measure_beams(
    model: Any,
    trie: TokenTrie,
    prompts: torch.Tensor,
    *,
    beams: int,
    scope: Scope,
    repetitions: int,
    warmup: int = 1,
) -> BeamFigures:
    """Time both searches in turns and compare what they find.

    Parameters
    ----------
    model
        A decoder-only model of ``transformers``.
    trie
        A catalog with an end token.
    prompts
        int64 [P, T], none padded, on the model's device.
    beams
        Beams, and items for each prompt.
    scope
        ``"trie"``: ``renormalize_logits=True``; ``"vocab"``: scores over the whole vocabulary.
    repetitions, warmup
        Rounds of each, and untimed ones before.
    """
    ours: list[BeamSearchResult] = []
    theirs: list[list[list[int]]] = []
    generate_rows: list[int] = []

    def search() -> None:
        ours[:] = [beam_search(model, prompts, trie, beam_width=beams, scope=scope)]

    def generate() -> None:
        generate_rows.clear()
        counting = model.register_forward_hook(lambda *call: generate_rows.append(call[2].logits[..., 0].numel()))
        try:
            output = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                logits_processor=[TrieLogitsProcessor(trie, prompt_length=prompts.shape[1])],
                renormalize_logits=scope == "trie",
                do_sample=False,
                num_beams=beams,
                num_return_sequences=beams,
                max_new_tokens=trie.max_depth,
                eos_token_id=trie.end_token_id,
                pad_token_id=trie.end_token_id,
            )
        finally:
            counting.remove()
        rows = output[:, prompts.shape[1] :].tolist()
        theirs[:] = [rows[at : at + beams] for at in range(0, len(rows), beams)]

    taken = compare({"generate": generate, "search": search}, rounds=repetitions, warmup=warmup)
    rounds = zip(taken["generate"].rounds, taken["search"].rounds, strict=True)
    (found,) = ours
    same = [
        row[: len(sequence)] == sequence
        for sequences, rows in zip(found.sequences, theirs, strict=True)
        for sequence, row in zip(sequences, rows, strict=False)
    ]
    return BeamFigures(
        prompts=len(prompts),
        beams=beams,
        generate_seconds=taken["generate"],
        seconds=taken["search"],
        speedup=Spread.of([slow / fast for slow, fast in rounds]),
        generate_calls=len(generate_rows),
        calls=found.stats.model_calls,
        generate_rows=sum(generate_rows),
        rows=found.stats.rows,
        tokens_computed=found.stats.tokens_computed,
        padded_slots=found.stats.padded_slots,
        same_items=sum(same) / len(same),
    )


def measure_scopes(
    model: Any, trie: TokenTrie, prompts: torch.Tensor, *, beams: int, repetitions: int
) -> dict[str, BeamFigures]:
    """:func:`measure_beams` in both scopes; nothing for no beams."""
    return {
        scope: measure_beams(model, trie, prompts, beams=beams, scope=scope, repetitions=repetitions, warmup=0)
        for scope in (SCOPES if beams else ())
    }
