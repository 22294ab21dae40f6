"""The measurements of Table A2: answers generated with ``transformers``, one method after the other."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from tqdm import tqdm
from transformers import (
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from gentrie import TokenTrie, TrieMatcher
from gentrie.bench.baselines.dict_trie import DictTrie
from gentrie.bench.baselines.published import PublishedLookup, PublishedProcessor
from gentrie.bench.baselines.transformers_prefix import DictTriePrefix
from gentrie.bench.beams import measure_scopes
from gentrie.bench.catalogs import TokenisedCatalog, tokenised_catalogs
from gentrie.bench.harness import Spread, in_turns, torch_threads
from gentrie.bench.models import Model, build_model, shape_of
from gentrie.bench.responses import Answer, ControlTokens, ScriptProcessor, write_answers
from gentrie.bench.table_a2 import (
    GENTRIE,
    PUBLISHED,
    SKIPPING,
    TRANSFORMERS,
    UNCONSTRAINED,
    CatalogFigures,
    MethodFigures,
    Settings,
)
from gentrie.generation import TrieLogitsProcessor, generate_with_items

Processor: TypeAlias = Callable[..., torch.Tensor]
# Prompts of a beam search.
_BEAM_PROMPTS = 2


def measure(settings: Settings, *, progress: bool = False) -> dict[str, CatalogFigures]:
    """Run every catalog of ``settings`` and return its figures by name; see ``table_a2.run``."""
    device = torch.device(settings.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {settings.device!r} is asked for, but torch sees no CUDA device")
    vocab_size = shape_of(settings.model)["vocab_size"]
    catalogs = tokenised_catalogs(settings.catalogs, vocab_size, settings.real, progress=progress)
    widest = max((catalog.vocab_size for catalog in catalogs), default=0)
    model = build_model(settings.model, device, at_least=widest, seed=settings.seed)
    return {catalog.name: _measure_catalog(catalog, model, settings, progress=progress) for catalog in catalogs}


def _measure_catalog(catalog: TokenisedCatalog, model: Model, settings: Settings, *, progress: bool) -> CatalogFigures:
    device, vocab_size = model.device, model.config.vocab_size
    control = ControlTokens.unused(catalog.values, vocab_size)
    answers = write_answers(
        catalog.titles(),
        control,
        answers=settings.warmup + settings.answers,
        prompt_tokens=settings.prompt_tokens,
        seed=settings.seed,
    )
    warmup, timed = answers[: settings.warmup], answers[settings.warmup :]
    synchronise = torch.cuda.synchronize if device.type == "cuda" else _nothing_to_wait_for
    trie = TokenTrie.from_sequences((catalog.values, catalog.indptr), vocab_size=vocab_size, end_token_id=control.end)
    methods = _methods(catalog, trie, control, device, synchronise)
    bench = _Bench(model, control, methods, synchronise)
    total = len(methods) * (len(warmup) + settings.repetitions * len(timed))
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    with (
        torch_threads(settings.threads),
        tqdm(total=total, desc=catalog.name, unit="answer", disable=not progress) as bar,
    ):
        bench.repetition(warmup, bar)
        for _ in range(settings.repetitions):
            for name, figures in bench.repetition(timed, bar).items():
                rounds[name].append(figures)
        beam_search = measure_scopes(
            model,
            trie,
            torch.from_numpy(np.stack([answer.prompt for answer in answers[:_BEAM_PROMPTS]])).to(device),
            beams=settings.beams,
            repetitions=settings.repetitions,
        )
    inside = sum(int(answer.inside.sum()) for answer in timed)
    return CatalogFigures(
        items=catalog.num_items,
        tokens_per_item=len(catalog.values) / catalog.num_items + 1,
        tokens_inside=inside,
        tokens_outside=sum(len(answer.tokens) for answer in timed) - inside,
        tokens_branching=sum(_branching(trie, control, answer) for answer in timed),
        methods=_summarise(rounds),
        beam_search=beam_search,
    )


def _branching(trie: TokenTrie, control: ControlTokens, answer: Answer) -> int:
    """Tokens inside the items of an answer that were not the only choice."""
    matcher = TrieMatcher(trie, begin_token_id=control.begin, eos_token_id=control.eos, unique=True)
    count = 0
    for token, inside in zip(answer.tokens.tolist(), answer.inside.tolist(), strict=True):
        count += inside and matcher.find_jump_forward_tokens().size == 0
        if not matcher.accept_token(token):
            raise RuntimeError(f"token {token} of an answer may not follow")
    return count


def _nothing_to_wait_for() -> None:
    """The CPU has finished when a call returns."""


class _Stopwatch:
    """Times each call of a function, the device's share included."""

    def __init__(self, function: Callable[..., Any], synchronise: Callable[[], object]) -> None:
        self._function = function
        self._synchronise = synchronise
        self.seconds: list[float] = []

    def __call__(self, *arguments: Any) -> Any:
        self._synchronise()
        start = time.perf_counter()
        result = self._function(*arguments)
        self._synchronise()
        self.seconds.append(time.perf_counter() - start)
        return result

    def take(self) -> np.ndarray:
        """Return the seconds of all calls since the last ``take``, float64 [calls]."""
        taken = np.array(self.seconds)
        self.seconds.clear()
        return taken


@dataclass(frozen=True)
class _Method:
    """A processor, and the same with stopwatches on it and on its lookup of allowed tokens; or arguments that make
    ``generate`` another."""

    plain: Processor | None = None
    call: _Stopwatch | None = None
    lookup: _Stopwatch | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        wrap: Callable[[Callable[..., Any]], Processor],
        lookup: Callable[..., Any],
        synchronise: Callable[[], object],
    ) -> _Method:
        timed_lookup = _Stopwatch(lookup, synchronise)
        return cls(wrap(lookup), _Stopwatch(wrap(timed_lookup), synchronise), timed_lookup)


@dataclass
class _Tally:
    """Sums over the answers of one repetition."""

    seconds: float = 0.0
    called: float = 0.0
    tokens: int = 0
    steps: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def add_speed(self, seconds: float, answer: Answer) -> None:
        self.seconds += seconds
        self.tokens += len(answer.tokens) - 1

    def add_steps(self, method: _Method, answer: Answer) -> None:
        inside, last = answer.inside, answer.item.max()
        if method.lookup is not None:
            lookups = method.lookup.take()
            self.steps["lookup_ms_inside"].append(lookups[inside])
            self.steps["lookup_ms_outside"].append(lookups[~inside])
            self.steps["lookup_ms_first_item"].append(lookups[answer.item == 0])
            self.steps["lookup_ms_last_item"].append(lookups[answer.item == last])
        if method.call is not None:
            calls = method.call.take()
            self.called += float(calls[1:].sum())
            self.steps["call_ms_inside"].append(calls[inside])
            self.steps["call_ms_outside"].append(calls[~inside])

    def figures(self) -> dict[str, float]:
        figures = {"tokens_per_second": self.tokens / self.seconds}
        for name, seconds in self.steps.items():
            figures[name] = float(np.concatenate(seconds).mean()) * 1e3
        if self.called:
            figures["call_share"] = self.called / self.seconds
        return figures


class _FirstTokenClock(StoppingCriteria):
    """Stops nothing; notes when the first token of an answer is out."""

    def __init__(self, device: torch.device, synchronise: Callable[[], object]) -> None:
        self._go_on = torch.zeros(1, dtype=torch.bool, device=device)
        self._synchronise = synchronise
        self.time: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.time is None:
            self._synchronise()
            self.time = time.perf_counter()
        return self._go_on


class _Bench:
    """Has answers given by every method in turn."""

    def __init__(
        self,
        model: Model,
        control: ControlTokens,
        methods: Mapping[str, _Method],
        synchronise: Callable[[], object],
    ) -> None:
        self._model = model
        self._control = control
        self._methods = methods
        self._synchronise = synchronise

    def repetition(self, answers: Sequence[Answer], bar: tqdm[Any]) -> dict[str, dict[str, float]]:
        """Give all answers once and return the figures of each method."""
        tallies = {name: _Tally() for name in self._methods}
        for number, name in in_turns(tuple(self._methods), len(answers)):
            answer, method, tally = answers[number], self._methods[name], tallies[name]
            # Stopwatches make the host wait for a GPU at every step, so there the speed is taken without.
            if self._model.device.type != "cpu":
                tally.add_speed(self._give(answer, name, method.plain), answer)
                if method.call is not None:
                    self._give(answer, name, method.call)
            else:
                tally.add_speed(self._give(answer, name, method.call), answer)
            tally.add_steps(method, answer)
            bar.update()
        return {name: tally.figures() for name, tally in tallies.items() if tally.tokens}

    def _give(self, answer: Answer, name: str, processor: Processor | None) -> float:
        """Generate one answer, check it, and return the seconds from its first token to its last."""
        device = self._model.device
        clock = _FirstTokenClock(device, self._synchronise)
        script = ScriptProcessor(answer, self._control, device)
        processors = [script] if processor is None else [script, processor]
        prompt = torch.from_numpy(answer.prompt)[None].to(device)
        output = self._model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(answer.tokens),
            do_sample=False,
            pad_token_id=self._control.eos,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=StoppingCriteriaList([clock]),
            **self._methods[name].arguments,
        )
        self._synchronise()
        end = time.perf_counter()
        said = output[0, len(answer.prompt) :].cpu().numpy()
        expected = answer.unconstrained(self._control) if name == UNCONSTRAINED else answer.tokens
        if not np.array_equal(said, expected):
            step = int(np.argmax(said != expected)) if len(said) == len(expected) else len(said)
            raise RuntimeError(f"{name}: token {step} of an answer is {said[step]}, its script says {expected[step]}")
        assert clock.time is not None
        return end - clock.time


def _methods(
    catalog: TokenisedCatalog,
    trie: TokenTrie,
    control: ControlTokens,
    device: torch.device,
    synchronise: Callable[[], object],
) -> dict[str, _Method]:
    titles = catalog.titles()
    dict_trie = DictTrie([*title, control.end] for title in titles)
    published = PublishedLookup(
        dict_trie, begin_token_id=control.begin, end_token_id=control.end, eos_token_id=control.eos
    )
    prefix = DictTriePrefix(
        dict_trie,
        begin_token_id=control.begin,
        end_token_id=control.end,
        eos_token_id=control.eos,
        vocab_size=trie.vocab_size,
        device=device,
    )
    skipping = {
        "custom_generate": generate_with_items,
        "trie": trie,
        "begin_token_id": control.begin,
        "eos_token_id": control.eos,
        "unique": True,
    }
    return {
        UNCONSTRAINED: _Method(),
        PUBLISHED: _Method.of(PublishedProcessor, published, synchronise),
        TRANSFORMERS: _Method.of(
            lambda lookup: PrefixConstrainedLogitsProcessor(lookup, num_beams=1), prefix, synchronise
        ),
        GENTRIE: _gentrie(trie, control, synchronise),
        SKIPPING: _Method(arguments=skipping),
    }


def _gentrie(trie: TokenTrie, control: ControlTokens, synchronise: Callable[[], object]) -> _Method:
    plain, timed = (
        TrieLogitsProcessor(trie, begin_token_id=control.begin, eos_token_id=control.eos, unique=True) for _ in range(2)
    )
    # The lookup is not an argument of the processor, so its stopwatch goes into the place of the method.
    lookup = _Stopwatch(timed._rules.allowed, synchronise)
    timed._rules.allowed = lookup  # type: ignore[assignment, method-assign]
    return _Method(plain, _Stopwatch(timed, synchronise), lookup)


def _summarise(rounds: Mapping[str, list[dict[str, float]]]) -> dict[str, MethodFigures]:
    free = [figures["tokens_per_second"] for figures in rounds[UNCONSTRAINED]]
    summary = {}
    for name, taken in rounds.items():
        spreads = {figure: Spread.of([figures[figure] for figures in taken]) for figure in taken[0]}
        speedup = Spread.of([figures["tokens_per_second"] / base for figures, base in zip(taken, free, strict=True)])
        summary[name] = MethodFigures(speedup=speedup, **spreads)
    return summary
