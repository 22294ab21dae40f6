"""What is run to compile kernels: operations with tensors as the processor, the searches and the losses give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Literal, NamedTuple

import torch

from gentrie.bitmask import get_bitmask_shape
from gentrie.device._residents import Residents
from gentrie.device.bank import FilterBank, TrieBank
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.item_filter import ItemFilter
from gentrie.kernels.beam_step import launch_beam_step
from gentrie.kernels.trie_bitmask import launch_trie_bitmask
from gentrie.kernels.trie_constrain import launch_trie_constrain
from gentrie.kernels.trie_mask import launch_trie_mask
from gentrie.kernels.trie_walk import launch_trie_walk
from gentrie.trie import TokenTrie

_LENGTHS = (16, 17)  # of histories: Triton compiles anew for multiples of 16

Step = tuple[str, Callable[[], object]]


class Shapes(NamedTuple):
    """What kernels are compiled for; see :func:`warmup`."""

    num_prompts: int
    num_beams: int
    vocab_size: int
    dtype: torch.dtype
    begin_token_id: int
    num_eos: int
    over_vocab: bool


def serving(trie: TokenTrie, shapes: Shapes, device: torch.device) -> Iterator[Step]:
    """Each operation as the processor and the searches call it."""
    resident, everything = DeviceTrie(trie, device), DeviceFilter(ItemFilter.all_items(trie), device)
    rows = shapes.num_prompts * shapes.num_beams
    eos = torch.arange(shapes.num_eos, device=device)
    states = torch.zeros(rows, dtype=torch.int64, device=device)
    logits = torch.zeros(rows, shapes.vocab_size, dtype=shapes.dtype, device=device)
    mask = torch.empty(get_bitmask_shape(rows, shapes.vocab_size), dtype=torch.int32, device=device)
    starts = states if shapes.begin_token_id < 0 else None
    control = shapes.begin_token_id, eos
    first = None if starts is None else starts[:1]  # one entry for all rows, as one filter
    report = torch.zeros(2, dtype=torch.int32, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    for filters in (None, everything.descriptors):
        tries = resident.descriptors, None, filters, None if filters is None else torch.zeros_like(states)
        each = None if tries[3] is None else tries[3][:1]
        for length in _LENGTHS:
            history = torch.zeros(rows, length, dtype=torch.int64, device=device)
            yield "trie_walk", _call(launch_trie_walk, history, None, starts, *control, *tries)
            step = (history, logits, first, None, *control, True, *report, *tries[:3], each)
            yield "trie_constrain", _call(launch_trie_constrain, *step)
        yield "trie_mask", _call(launch_trie_mask, logits, states, *control, True, *tries)
        yield "trie_bitmask", _call(launch_trie_bitmask, mask, states, *control, True, *tries)
    yield from _beam_steps(resident, everything, shapes, logits)


def _beam_steps(trie: DeviceTrie, everything: DeviceFilter, shapes: Shapes, logits: torch.Tensor) -> Iterator[Step]:
    """``beam_step`` as :class:`DeviceBeamStepper` calls it behind the prompts, and at every later step."""
    tries, filters = TrieBank(trie.device), FilterBank(trie.device)
    tries.add(trie)
    filters.add(everything)
    vocabulary, branching = len(trie.trie.vocabulary), trie.trie.max_branching
    own = torch.zeros(len(logits), vocabulary, dtype=shapes.dtype, device=trie.device)
    kept = [shapes.num_beams if Residents(trie, None, 1, 1, None).has_one_length() else 2 * shapes.num_beams]
    in_bank = sorted({2 * shapes.num_beams, *kept})  # of which the stepper knows no length by itself
    searched: list[tuple[DeviceTrie | TrieBank, torch.Tensor, int, list[int]]] = [
        (trie, logits, branching, kept),
        (tries, logits, tries.max_branching, in_bank),
    ]
    if vocabulary < trie.trie.vocab_size:
        searched.append((trie, own, branching, kept))
    zeros, scores = logits.new_zeros(len(logits), dtype=torch.int64), logits.new_zeros(len(logits), dtype=torch.float32)
    every = product(searched, (None, everything, filters), sorted({1, shapes.num_beams}))
    for (resident, columns, most, widths), allowed, beams in every:
        part = slice(shapes.num_prompts * beams)
        normalizers = scores[part] if columns is own and shapes.over_vocab else None
        chosen = (
            resident.descriptors,
            zeros[part] if resident is tries else None,
            None if allowed is None else allowed.descriptors,
            zeros[part] if allowed is filters else None,
        )
        for width in widths:
            how = beams, width, shapes.over_vocab, normalizers, columns is own, most
            yield "beam_step", _call(launch_beam_step, columns[part], zeros[part], scores[part], *how, *chosen)


def training(trie: TokenTrie, shapes: Shapes, hidden_size: int, device: torch.device) -> Iterator[Step]:
    """The losses of a batch of titles, forward and backward."""
    from gentrie.training import bear_loss, linear_bear_loss

    labels = titles(trie, shapes.num_prompts).to(device)
    named: dict[str, Any] = {
        "trie": trie,
        "beam_width": shapes.num_beams,
        "scope": "vocab" if shapes.over_vocab else "trie",
    }

    def tensor(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, dtype=shapes.dtype, device=device, requires_grad=True)

    def from_logits(form: Literal["regularized", "reweighted"]) -> None:
        bear_loss(tensor(*labels.shape, shapes.vocab_size), labels, form=form, **named).backward()

    def from_hidden() -> None:
        hidden, weight = tensor(*labels.shape, hidden_size), tensor(shapes.vocab_size, hidden_size)
        linear_bear_loss(hidden, weight, labels, **named).backward()

    for form in ("regularized", "reweighted"):
        yield f"bear_loss, {form}", _call(from_logits, form)
    yield "linear_bear_loss", from_hidden


def titles(trie: TokenTrie, count: int) -> torch.Tensor:
    """Sequences as labels int64 [count, length], -100 behind their ends; the i-th takes the i-th branches."""
    rows = torch.full((count, trie.max_depth), -100)
    for row in range(count):
        state, depth = 0, 0
        while len(tokens := trie.next_tokens(state)):
            token = int(tokens[row % len(tokens)])
            rows[row, depth], state, depth = token, trie.advance(state, token), depth + 1
    return rows


def _call(function: Callable[..., object], *arguments: object) -> Callable[[], object]:
    return lambda: function(*arguments)
