"""The two control tokens that open and close an item in free text."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gentrie._optional import require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["add_item_tokens"]

_BEGIN_WORDS = "start of an item"
_END_WORDS = "end of an item"

# Key in the model's configuration, which is saved with the weights: the token ids whose rows are initialised.
_CONFIG_KEY = "gentrie_item_token_ids"

_logger = logging.getLogger("gentrie")


def add_item_tokens(
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    *,
    begin: str = "<SOI>",
    end: str = "<EOI>",
    overwrite: bool = False,
) -> tuple[int, int]:
    """Add the tokens that open and close an item to a tokenizer and its model, both in place.

    Both become special tokens. Their rows of the input embeddings, and of the output head (weight and bias)
    where it is not tied to them, are set to the mean of the rows of the tokens of "start of an item" and of
    "end of an item" (RecLM-cgen, section 4.1). The embedding matrix grows only if it is too small; a matrix
    padded beyond the tokenizer keeps its size.

    Rows that may be trained are left alone: those of tokens set up by an earlier call, also one before
    ``save_pretrained`` (the model's configuration records it), and those of tokens that the tokenizer and the
    matrix both had already. ``overwrite=True`` sets them anyway; a fresh padded model under a tokenizer that
    already has the tokens needs it.

    Parameters
    ----------
    tokenizer
        A ``transformers`` tokenizer.
    model
        The ``transformers`` model that goes with it.
    begin, end
        The two tokens: different strings without white space at the ends, outside the tokenizer's ordinary
        vocabulary.
    overwrite
        Sets the rows even where they may be trained.

    Returns
    -------
    tuple[int, int]
        Token ids of ``begin`` and ``end``.

    Raises
    ------
    TypeError
        If ``tokenizer`` or ``model`` is not of ``transformers``, or the tokenizer cannot take new tokens.
    ValueError
        If ``begin`` and ``end`` are equal, not strings, empty, surrounded by white space or ordinary tokens,
        or if the tokenizer gives no token for the words, or one outside the model's embeddings.
    """
    torch = require("torch", extra="hf")
    transformers = require("transformers", extra="hf")
    _check_arguments(transformers, tokenizer, model, begin, end)
    sources = [_word_ids(tokenizer, model, words) for words in (_BEGIN_WORDS, _END_WORDS)]

    old_rows, known = _rows(model), set(tokenizer.get_added_vocab())
    begin_id, end_id = _add_to_tokenizer(transformers, tokenizer, (begin, end))
    _grow(model, max(len(tokenizer), begin_id + 1, end_id + 1))

    seen = set(getattr(model.config, _CONFIG_KEY, ()))
    with torch.no_grad():
        for token, token_id, source in zip((begin, end), (begin_id, end_id), sources, strict=True):
            if overwrite or token_id >= old_rows or (token not in known and token_id not in seen):
                _set_row(model, token_id, source)
            elif token_id not in seen:
                _logger.warning(
                    "%s (id %d) was in the tokenizer and the embeddings already; its row is left as it is, "
                    "overwrite=True sets it",
                    token,
                    token_id,
                )
    setattr(model.config, _CONFIG_KEY, sorted(seen | {begin_id, end_id}))
    return begin_id, end_id


def _check_arguments(transformers: Any, tokenizer: Any, model: Any, begin: Any, end: Any) -> None:
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise TypeError(f"tokenizer must be a tokenizer of transformers, got {type(tokenizer).__name__}")
    if not hasattr(model, "resize_token_embeddings"):
        raise TypeError(f"model must be a model of transformers, got {type(model).__name__}")
    try:
        ordinary = tokenizer.get_vocab().keys() - tokenizer.get_added_vocab().keys()
    except NotImplementedError as error:
        raise TypeError(f"tokenizer is a {type(tokenizer).__name__}, which cannot take new tokens") from error
    for name, token in (("begin", begin), ("end", end)):
        if not isinstance(token, str) or not token or token != token.strip():
            raise ValueError(f"{name} must be a non-empty string without white space at its ends, got {token!r}")
        if token in ordinary:
            raise ValueError(
                f"{name}={token!r} is an ordinary token of this tokenizer, which titles may contain; "
                "choose a string that is not in its vocabulary"
            )
    if begin == end:
        raise ValueError(f"begin and end must differ, both are {begin!r}")


def _word_ids(tokenizer: Any, model: Any, words: str) -> list[int]:
    """Token ids of ``words``, all of them inside the model's embeddings."""
    ids: list[int] = tokenizer(words, add_special_tokens=False)["input_ids"]
    rows = _rows(model)
    if not ids:
        raise ValueError(f"the tokenizer gives no token for {words!r}, whose embeddings are needed")
    if max(ids) >= rows:
        raise ValueError(
            f"token {max(ids)} of {words!r} is outside the model's embeddings, which have {rows} rows: "
            "the tokenizer belongs to another model"
        )
    return ids


def _add_to_tokenizer(transformers: Any, tokenizer: Any, tokens: tuple[str, str]) -> tuple[int, int]:
    special = [transformers.AddedToken(token, special=True, normalized=False) for token in tokens]
    tokenizer.add_tokens(special, special_tokens=True)
    begin_id, end_id = tokenizer.convert_tokens_to_ids(list(tokens))
    return begin_id, end_id


def _grow(model: Any, rows: int) -> None:
    """Gives every matrix at least ``rows`` rows; takes none away."""
    if _rows(model) < rows:
        widest = max(matrix.shape[0] for matrix in _matrices(model))
        model.resize_token_embeddings(max(rows, widest), mean_resizing=False)


def _matrices(model: Any) -> list[torch.Tensor]:
    """Everything with a row for each token: input embeddings, and an untied head's weight and bias."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    matrices = [embeddings.weight]
    if head is not None:
        if head.weight is not embeddings.weight:
            matrices.append(head.weight)
        if getattr(head, "bias", None) is not None:
            matrices.append(head.bias)
    return matrices


def _rows(model: Any) -> int:
    """The number of token ids that all matrices have a row for."""
    return min(int(matrix.shape[0]) for matrix in _matrices(model))


def _set_row(model: Any, token_id: int, source: list[int]) -> None:
    for matrix in _matrices(model):
        # The mean is taken in float32: in half precision the sum itself would be rounded.
        matrix[token_id] = matrix[source].float().mean(dim=0).to(matrix.dtype)
