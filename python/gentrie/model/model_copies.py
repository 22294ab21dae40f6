"""Copies of a model that share its weights and differ in a setting, so that the model itself is never altered.

Other threads may use the model, or search with it, at the same time, and whatever interrupts a search leaves the model
as it was.
"""

from __future__ import annotations

import copy
import functools
import types
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PretrainedConfig


def with_attention(model: Any, name: str) -> Any:
    """Return a copy whose layers use the attention function that is registered under ``name``."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        _copy_configs(vars(module), configs)
    for config in configs.values():
        config._attn_implementation_internal = name
    return _copied(model, configs)


def own_modules(model: Any) -> Any:
    """Return a copy to which hooks may be added."""
    return _copied(model, {})


def uncompiled(model: Any, *, stacklevel: int) -> Any:
    """Return the model itself, or with a warning a copy that runs uncompiled where some of it is compiled.

    Compiled code is specialised to shapes, and those of the searches here change at each call. All ways of compiling
    are undone, of the model and of the modules inside: ``torch.compile(model)`` (a wrapper), ``model.compile()`` (the
    module calls compiled code instead of its ``forward``) and ``model.forward = torch.compile(model.forward)``.

    Parameters
    ----------
    model
        Compiled or not.
    stacklevel
        As of :func:`warnings.warn`, from where this is called.
    """
    plain = _unwrapped(model)
    if not isinstance(plain, nn.Module) or (plain is model and not any(map(_is_compiled, plain.modules()))):
        return plain
    warnings.warn(
        "the compiled model runs uncompiled: its inputs change their shape at each call", stacklevel=stacklevel + 1
    )
    return _copied(plain, {})


def _copy_configs(attributes: dict[str, Any], configs: dict[int, Any]) -> None:
    """Add copies of the configs among some attributes, and of those that they hold for parts of a model."""
    for config in attributes.values():
        if isinstance(config, PretrainedConfig) and id(config) not in configs:
            configs[id(config)] = own = copy.copy(config)
            _copy_configs(vars(config), configs)
            vars(own).update({name: configs.get(id(value), value) for name, value in vars(config).items()})


def _unwrapped(module: Any) -> Any:
    return getattr(module, "_orig_mod", module)


def _is_compiled(module: nn.Module) -> bool:
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or any(_plain(value) is not value for value in vars(module).values())
    )


def _plain(value: Any) -> Any:
    """A function as it was before it was compiled; anything else as it is."""
    if not callable(value) or isinstance(value, nn.Module):
        return value
    # Functions that wrap a compiled one, such as hooks of accelerate, carry copies of its attributes.
    wraps = getattr(value, "_torchdynamo_wrapper_id", id(value)) != id(value)
    return value if wraps else getattr(value, "_torchdynamo_orig_callable", value)


def _copied(model: Any, configs: dict[int, Any]) -> Any:
    """A copy of the modules with other configs and nothing compiled; leaves that have no config are shared.

    Parameters stay in the same dictionaries, as sharded models exchange them there. Hooks and buffers get dictionaries
    of their own: what a copy adds to them is not the model's.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        if hasattr(module, "_orig_mod"):
            continue
        own = any(id(value) in configs for value in vars(module).values())
        if module is model or module._modules or own or _is_compiled(module):
            copies[id(module)] = object.__new__(type(module))
    for module in model.modules():
        if id(module) in copies:
            vars(copies[id(module)]).update(_attributes(module, copies, configs))
    return copies[id(model)]


def _attributes(module: nn.Module, copies: dict[int, Any], configs: dict[int, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in vars(module).items():
        if name == "_modules":
            yield name, {key: copies.get(id(_unwrapped(child)), _unwrapped(child)) for key, child in value.items()}
        elif name == "_compiled_call_impl":
            yield name, None
        elif isinstance(value, dict) and name != "_parameters":
            yield name, copy.copy(value)
        else:
            yield name, _bound(_plain(configs.get(id(value), value)), copies)


def _bound(value: Any, copies: dict[int, Any]) -> Any:
    """A method or partial call of a module as one of its copy."""
    if isinstance(value, types.MethodType) and id(value.__self__) in copies:
        return types.MethodType(value.__func__, copies[id(value.__self__)])
    if isinstance(value, functools.partial):
        arguments = [copies.get(id(argument), argument) for argument in value.args]
        own = functools.partial(_bound(value.func, copies), *arguments, **value.keywords)
        vars(own).update(vars(value))
        return own
    return value
