"""The example trains, recommends and saves, from data made here and from files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from gentrie import TokenTrie, datasets

pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "train_bear.py"
    spec = importlib.util.spec_from_file_location("train_bear", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("loss", ["bear", "msl", "sft"])
def test_on_data_made_here(example: ModuleType, loss: str, tmp_path: Path) -> None:
    arguments = ["--loss", loss, "--items", "60", "--epochs", "1", "--users", "4", "--output", str(tmp_path)]
    metrics = example.main(arguments)
    assert 0 <= metrics["eval_ndcg@10"] <= metrics["eval_hr@10"] <= 1
    assert TokenTrie.load(tmp_path / "catalog.safetensors").num_items == 60
    assert (tmp_path / "model.safetensors").is_file()


def test_on_files(example: ModuleType, tmp_path: Path) -> None:
    catalog = datasets.load("steam", num_items=60)
    ids = [1000 + 7 * row for row in range(60)]  # ids of their own, not row numbers
    lines = [json.dumps({"item_id": i, "title": title}) for i, title in zip(ids, catalog.titles, strict=True)]
    (tmp_path / "catalog.jsonl").write_text("\n".join(lines))
    rows = [json.dumps({"item_ids": [ids[(start + step) % 60] for step in range(4)]}) for start in range(40)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "test.jsonl").write_text("\n".join(rows[:3]))
    files = [part for name in ("catalog", "train", "test") for part in (f"--{name}", str(tmp_path / f"{name}.jsonl"))]
    metrics = example.main([*files, "--epochs", "1", "--output", str(tmp_path / "model")])
    assert metrics["step"] == 3
