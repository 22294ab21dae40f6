"""Beam search over a catalog in lock-step, on a device and of fixed shape: nothing waits for the host."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch

from gentrie import _validate
from gentrie.device._beam_history import BeamHistory, FoundItems
from gentrie.device._beam_pool import BeamPool
from gentrie.device._residents import Residents
from gentrie.device.bank import FilterBank, TrieBank
from gentrie.device.trie import DeviceFilter, DeviceTrie
from gentrie.kernels.beam_step import MAX_BEAM_WIDTH, beam_step
from gentrie.trie import TokenTrie


class DeviceBeamStepper:
    """The token-synchronous beam search of ``transformers`` for prompts in lock-step, all of it on a device.

    Every step takes the logits of all beams of all prompts and says how each goes on. Buffers keep their addresses and
    a step's shapes do not depend on what it finds, so that it can be captured in a CUDA graph once, replayed at each
    depth, for other requests and for other catalogs in a bank::

        stepper.reset()
        tokens, parents = stepper.step(logits_behind_the_prompts)
        for _ in range(stepper.max_length - 1):
            tokens, parents = stepper.step(logits_behind(tokens, parents))
        items = stepper.result()

    Items and scores are those of :class:`gentrie.generation.BeamStepper`, computed in float32. That one asks a model
    for branching rows alone, for which the host has to read scores at each depth; this one asks for all rows.

    Where every sequence has the same length, a step is one ``beam_step`` and the copies of what it gives. Otherwise it
    keeps twice as many continuations, of which those that complete an item go to a pool of the ``beam_width`` best.

    Parameters
    ----------
    trie
        The catalog, also one on a device, or a bank of them.
    num_prompts, beam_width
        Prompts, and beams of each, 1 to 512.
    device
        Where a :class:`TokenTrie` is put: the GPU by default, if there is one.
    scope
        ``"trie"``: softmax over the valid tokens; ``"vocab"``: over the whole vocabulary.
    length_penalty, early_stopping
        As in ``generate``.
    max_length
        Tokens at most, by default those of the longest sequence that is resident; longer sequences are not found.
    trie_index
        With a bank: the row of each prompt's trie, integers [num_prompts].
    filters, filter_index
        A filter for all prompts, or a bank of them and the row of each prompt's, -1 for none.
    fixed_length
        Whether all sequences have the same length, which spares most of a step's operations. If it is said of a
        catalog that has others, those of other lengths than ``max_length`` are not found. Default: read from the
        catalog, in time linear in its size; False for a bank.

    Attributes
    ----------
    states, scores
        int64 and float32 [num_prompts * beam_width] on the device, -1 and -inf where there is no beam.
    tokens, parents
        int64 [num_prompts, beam_width] on the device, what the last step chose: each beam's token, and the beam of the
        same prompt that it continues; -1 where there is no beam.
    max_length
        Steps that a search takes at most.

    Raises
    ------
    ValueError, TypeError
        For values out of range and arguments that do not go together.
    """

    def __init__(
        self,
        trie: TokenTrie | DeviceTrie | TrieBank,
        *,
        num_prompts: int,
        beam_width: int = 10,
        device: torch.device | str | None = None,
        scope: Literal["trie", "vocab"] = "trie",
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        max_length: int | None = None,
        trie_index: Any = None,
        filters: DeviceFilter | FilterBank | None = None,
        filter_index: Any = None,
        fixed_length: bool | None = None,
    ) -> None:
        self.num_prompts = _validate.integer("num_prompts", num_prompts, 1, 2**24)
        self.beam_width = _validate.integer("beam_width", beam_width, 1, MAX_BEAM_WIDTH // 2)
        self._over_vocab = _validate.choice("scope", scope, ("trie", "vocab")) == "vocab"
        stopping = _validate.choice("early_stopping", early_stopping, (True, False, "never"))
        if isinstance(length_penalty, bool) or not np.isfinite(length_penalty):
            raise ValueError(f"length_penalty={length_penalty!r} is not a finite number")
        self._penalty = float(length_penalty)
        self._residents = Residents(trie, filters, self.num_prompts, self.beam_width, device)
        self.device = self._residents.device
        longest = self._residents.max_depth
        self.max_length = _validate.integer("max_length", longest if max_length is None else max_length, 1, 2**31 - 1)
        if self._residents.trie_rows is None:
            self.max_length = min(self.max_length, longest)
        if abs(self._penalty) * np.log(self.max_length + 1) > np.log(np.finfo(np.float32).max):
            raise ValueError(
                f"length_penalty={self._penalty}: {self.max_length} ** length_penalty is no float32, so that scores "
                "would not be numbers"
            )
        self._pool = None
        if not (self._residents.has_one_length() if fixed_length is None else fixed_length):
            self._pool = BeamPool(
                self.num_prompts, self.beam_width, self.max_length, self._penalty, stopping, self.device
            )
        self._columns = self.beam_width if self._pool is None else self._pool.columns
        shape = self.num_prompts, self.beam_width
        self._history = BeamHistory(*shape, self._columns, self.max_length, self.device)
        self.scores = torch.empty(shape[0] * shape[1], dtype=torch.float32, device=self.device)
        self._chosen = torch.empty(3, *shape, dtype=torch.int64, device=self.device)
        self.tokens, self.parents, self.states = self._chosen[0], self._chosen[1], self._chosen[2].view(-1)
        if trie_index is None and self._residents.trie_rows is not None:
            raise ValueError("trie_index is missing: the bank's row of each prompt")
        self.reset(trie_index=trie_index, filter_index=filter_index)

    @property
    def is_done(self) -> torch.Tensor:
        """bool [num_prompts] on the device: nothing more can come of the prompt's beams."""
        is_last = self._history.depth >= self.max_length
        return (self.scores.view(self.num_prompts, -1)[:, 0] == -torch.inf) | is_last

    @property
    def nbytes(self) -> int:
        """Bytes on the device beside tries and filters, most of them the history of the search."""
        return self._history.nbytes + self.scores.nbytes + self._chosen.nbytes

    def reset(self, *, trie_index: Any = None, filter_index: Any = None) -> None:
        """Begin a search for other prompts, in the same buffers. Does not wait for the device.

        Parameters
        ----------
        trie_index, filter_index
            As for the constructor; None: as before. Tensors on a GPU are not checked: prompts with rows of a bank that
            are empty find nothing.

        Raises
        ------
        ValueError, TypeError
            For values out of range, rows that are empty, and an index without a bank.
        """
        self._residents.choose(trie_index, filter_index)
        self._history.reset()
        if self._pool is not None:
            self._pool.reset()
        self._chosen.fill_(-1)[2, :, 0] = 0
        self.scores.fill_(-torch.inf).view(self.num_prompts, -1)[:, 0] = 0.0
        self._is_fresh = True

    def stay_on(self, row: int, former: int) -> None:
        """Let prompts that are being searched for finish on a trie that :meth:`TrieBank.swap` has replaced.

        Parameters
        ----------
        row, former
            What was swapped, and what :meth:`TrieBank.swap` returned. In the order of the stream, without waiting.
        """
        if self._residents.trie_rows is None:
            raise ValueError("stay_on needs a TrieBank")
        self._residents.trie_rows.replace(row, former)

    @torch.no_grad()
    def step(
        self, logits: torch.Tensor, *, normalizers: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the logits of all beams. Does not wait for the device; steps behind the last change no result.

        Parameters
        ----------
        logits
            bfloat16, float16 or float32 [num_prompts * beam_width, V], rows in the order of :attr:`states`, those
            without a beam with any content; for the first step also [num_prompts, V]. V is at least the catalog's
            ``vocab_size``, or, where there is one trie, the number of tokens in ``trie.vocabulary``: these alone.
        normalizers
            float32 [rows]: log of the sum of exponentials of each row over the whole vocabulary, if it is known. Needed
            under ``scope="vocab"`` where the columns are the catalog's alone.

        Returns
        -------
        :attr:`tokens` and :attr:`parents`, the same tensors each time.

        Raises
        ------
        ValueError
            For other shapes and devices. Nothing has changed then.
        """
        rows, one_each = len(self.states), self._is_fresh and len(logits) == self.num_prompts
        if logits.ndim != 2 or (len(logits) != rows and not one_each):
            raise ValueError(f"logits has shape {tuple(logits.shape)}, expected [{rows}, V]")
        if logits.device != self.device:
            raise ValueError(f"logits is on {logits.device}, the search on {self.device}")
        narrow = self._residents.check_columns(logits.shape[1])
        if normalizers is not None and normalizers.shape != logits.shape[:1]:
            raise ValueError(f"normalizers has shape {tuple(normalizers.shape)}, expected [{len(logits)}]")
        if self._over_vocab and narrow and normalizers is None:
            raise ValueError('normalizers is missing: scope="vocab" needs it beside the catalog\'s columns')
        states, scores = self.states, self.scores
        if one_each:
            states, scores = (part.view(self.num_prompts, -1)[:, 0].contiguous() for part in (states, scores))
        scores, parents, tokens, states = beam_step(
            logits,
            states,
            scores,
            len(logits) // self.num_prompts,
            self._columns,
            self._over_vocab,
            normalizers if self._over_vocab else None,
            narrow,
            self._residents.max_branching,
            *self._residents.arguments(of_prompts=one_each),
        )
        if self._pool is None:
            torch.stack((tokens, parents, states), out=self._chosen)
            self._history.write(scores, self._chosen[:2])
        else:
            self._history.write(scores, torch.stack((tokens, parents)))
            live = self._pool.take(self._history.depth, scores, states, tokens, parents, self._residents.num_nodes())
            self._history.write_ranks(live.ranks)
            torch.stack((live.tokens, live.parents, live.states), out=self._chosen)
            scores = live.scores
        self._history.advance()
        self.scores.copy_(scores.flatten())
        self._is_fresh = False
        return self.tokens, self.parents

    def result(self, limit: int | None = None) -> list[FoundItems]:
        """What each prompt found, the first ``limit``. The only call that waits for the device.

        Raises
        ------
        ValueError
            If a prompt is not done; naming a prompt whose logits of valid tokens were not numbers; for a row of a bank
            that has become empty.
        """
        running = torch.nonzero(~self.is_done).flatten().tolist()
        history = self._history.read()
        if running:
            raise ValueError(f"prompt {running[0]} is not finished after {len(history.scores)} steps")
        for prompt in np.flatnonzero(np.isnan(history.scores).any((0, 2)))[:1]:
            raise ValueError(f"logits of prompt {prompt} are not numbers")
        if self._pool is not None:
            ends = self._pool.on_host()
        else:
            last = self.max_length - 1
            rows = history.scores[last] if len(history.scores) > last else np.empty((self.num_prompts, 0))
            ends = [[(last, int(at)) for at in np.flatnonzero(row != -np.inf)] for row in rows]
        pairs = self._residents.on_host()
        return [
            history.found(prompt, own, trie, item_filter, self._penalty, limit)
            for prompt, (own, (trie, item_filter)) in enumerate(zip(ends, pairs, strict=True))
        ]

    def num_beams(self) -> list[int]:
        """Beams of all prompts that each step so far left alive. Waits for the device."""
        return self._history.read().num_beams()
