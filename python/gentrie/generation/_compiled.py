"""Models that ``torch.compile`` has wrapped, run without it."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any

from torch import nn


class Uncompiled:
    """A model that runs uncompiled within a ``with`` block, with one warning when this is made.

    Compiled code is specialised to shapes, and those of the searches here change at each call. All ways of compiling
    are undone, of the model and of the modules inside: ``torch.compile(model)`` (a wrapper), ``model.compile()`` (the
    module calls compiled code instead of its ``forward``) and ``model.forward = torch.compile(model.forward)``. The
    last two are attributes of the modules; they are set aside within the block, so that other threads may not use
    the model meanwhile, and put back behind it.

    Parameters
    ----------
    model
        Compiled or not.
    stacklevel
        As of :func:`warnings.warn`, from where this is made.

    Attributes
    ----------
    model : torch.nn.Module
        The model itself, out of its wrapper.
    """

    def __init__(self, model: Any, *, stacklevel: int) -> None:
        wrapped = hasattr(model, "_orig_mod")
        self.model: Any = model._orig_mod if wrapped else model
        self._parts: list[tuple[nn.Module, str, Any]] = []  # module, attribute, what it is without compilation
        for module in self.model.modules() if isinstance(self.model, nn.Module) else ():
            if getattr(module, "_compiled_call_impl", None) is not None:
                self._parts.append((module, "_compiled_call_impl", None))
            forward = module.__dict__.get("forward")
            plain = getattr(forward, "_torchdynamo_orig_callable", None)
            # Functions that wrap a compiled one, such as hooks of accelerate, carry copies of its attributes.
            if plain is not None and getattr(forward, "_torchdynamo_wrapper_id", id(forward)) == id(forward):
                self._parts.append((module, "forward", plain))
        self._compiled: list[Any] = []
        if wrapped or self._parts:
            warnings.warn(
                "the compiled model runs uncompiled: its inputs change their shape at each call",
                stacklevel=stacklevel + 1,
            )

    def __enter__(self) -> Any:
        self._compiled = [getattr(module, name) for module, name, _ in self._parts]
        for module, name, plain in self._parts:
            setattr(module, name, plain)
        return self.model

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for (module, name, _), compiled in zip(self._parts, self._compiled, strict=True):
            setattr(module, name, compiled)
