"""A model's LM head, of which only some rows may be wanted."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch
from transformers import PreTrainedModel

from gentrie.model.lm_head import logit_scale, logit_softcap
from gentrie.model.model_copies import own_modules

_checked: WeakSet[PreTrainedModel] = WeakSet()

# Logits of a tile on the CPU, which stay in a core's cache while they are summed up, and its columns.
_TILE, _LEAST_COLUMNS, _MOST_COLUMNS = 1 << 17, 256, 4096
# Rows of logits over the whole vocabulary that are held at a time elsewhere.
_ROWS = 256


class TreeHead:
    """``logits = cap(scale * (hidden @ weight.T + bias))`` with ``cap(x) = softcap * tanh(x / softcap)``.

    The scale is ``logit_scale`` (Cohere), ``1 / logits_scaling`` (Granite) or what the model multiplies its hidden
    states by (tied T5); the cap is ``final_logit_softcapping`` (Gemma 2). Each model is asked once for the logits of
    one token, and refused where these are not its logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        whole: Any = model
        self._module: Any = whole.get_output_embeddings()
        if self._module is None or not hasattr(self._module, "weight"):
            raise ValueError(f"{type(model).__name__} has no LM head")
        config = model.config.get_text_config(decoder=True)
        self._scale, self._softcap = _scale(config), logit_softcap(config)
        self._rows: tuple[torch.Tensor, int, torch.Tensor, torch.Tensor | None] | None = None
        if model not in _checked:
            self._check(model)
            _checked.add(model)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return int(self._module.weight.shape[0])

    def logits(self, hidden: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """[N, vocabulary], or [N, tokens] for the given tokens, in the dtype the head computes in."""
        if token_ids is None:
            raw = self._module(hidden)
        elif type(self._module) is torch.nn.Linear:
            raw = torch.nn.functional.linear(hidden, *self._selected(token_ids))
        else:  # adapters and quantised weights: only the module knows its rows
            raw = self._module(hidden)[:, token_ids]
        return self._shaped(raw)

    def normalized(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the given tokens over ``temperature``, and what normalises them over the whole vocabulary; see
        :meth:`gentrie.generation.TreeDecoder.normalized_logits`."""
        if type(self._module) is torch.nn.Linear and hidden.device.type == "cpu":
            return self._by_columns(hidden, token_ids, temperature)
        return _by_rows(self.logits, hidden, token_ids, temperature)

    def _shaped(self, raw: torch.Tensor) -> torch.Tensor:
        if self._scale != 1.0:
            raw = raw * self._scale
        return raw if self._softcap is None else (raw / self._softcap).tanh() * self._softcap

    def _by_columns(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        weight, bias = self._module.weight, self._module.bias
        columns = min(max(_TILE // max(1, len(hidden)), _LEAST_COLUMNS), _MOST_COLUMNS)
        edges = [*range(0, self.vocab_size, columns), self.vocab_size]
        cuts = torch.searchsorted(token_ids, torch.tensor(edges)).tolist()
        wanted, sums = [], []
        for first, last, begin, end in zip(edges, edges[1:], cuts, cuts[1:], strict=False):
            raw = torch.nn.functional.linear(hidden, weight[first:last], None if bias is None else bias[first:last])
            tile = tempered(self._shaped(raw), temperature)
            wanted.append(tile.index_select(1, token_ids[begin:end] - first))
            sums.append(_log_sum_exp(tile))
        return torch.cat(wanted, dim=1), torch.stack(sums).logsumexp(0)

    def _selected(self, token_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias of some tokens. The last selection is kept: it is the catalog's at every step."""
        rows = self._rows
        if rows is None or rows[0] is not token_ids or rows[1] != token_ids._version:
            weight, bias = self._module.weight, self._module.bias
            rows = (token_ids, token_ids._version, weight[token_ids], None if bias is None else bias[token_ids])
            self._rows = rows
        return rows[2], rows[3]

    def _check(self, model: Any) -> None:
        """Raise ValueError where the model makes its logits in some other way."""
        seen: list[torch.Tensor] = []
        model = own_modules(model)  # a hook on the model itself would see the calls of other threads
        body = model.get_decoder() if model.config.is_encoder_decoder else model.base_model
        hook = body.register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
        token = torch.ones(1, 1, dtype=torch.int64, device=model.device)
        inputs = {"decoder_input_ids": token} if model.config.is_encoder_decoder else {}
        try:
            theirs = _without_autocast(model)(input_ids=token, use_cache=False, **inputs).logits[0].float()
        finally:
            hook.remove()
        if not seen or seen[-1].ndim != 3:
            raise ValueError(
                f"{type(model).__name__} does not make its logits from the hidden states of {type(body).__name__}"
            )
        ours = self.logits(seen[-1][0]).float()
        tolerance = 1e-4 if self._module.weight.dtype == torch.float32 else 5e-2
        if ours.shape != theirs.shape or not torch.allclose(
            ours, theirs, rtol=tolerance, atol=tolerance, equal_nan=True
        ):
            raise ValueError(f"{type(model).__name__} does more to its logits than LM head, scale and soft-cap")


def _without_autocast(model: Any) -> Any:
    """The model, or its ``forward`` from before accelerate's mixed precision, which each trainer wraps once more."""
    found = plain = vars(model).get("_original_forward", model)  # as the last trainer found it
    while type(getattr(plain, "__wrapped__", None)).__name__ == "ConvertOutputsToFp32":
        plain = plain.__wrapped__.__wrapped__.__wrapped__  # the conversion, the autocast, what they wrap
    return types.MethodType(plain, model) if plain is not found and isinstance(found, types.MethodType) else plain


class WholeHead:
    """In the place of a head where the model itself has been called: hidden states are logits already."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.vocab_size = int(model.config.get_text_config(decoder=True).vocab_size)
        """Width of the logits."""

    def logits(self, hidden: torch.Tensor, token_ids: torch.Tensor | None = None) -> torch.Tensor:
        """The logits [N, vocabulary] as they are, or those of the given tokens."""
        return hidden if token_ids is None else hidden[:, token_ids]

    def normalized(
        self, hidden: torch.Tensor, token_ids: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`TreeHead.normalized`."""
        return _by_rows(torch.Tensor.clone, hidden, token_ids, temperature)


def _by_rows(
    logits: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, token_ids: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    wanted, sums = [], []
    for rows in torch.split(hidden, _ROWS):
        whole = tempered(logits(rows), temperature)
        wanted.append(whole.index_select(1, token_ids))
        sums.append(_log_sum_exp(whole))
    return torch.cat(wanted), torch.cat(sums)


def _log_sum_exp(logits: torch.Tensor) -> torch.Tensor:
    """Float32 [N] over the columns, in the place of the logits, which ``torch.logsumexp`` would copy."""
    logits = logits.float()
    highest = logits.amax(-1).clamp_(min=torch.finfo(torch.float32).min)  # of a tile that is -inf throughout
    return logits.sub_(highest[:, None]).exp_().sum(-1).log_().add_(highest)


def tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits over a temperature, in float32 unless it is 1."""
    return logits if temperature == 1.0 else logits.float() / temperature


def _scale(config: Any) -> float:
    """What the model multiplies its raw logits by, or the hidden states that it hands to its head."""
    scale = logit_scale(config)
    if config.is_encoder_decoder and getattr(config, "scale_decoder_outputs", config.tie_word_embeddings):
        scale *= config.d_model**-0.5 if config.model_type in _SCALED_WHEN_TIED else 1.0
    return scale


_SCALED_WHEN_TIED = ("t5", "mt5", "umt5", "longt5", "switch_transformers", "udop")
