"""What ``gentrie.kernels`` launches, read from its source."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from gentrie import kernels

OF_LOSSES = {
    "bear_loss_kernel",
    "head_gradient_kernel",
    "hidden_gradient_kernel",
    "label_nodes_kernel",
    "log_prob_gradient_kernel",
    "scale_rows_kernel",
    "topb_threshold_kernel",
    "trie_linear_kernel",
}
"""Those that ``compile_losses.py`` compiles; ``sm90.py`` has all others."""


def modules() -> list[ModuleType]:
    return [import_module(f"{kernels.__name__}.{module.name}") for module in iter_modules(kernels.__path__)]


def launched() -> set[str]:
    """Names of all functions under ``@triton.jit`` that some module starts by ``name[grid](...)``."""
    jitted, started = set(), set()
    for module in modules():
        assert module.__file__ is not None
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.FunctionDef):
                decorators = [each.func if isinstance(each, ast.Call) else each for each in node.decorator_list]
                if any(ast.unparse(each) == "triton.jit" for each in decorators):
                    jitted.add(node.name)
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript):
                started.add(ast.unparse(node.func.value).rpartition(".")[2])
    return jitted & started
