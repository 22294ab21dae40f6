"""What the tests of training share; the tiny models of the generation tests serve here too."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("generation", "python")]


@pytest.fixture(params=[1, 24, 1 << 20], ids=["smallest blocks", "small blocks", "blocks as they are"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much is taken at a time: small sizes send small batches through every chunked path."""
    from gentrie.training import _head, _hidden, _logits

    size = int(request.param)
    monkeypatch.setattr(_head.Head, "block_size", property(lambda self: max(2, size // self.weight.shape[1])))
    monkeypatch.setattr(_hidden, "_MOST_ROWS", max(2, size // 8))
    monkeypatch.setattr(_logits, "_CHUNK", size)
    monkeypatch.setattr(_logits, "_SMALL", min(size, _logits._SMALL))
    return size
