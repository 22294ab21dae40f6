"""The example of Ray Data: the results of one process, and a folder that is gone on with."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM

pytest.importorskip("ray.data", reason="Ray Data is not installed")
import ray

from gentrie import TokenTrie
from gentrie.generation import Recommendation, RecommendationStore, recommend
from gentrie.generation.beam_search import beam_search

EXAMPLE = Path(__file__).parents[2] / "examples" / "recommend_ray.py"


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("recommend_ray", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield module
    ray.shutdown()


def test_the_results_of_one_process_and_what_was_there_is_not_searched_again(
    example: ModuleType, tmp_path: Path
) -> None:
    model, trie, prompts = example.stand_in(tmp_path, 11)
    label = f"{model.resolve()}, {trie.resolve()}, 4 items"
    RecommendationStore(tmp_path / "new", prompts, label=label).write({5: Recommendation([[123456]], [1.5])})
    files = {"--model": model, "--trie": trie, "--prompts": tmp_path / "prompts.jsonl", "--folder": tmp_path / "new"}
    files["--prompts"].write_text("".join(f"{prompt}\n" for prompt in prompts))
    arguments = [str(part) for pair in files.items() for part in pair]
    found = example.main([*arguments, "--items", "4", "--batch-size", "3"])

    search = functools.partial(
        beam_search, AutoModelForCausalLM.from_pretrained(model), trie=TokenTrie.load(trie), beam_width=4
    )
    expected = recommend(prompts, search, batch_size=3, progress=False)
    assert found[5] == Recommendation([[123456]], [1.5])
    for number in {*range(11)} - {5}:
        assert found[number].item_ids == expected[number].item_ids
        assert found[number].scores == pytest.approx(expected[number].scores, abs=1e-5)
    assert RecommendationStore(tmp_path / "new", prompts, label=label).read() == dict(enumerate(found))
    with pytest.raises(ValueError, match="under another label"):
        example.main([*arguments, "--items", "5"])
