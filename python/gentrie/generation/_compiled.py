"""Models that ``torch.compile`` has wrapped."""

from __future__ import annotations

import warnings
from typing import Any


def uncompiled(model: Any, *, stacklevel: int) -> Any:
    """The model itself, with a warning where it was compiled; ``stacklevel`` as of :func:`warnings.warn` there."""
    if not hasattr(model, "_orig_mod"):
        return model
    warnings.warn(
        "the compiled model runs uncompiled: its inputs change their shape at each call", stacklevel=stacklevel + 1
    )
    return model._orig_mod
