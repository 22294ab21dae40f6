"""How a ``custom_generate`` gets arguments of its own from ``generate``, whichever version of transformers runs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import transformers
from packaging.version import Version

PASSED_ON = Version(transformers.__version__) >= Version("4.57")


def custom(function: Callable[..., Any], **own: Any) -> dict[str, Any]:
    """Arguments of ``generate``: the function and its own, which versions before 4.57 refuse unless they are bound."""
    if PASSED_ON:
        return {"custom_generate": function, **own}
    return {"custom_generate": partial(function, **own)}
