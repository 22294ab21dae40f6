"""What the tests of training share."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")


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
