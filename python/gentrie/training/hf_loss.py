"""The losses as ``transformers.Trainer`` calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gentrie import _validate
from gentrie.training.bear import bear_loss
from gentrie.trie import TokenTrie

FREE_TEXT = -2


def label_states(trie: TokenTrie, labels: torch.Tensor, begin_token_id: int | None, ignore_index: int) -> torch.Tensor:
    """The states that labels [batch, length] are chosen from, shaped and placed as they are; -2 where ignored."""
    ignored = labels == ignore_index
    states: torch.Tensor = trie.token_states(labels.masked_fill(ignored, -100), begin_token_id=begin_token_id)
    return states.masked_fill(ignored, FREE_TEXT)


class TrieLoss:
    """A ``compute_loss_func`` for ``transformers.Trainer``: a loss of this package from the model's logits.

    The Trainer hands over outputs and labels alone, so that states are found anew, in C++. It shifts: the logits at
    a position predict the next position's label. :class:`BearTrainer` needs no logits and is the cheaper choice.

    Parameters
    ----------
    trie
        The catalog.
    loss
        :func:`bear_loss`, :func:`masked_softmax_loss`, or a function with their arguments.
    begin_token_id
        An item begins behind each of these labels, and other text is free. Default: each row's item begins at its
        first label.
    shift
        False for encoder-decoders, whose logits stand where their labels do.
    ignore_index
        The label that does not count.
    **options
        Further arguments of ``loss``. ``normalizer`` is ``num_items_in_batch`` unless it is given here, so that
        gradient accumulation equals one big batch; one that depends on the micro-batch is refused.

    Attributes
    ----------
    stats : LossStats or None
        Those of the last micro-batch, where ``options`` hold ``return_stats=True``: the Trainer takes the loss alone.
    """

    def __init__(
        self,
        trie: TokenTrie,
        loss: Callable[..., Any] = bear_loss,
        *,
        begin_token_id: int | None = None,
        shift: bool = True,
        ignore_index: int = -100,
        **options: Any,
    ) -> None:
        _validate.trie("trie", trie)
        refuse_local_normalizer(options)
        if begin_token_id is not None:
            begin_token_id = _validate.integer("begin_token_id", begin_token_id, 0, trie.vocab_size - 1)
        self._trie, self._loss, self._begin = trie, loss, begin_token_id
        self._shift, self._ignore_index, self._options = shift, ignore_index, options
        self.stats: Any = None

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """The loss, a tensor of no dimensions."""
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        states = label_states(self._trie, labels, self._begin, self._ignore_index)
        if self._shift:
            logits, labels, states = logits[:, :-1], labels[:, 1:], states[:, 1:]
        options = {"normalizer": trainer_normalizer(num_items_in_batch), **self._options}
        loss = self._loss(logits, labels, trie=self._trie, states=states, ignore_index=self._ignore_index, **options)
        if options.get("return_stats"):
            loss, self.stats = loss
        result: torch.Tensor = loss
        return result


def trainer_normalizer(num_items_in_batch: torch.Tensor | int | None) -> Any:
    """Labels of the whole batch, over all its micro-batches and processes; of this call where that is unknown."""
    return "labels" if num_items_in_batch is None else num_items_in_batch


def refuse_local_normalizer(options: dict[str, Any]) -> None:
    """Raise for a normalizer that is another loss under gradient accumulation than without."""
    if options.get("normalizer") in ("weights", "branching"):
        raise ValueError(
            f"normalizer={options['normalizer']!r} divides each micro-batch by its own sum, which under gradient "
            "accumulation is not the loss of the whole batch: leave it out, or give the sum as a number"
        )
