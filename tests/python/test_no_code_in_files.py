"""Nothing that is read from a file can become code: no pickle, no eval, no loader that runs what it finds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("python/**/*.py"), *ROOT.glob("kernels/**/*.py")])
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "yaml", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "os.system", "os.popen"}


def faults(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            if node.__class__ is ast.Import or not node.level:
                yield from (f"line {node.lineno}: {name}" for name in names if name.split(".")[0] in MODULES)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in CALLS:
                yield f"line {node.lineno}: {called}"
            for keyword in node.keywords:
                value = ast.unparse(keyword.value)
                if keyword.arg in ("allow_pickle", "trust_remote_code", "shell") and value != "False":
                    yield f"line {node.lineno}: {keyword.arg}={value}"
            if called.endswith("np.load") and not any(keyword.arg == "allow_pickle" for keyword in node.keywords):
                yield f"line {node.lineno}: {called} without allow_pickle=False"
            if called.endswith("Tokenizer.from_pretrained") and "trust_remote_code=False" not in ast.unparse(node):
                yield f"line {node.lineno}: {called} without trust_remote_code=False"


def test_sources() -> None:
    assert len(SOURCES) > 100
    found = [f"{path.relative_to(ROOT)}: {fault}" for path in SOURCES for fault in faults(ast.parse(path.read_bytes()))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from yaml import load",
        "torch.load(path)",
        "eval(text)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(name)",
        "subprocess.run(line, shell=True)",
    ],
)
def test_what_is_looked_for_is_found(line: str) -> None:
    assert len(list(faults(ast.parse(line)))) == 1
