"""Batches of prompts and responses, with labels and the states they are chosen from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from gentrie import _validate
from gentrie.training._prompts import warn_of_other_ends
from gentrie.trie import TokenTrie

Int64Array = npt.NDArray[np.int64]

IGNORED = -100


@dataclass(frozen=True)
class ItemCollator:
    """Joins prompt and response as ids and pads: nothing is tokenised anew where the two meet.

    Features are mappings with ``prompt_ids`` and ``response_ids``, token ids each; other keys are dropped. A response
    is one item's tokens (its end token and the model's end-of-turn token included where it has them), or, with
    ``begin_token_id``, text with items between begin and end token. Warns once where a prompt does not end as the
    context does that the catalog's titles were encoded behind.

    Parameters
    ----------
    trie
        The catalog.
    pad_token_id
        Fills rows up; it is masked in ``attention_mask`` and in no label.
    begin_token_id
        An item begins behind each of these tokens of the response. Default: the response begins with the item.
    max_length
        Longest row; prompts lose tokens at their front, responses none.
    pad_to_multiple_of
        Rows are filled up to a multiple of it.
    padding_side
        ``"right"`` or ``"left"``.

    Notes
    -----
    A call returns a dict of int64 tensors [batch, length]: ``input_ids``, ``attention_mask``, ``labels`` (-100 over
    prompt and padding) and ``states``, the state each label is chosen from (-2 where it is free text). Nothing is
    shifted: :class:`BearTrainer` and :class:`TrieLoss` do that.

    Raises
    ------
    ValueError, TypeError
        For features without prompt or response, tokens outside the vocabulary, a response that ``max_length`` does
        not hold, and a response that is not in the catalog, naming the feature.
    """

    trie: TokenTrie
    pad_token_id: int
    begin_token_id: int | None = None
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    padding_side: Literal["right", "left"] = "right"
    _warned: list[bool] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _validate.trie("trie", self.trie)
        _validate.integer("pad_token_id", self.pad_token_id, 0, 2**31 - 1)
        _validate.choice("padding_side", self.padding_side, ("right", "left"))
        for name in ("max_length", "pad_to_multiple_of"):
            if getattr(self, name) is not None:
                _validate.integer(name, getattr(self, name), 1, 2**31 - 1)
        if self.begin_token_id is not None:
            _validate.integer("begin_token_id", self.begin_token_id, 0, self.trie.vocab_size - 1)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if not features:
            raise ValueError("features is empty")
        rows = [self._row(number, feature) for number, feature in enumerate(features)]
        if self.begin_token_id is None and not self._warned:
            prompts = [feature["prompt_ids"] for feature in features]
            if warn_of_other_ends(self.trie, prompts, "features[{}]['prompt_ids']", 2):
                self._warned.append(True)
        width = max(prompt.size + response.size for prompt, response in rows)
        multiple = self.pad_to_multiple_of or 1
        width = -(-width // multiple) * multiple
        shape = (len(rows), width)
        ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        mask, labels = np.zeros(shape, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
        for row, (prompt, response) in enumerate(rows):
            length = prompt.size + response.size
            start = width - length if self.padding_side == "left" else 0
            place = slice(start, start + length)
            ids[row, place] = np.concatenate([prompt, response])
            mask[row, place] = 1
            labels[row, start + prompt.size : start + length] = response
        states = self.trie.token_states(labels, begin_token_id=self.begin_token_id)
        states[labels == IGNORED] = -2
        inside = np.argwhere(states >= 0)
        after = self.trie.advance_batch(states[states >= 0], labels[states >= 0])
        for row, column in inside[after < 0][:1]:
            place = column - np.flatnonzero(labels[row] != IGNORED)[0]
            raise ValueError(
                f"features[{row}]: token {labels[row, column]} at position {place} of response_ids leaves the catalog"
            )
        self._refuse_unfinished(labels, states)
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels, "states": states}
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def _refuse_unfinished(self, labels: Int64Array, states: Int64Array) -> None:
        """Raise for a response behind whose last token an item goes on."""
        for row, given in enumerate(labels):
            last = np.flatnonzero(given != IGNORED)[-1]
            token, state = int(given[last]), int(states[row, last])
            if state >= 0:
                state = self.trie.advance(state, token)
            elif token == self.begin_token_id:
                state = self.trie.root
            if state >= 0 and not self.trie.is_leaf(state):
                few = self.trie.next_tokens(state)[:5].tolist()
                raise ValueError(
                    f"features[{row}]: response_ids end in token {token} inside an item, which goes on with "
                    + (
                        f"its end token {self.trie.end_token_id}"
                        if few == [self.trie.end_token_id]
                        else f"one of {few}"
                    )
                )

    def _row(self, number: int, feature: Mapping[str, Any]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        parts = []
        for name in ("prompt_ids", "response_ids"):
            if name not in feature:
                raise ValueError(f"features[{number}] lacks {name}; it holds {sorted(feature)}")
            tokens = _validate.token_row(f"features[{number}][{name!r}]", feature[name])
            for place in np.flatnonzero(tokens < 0)[:1]:
                raise ValueError(f"features[{number}][{name!r}][{place}]={tokens[place]} is negative")
            parts.append(tokens)
        prompt, response = parts
        if response.size == 0:
            raise ValueError(f"features[{number}]['response_ids'] is empty")
        if self.max_length is not None:
            room = self.max_length - response.size
            if room < min(1, prompt.size):
                raise ValueError(
                    f"features[{number}]: {response.size} tokens of response_ids leave no room for the prompt within "
                    f"max_length={self.max_length}"
                )
            prompt = prompt[max(0, prompt.size - room) :]
        return prompt, response
