"""Write docs/tested_versions.md from the environments that the tests ran in: tested_versions.py NEWEST OLDEST."""

import json
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "tested_versions.md"
PACKAGES = ["torch", "transformers", "tokenizers", "triton", "numpy", "accelerate", "peft", "safetensors", "pyarrow"]
LIST = """
import importlib.metadata, json, platform, sys
versions = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        versions[name] = "not installed"
print(json.dumps(versions))
"""


def versions(python: str) -> dict[str, str]:
    listed = subprocess.run([python, "-c", LIST, *PACKAGES], check=True, capture_output=True, text=True).stdout
    return json.loads(listed)


newest, oldest = (versions(python) for python in sys.argv[1:3])
rows = "".join(f"| {name} | {oldest[name]} | {newest[name]} |\n" for name in newest)
PAGE.write_text(
    f"""# Tested versions

The tests run on two sets of releases at every change: the newest that `pip` finds with nothing pinned, and the oldest
that `pyproject.toml` allows. `.ci/run` writes this table after it has run them.

| package | oldest | newest |
|---|---|---|
{rows}"""
)
print(PAGE.read_text())
