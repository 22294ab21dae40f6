"""Random catalogs with labels of items and free text, for the losses."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from reference import IGNORED, Label, valid_tokens

from gentrie import TokenTrie

END = 1


@dataclass(frozen=True)
class LossCase:
    """A catalog, labels [N, T] with their states, and the same labels as the reference wants them.

    ``width`` is that of the logits, at least the trie's vocabulary.
    """

    rows: list[list[int]]
    trie: TokenTrie
    labels: torch.Tensor
    states: torch.Tensor
    expected: list[Label]
    width: int
    seed: int

    def normal(self, *shape: int, spread: float = 1.0) -> torch.Tensor:
        """Normal numbers in float64, the same at every call."""
        generator = torch.Generator().manual_seed(self.seed)
        return spread * torch.randn(*shape, dtype=torch.float64, generator=generator)

    def logits(self, spread: float = 3.0) -> torch.Tensor:
        return self.normal(*self.labels.shape, self.width, spread=spread).requires_grad_()

    def count(self, kind: str, scope: str) -> int:
        """What ``normalizer`` of that name divides by."""
        if kind == "labels":
            return len(self.expected)
        return sum(scope == "vocab" or label.valid is None or len(label.valid) > 1 for label in self.expected)


@st.composite
def loss_cases(draw: st.DrawFn, max_vocab: int = 12) -> LossCase:
    vocab = draw(st.integers(3, max_vocab))
    width = vocab + draw(st.integers(0, 3))
    body = st.lists(st.integers(2, vocab - 1), min_size=1, max_size=4)
    rows = [[*row, END] for row in draw(st.lists(body, min_size=1, max_size=12))]
    trie = TokenTrie.from_sequences([row[:-1] for row in rows], vocab_size=vocab, end_token_id=END)
    segments = st.lists(st.one_of(st.integers(0, len(rows) - 1), st.just("free"), st.just("gap")), max_size=3)
    sequences = draw(st.lists(segments, min_size=1, max_size=3))
    tokens, states, expected = [], [], []
    for number, sequence in enumerate(sequences):
        row_tokens: list[int] = []
        row_states: list[int] = []
        for segment in sequence:
            if segment == "gap":
                row_tokens.append(IGNORED)
                row_states.append(-2)
            elif segment == "free":
                token = draw(st.integers(0, width - 1))
                expected.append(Label(number, len(row_tokens), token, None))
                row_tokens.append(token)
                row_states.append(-2)
            else:
                item = rows[segment]
                for count, token in enumerate(item):
                    expected.append(Label(number, len(row_tokens), token, valid_tokens(rows, item[:count])))
                    row_tokens.append(token)
                    row_states.append(trie.walk(item[:count]))
        tokens.append(row_tokens)
        states.append(row_states)
    length = max(map(len, tokens))
    return LossCase(
        rows,
        trie,
        torch.tensor([row + [IGNORED] * (length - len(row)) for row in tokens], dtype=torch.int64),
        torch.tensor([row + [-2] * (length - len(row)) for row in states], dtype=torch.int64),
        expected,
        width,
        draw(st.integers(0, 2**31)),
    )


def gradients(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Zeros where nothing depends on a leaf; the graph stays, for other losses of it."""
    if not loss.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
    return tuple(torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves, strict=True))


def assert_same(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-9 of the largest entry, and to the rounding of differences of probabilities where all are tiny."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(actual.detach(), expected.detach(), rtol=1e-9, atol=1e-9 * largest + 1e-13)
