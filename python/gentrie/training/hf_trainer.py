"""A ``Trainer`` whose model never computes a logit that nobody needs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Trainer

from gentrie import _validate
from gentrie.model.lm_head import logit_scale, logit_softcap
from gentrie.training._adapters import HeadParts, head_parts
from gentrie.training.adaptive_tau import AdaptiveTau
from gentrie.training.bear import linear_bear_loss
from gentrie.training.hf_loss import label_states, refuse_local_normalizer, trainer_normalizer
from gentrie.training.recommendation_callback import LogsRecommendations
from gentrie.trie import TokenTrie


class BearTrainer(LogsRecommendations, Trainer):
    """``transformers.Trainer`` with a loss over valid tokens, straight from the hidden states before the LM head.

    The head is handed no row, so that no logit is computed but those that the loss itself needs. This holds for any
    model with ``get_output_embeddings()``: also under PEFT (on the head itself LoRA, DoRA, ``trainable_token_indices``
    and ``modules_to_save``), gradient checkpointing, gradient accumulation, ``accelerate``'s data parallel training and
    mixed precision.

    Parameters
    ----------
    *args, **kwargs
        Of ``Trainer``. Batches hold ``labels``, and may hold ``states`` as :class:`ItemCollator` makes them; without,
        they are found anew. ``remove_unused_columns`` is switched off, for collators need columns that models do not
        take, and evaluation gives losses only, for there are no logits.
    trie
        The catalog.
    loss
        :func:`linear_bear_loss`, :func:`linear_masked_softmax_loss`, or a function with their arguments, which is given
        the head as a weight and a bias. Plain
        supervised fine-tuning is :func:`linear_bear_loss` with ``scope="vocab", reg_weight=0``.
    loss_options
        Further arguments of ``loss``, such as ``beam_width``, ``reg_weight``, ``reg_temperature``.
    begin_token_id
        As in :class:`TrieLoss`.
    adaptive_tau
        Gives the loss its ``tau`` and learns from every training step.

    Attributes
    ----------
    loss_stats : LossStats or None
        Those of the last micro-batch, where ``loss_options`` hold ``return_stats=True`` or ``adaptive_tau`` is given.

    Raises
    ------
    ValueError, TypeError
        For options that contradict each other, a model whose logits are more than head, scale and soft-cap, and
        ``torch.nn.DataParallel`` (several GPUs in one process).
    """

    def __init__(
        self,
        *args: Any,
        trie: TokenTrie,
        loss: Callable[..., Any] = linear_bear_loss,
        loss_options: Mapping[str, Any] | None = None,
        begin_token_id: int | None = None,
        adaptive_tau: AdaptiveTau | None = None,
        **kwargs: Any,
    ) -> None:
        _validate.trie("trie", trie)
        options = dict(loss_options or {})
        refuse_local_normalizer(options)
        for name in ("compute_loss_func", "compute_metrics", "preprocess_logits_for_metrics"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is given: BearTrainer has a loss of its own and no logits")
        if adaptive_tau is not None and "tau" in options:
            raise ValueError(f"adaptive_tau is given, and loss_options['tau']={options['tau']!r}: give one of the two")
        if begin_token_id is not None:
            begin_token_id = _validate.integer("begin_token_id", begin_token_id, 0, trie.vocab_size - 1)
        super().__init__(*args, **kwargs)
        if self.args.label_smoothing_factor:
            raise ValueError(f"label_smoothing_factor={self.args.label_smoothing_factor} has no place in this loss")
        if self.args.n_gpu > 1:
            raise ValueError(f"{self.args.n_gpu} GPUs in one process: start one process a GPU, as torchrun does")
        self.args = copy.copy(self.args)
        self.args.remove_unused_columns = False
        self.args.prediction_loss_only = True
        self.compute_loss_func = self._item_loss
        self._trie, self._loss, self._loss_options = trie, loss, options
        self._begin_token_id, self._adaptive_tau = begin_token_id, adaptive_tau
        self._states: torch.Tensor | None = None
        self._hidden: torch.Tensor | None = None
        self._is_checked = False
        self._modes: list[tuple[torch.nn.Module, bool]] = []  # whether each module of the head trains
        self.loss_stats: Any = None

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer.compute_loss``; ``inputs`` may hold ``states``."""
        inputs = dict(inputs)
        if "labels" not in inputs:
            raise ValueError(f"a batch lacks labels; it holds {sorted(inputs)}")
        self._states = inputs.pop("states", None)
        plain = self._plain
        if plain.config.is_encoder_decoder and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = plain.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        with self._without_logits(plain.get_output_embeddings()):
            try:
                return super().compute_loss(model, inputs, *args, **kwargs)
            finally:
                self._states = self._hidden = None

    @contextmanager
    def _without_logits(self, head: Any) -> Iterator[None]:
        """Keep what the model hands to its head, and hand on nothing, or one row a sequence to check it by."""
        if head is None:
            raise ValueError(f"{type(self.model).__name__} has no LM head: get_output_embeddings() is None")

        def keep(_module: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            self._hidden = inputs[0]
            return (inputs[0][:, : 0 if self._is_checked else 1], *inputs[1:])

        handle = head.register_forward_pre_hook(keep)
        self._modes = [(module, module.training) for module in head.modules()]
        if not self._is_checked:
            head.eval()  # logits with a dropout of their own cannot be compared
        try:
            yield
        finally:
            handle.remove()
            for module, mode in self._modes:
                module.training = mode

    def _item_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        hidden, plain = self._hidden, self._plain
        shape = None if hidden is None else tuple(hidden.shape)
        if hidden is None or hidden.shape[:2] != labels.shape:
            raise ValueError(
                f"{type(plain).__name__} handed {shape} to its LM head, labels have shape {tuple(labels.shape)}"
            )
        head, config = plain.get_output_embeddings(), plain.config.get_text_config(decoder=True)
        softcap, scale = logit_softcap(config), logit_scale(config)
        if not self._is_checked:
            self._check(outputs["logits"], head_parts(head, hidden[:, :1]), softcap, scale)
            for module, mode in self._modes:
                module.training = mode
        states = self._states
        if states is None:
            states = label_states(self._trie, labels, self._begin_token_id, -100)
        if not plain.config.is_encoder_decoder:
            hidden, labels, states = hidden[:, :-1], labels[:, 1:], states[:, 1:]
        options = {"normalizer": trainer_normalizer(num_items_in_batch), **self._loss_options}
        learns_tau = self._adaptive_tau is not None and plain.training
        if self._adaptive_tau is not None:
            options["tau"] = self._adaptive_tau.value
        options["return_stats"] = learns_tau or bool(options.get("return_stats"))
        parts = head_parts(head, hidden)
        loss = self._loss(
            parts.hidden,
            parts.weight,
            labels,
            trie=self._trie,
            states=states,
            lm_head_bias=parts.bias,
            logit_softcap=softcap,
            logit_scale=scale,
            **options,
        )
        if options["return_stats"]:
            loss, self.loss_stats = loss
        if self._adaptive_tau is not None and learns_tau:
            self._adaptive_tau.update(self.loss_stats)
        result: torch.Tensor = loss
        return result

    @property
    def _plain(self) -> Any:
        """The model without what distributed training wraps around it."""
        return self.accelerator.unwrap_model(self.model)

    @torch.no_grad()
    def _check(self, logits: torch.Tensor, parts: HeadParts, softcap: float | None, scale: float) -> None:
        """Compare the model's logits of one row a sequence with what the loss will take for them."""
        hidden, weight, bias = parts
        bias = None if bias is None else bias.float()
        with torch.autocast(hidden.device.type, enabled=False):  # some versions of Trainer ask for the loss inside one
            raw = torch.nn.functional.linear(hidden.float(), weight.float(), bias) * scale
        ours = raw if softcap is None else (raw / softcap).tanh() * softcap
        is_exact = self.accelerator.mixed_precision == "no" and hidden.dtype == weight.dtype == torch.float32
        tolerance = 1e-4 if is_exact else 5e-2
        if logits.shape != ours.shape or not torch.allclose(logits.float(), ours, rtol=tolerance, atol=tolerance):
            raise ValueError(f"{type(self.model).__name__} does more to its logits than LM head, scale and soft-cap")
        self._is_checked = True
