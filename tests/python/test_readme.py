"""The Python of the README, and of the pages that take the same names for granted, runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import gentrie  # noqa: E402
from gentrie import datasets  # noqa: E402

ROOT = Path(__file__).parents[2]


def examples(page: str = "README.md") -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)


SEARCHES, FILTERS, GPU = (f"docs/howto/{name}.md" for name in ("searches", "filters", "gpu"))


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the examples take for granted."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    catalog = datasets.load("steam", num_items=60)
    tokenizer = catalog.train_tokenizer(600)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer) + 1100,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    rng = np.random.default_rng(0)
    np.save("codes.npy", rng.integers(0, 256, (50, 4)))
    return {
        "np": np,
        "titles": catalog.titles,
        "tokenizer": tokenizer,
        "model": transformers.LlamaForCausalLM(config).eval(),
        "prompts": ["After a game of chess\n", "Next:\n"],
        "item_tokens": tokenizer.encode(catalog.titles[7], add_special_tokens=False),
    }


def test_items_inside_free_text(names: dict[str, Any]) -> None:
    source = examples()[0].replace("logits_processor=", "max_new_tokens=8, logits_processor=")
    exec(source, names)
    assert 7 in names["trie"].resolve([*names["item_tokens"], names["end"]])


def test_the_response_is_one_item(names: dict[str, Any]) -> None:
    exec(
        "import gentrie\nfrom gentrie.generation import TrieLogitsProcessor, trie_beam_search\n" + examples()[1], names
    )
    rows = [row[: row.index(names["eos"])] for row in names["output"][:, names["width"] :].tolist()]
    assert len(rows) == 20
    found = [items.tolist() for own in names["found"].item_ids for items in own]
    assert [names["trie"].resolve(row).tolist() for row in rows] == found  # of both calls
    assert all(found)


def test_searches_and_training(names: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    exec(
        "import gentrie\nfrom gentrie.generation import TrieLogitsProcessor, trie_beam_search\n" + examples()[1], names
    )
    tokenizer, eos, begin = names["tokenizer"], names["eos"], 600
    item_trie = gentrie.TokenTrie.from_titles(names["titles"], tokenizer, end_token_id=601, vocab_size=1700)
    names |= {"item_trie": item_trie, "begin": begin, "free_inputs": {"input_ids": torch.tensor([[40, 50, begin]])}}
    exec(examples(SEARCHES)[0].replace("unique=True", "unique=True, max_new_tokens=20"), names)
    assert [len(items) for items in names["found"].item_ids] == [10, 10]
    assert names["text"].sequences.shape[1] > 3

    title = [*tokenizer.encode("\n" + names["titles"][3], add_special_tokens=False)[1:], eos]
    names |= {
        "arguments": transformers.TrainingArguments(output_dir=str(tmp_path), max_steps=2, report_to=[], use_cpu=True),
        "examples": [{"prompt_ids": [40, 41], "response_ids": title}] * 4,
        "hidden": torch.randn(1, len(title), 16),
        "labels": torch.tensor([title]),
    }
    exec(examples()[2], names)
    assert names["trainer"].state.global_step == 2
    assert names["loss"].isfinite()


def test_semantic_ids(names: dict[str, Any]) -> None:
    names |= {"first_code_token": 600, "eos": 2, "in_stock": [3, 4], "logits": torch.zeros(1, 1700)}
    source = examples()[3].replace("len(tokenizer)", "1700")
    exec("import gentrie\n" + source, names)
    assert names["matcher"].num_accepted == 1
    assert set(names["trie"].items_below(names["matcher"].state)) & {3, 4}


def test_filters_and_catalogs_that_change(names: dict[str, Any]) -> None:
    codes = np.random.default_rng(0).integers(0, 4, (50, 4))
    semantic_ids = {"token_ids": (0, 4), "vocab_size": 100}
    names |= {
        "trie": gentrie.TokenTrie.from_semantic_ids(codes, **semantic_ids),
        "in_stock": np.arange(51) < 30,  # the new item is not
        "adult_ids": [1, 2],
        "seen_ids": [3],
        "new_codes": np.concatenate([codes, codes[:1]]),
        "semantic_ids": semantic_ids,
    }
    exec("import gentrie\n" + examples(FILTERS)[0].replace("**semantic_ids))", "**semantic_ids)).result()"), names)
    assert set(names["allowed"].items_below(0)) == set(range(30)) - {1, 2, 3}
    assert set(names["catalog"].current.filters["shop"].items_below(0)) == set(range(30)) - {1, 2, 17}
    assert names["catalog"].current.trie.num_items == 51


def test_on_a_gpu(names: dict[str, Any]) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (400, 4))
    trie = gentrie.TokenTrie.from_semantic_ids(codes, token_ids=(600, 16), vocab_size=1700)
    logits, input_ids = torch.zeros(2, 1700), torch.tensor([[40, 41], [42, 43]])
    names |= {"trie": trie, "in_stock": np.arange(400) < 90, "logits": logits, "input_ids": input_ids}
    exec("import gentrie\n" + examples(GPU)[0], names)
    assert {int(item) for items in names["found"].item_ids[0] for item in items} <= set(range(90))
    assert len(names["found"].item_ids[0]) == 50
    allowed = gentrie.allocate_token_bitmask(1, trie.vocab_size)
    matcher = gentrie.TrieMatcher(trie)
    matcher.accept_token(int(names["tokens"][0, 0]))
    matcher.fill_next_token_bitmask(allowed)
    assert torch.equal(names["bitmask"][:1], torch.as_tensor(allowed))
