"""A model that reads one token for each beam of each prompt at a time, without waiting for the host."""

from __future__ import annotations

from typing import Any

import torch

from gentrie.model.tree_attention import Step
from gentrie.model.tree_blocks import Block, on_device
from gentrie.model.tree_decoder import TreeDecoder


class LockstepDecoder:
    """Prompts, each encoded once and its keys and values held once, and the tokens of their beams behind them.

    All that a step needs lies on the device, and neither its shapes nor its addresses change from one to the next or
    with other prompts: it can be captured in a CUDA graph behind a first one. Keys and values of every token that was
    read stay where they were written; what a beam attends to is a row of places, gathered from its parent's.

    Parameters
    ----------
    model, input_ids, attention_mask
        As for :class:`gentrie.generation.TreeDecoder`: decoder-only models that call the attention interface.
    beam_width
        Beams of each prompt.
    max_length
        Steps at most, that is, calls of :meth:`extend` and one. Later calls overwrite the last.
    token_ids
        int64 [tokens] on the model's device: columns of logits; None: the whole vocabulary.
    over_vocab
        Whether the columns have to be normalised over the whole vocabulary.
    temperature
        Logits are divided by it.

    Attributes
    ----------
    num_prompts
        Prompts.

    Raises
    ------
    ValueError, TypeError
        For prompts that are empty or have holes in their mask, and models that this does not serve.
    """

    def __init__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        beam_width: int,
        max_length: int,
        token_ids: torch.Tensor | None,
        over_vocab: bool,
        temperature: float = 1.0,
    ) -> None:
        self._decoder = TreeDecoder(model, input_ids, attention_mask)
        steps = max(max_length - 1, 1)
        forward = self._decoder.packed_forward
        if forward is None:
            raise ValueError(
                f"{type(model).__name__} does not call the attention interface of transformers in every layer: "
                "use gentrie.generation.beam_search"
            )
        self._forward, device = forward, self._decoder.device
        self._token_ids, self._over_vocab, self._temperature = token_ids, over_vocab, temperature
        lengths = torch.from_numpy(self._decoder.prompt_lengths).to(device)
        self.num_prompts, self._beam_width = len(lengths), beam_width
        rows = self.num_prompts * beam_width
        forward.reserve(rows * steps)
        self._row = torch.arange(rows, device=device)
        self._prompt = self._row // beam_width
        self._lengths = lengths
        self._depth = self._row.new_zeros(1)
        """int64 [1], tokens that each beam has; on the device, so that one captured step serves every depth."""
        self._places = self._row.new_zeros(rows, steps)
        """int64 [rows, steps], where the keys and values of each beam's tokens are stored, its last one's first; any
        others behind those."""
        self._column = torch.arange(steps, device=device)

    @property
    def nbytes(self) -> tuple[int, int]:
        """Bytes of keys and values: of prompts, and of the beams' tokens."""
        return self._forward.nbytes

    def replace_prompts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> None:
        """Begin with other prompts, in the same memory; see :meth:`gentrie.generation.TreeDecoder.replace_prompts`."""
        self._decoder.replace_prompts(input_ids, attention_mask)
        self._lengths.copy_(on_device(self._decoder.prompt_lengths, self._lengths.device))
        self._depth.zero_()

    @torch.no_grad()
    def prompt_logits(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits [prompts, columns] behind the prompts, and normalisers as :meth:`extend` gives them."""
        return self._logits(self._decoder.prompt_hidden)

    @torch.no_grad()
    def extend(self, tokens: torch.Tensor, parents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Read one token for each beam; does not wait for the device.

        Parameters
        ----------
        tokens, parents
            int64 [prompts, beam_width]: the token, and the beam of the same prompt that it continues; -1: there is no
            beam, and what its row of the results holds means nothing.

        Returns
        -------
        Logits [prompts * beam_width, columns], and float32 [prompts * beam_width] what normalises them over the whole
        vocabulary, where the columns are not that and it is wanted.
        """
        width = self._beam_width
        parent = self._prompt * width + parents.flatten().clamp(min=0)
        slots = self._row + self._depth * len(self._row)
        self._places.copy_(torch.cat([slots[:, None], self._places[parent, :-1]], dim=1))
        above = (self._column <= self._depth).expand_as(self._places)
        positions = self._lengths[self._prompt] + self._depth
        block = Block(
            batch=0,
            prompts=None,
            row=self._row.view(-1, width),
            flat=self._row,
            target=self._row,
            lengths=self._lengths,
            positions=positions.view(-1, width),
        )
        hidden = self._forward.run(tokens.flatten().clamp(min=0), positions, Step(slots, self._places, above, [block]))
        self._depth.add_(1).clamp_(max=len(self._column) - 1)
        return self._logits(hidden)

    def _logits(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self._over_vocab and self._token_ids is not None:
            return self._decoder.normalized_logits(hidden, self._token_ids, self._temperature)
        return self._decoder.logits(hidden, self._token_ids, self._temperature), None
