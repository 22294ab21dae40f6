"""What a run of .ci/run leaves for readers: report.py NEWEST OLDEST STEPS README_LOG.

Writes docs/tested_versions.md from the two environments that the tests ran in (their interpreters), and
benchmarks/results/checks.json from the seconds of each step (lines of name, tab, seconds) and what the README's test
command printed.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tested_versions.md"
TIMES = ROOT / "benchmarks" / "results" / "checks.json"
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
CIRCUMSTANCES = "import json; from gentrie.bench.harness import circumstances; print(json.dumps(circumstances()))"


def printed_by(python: str, *arguments: str) -> dict:
    done = subprocess.run([python, "-c", *arguments], check=True, capture_output=True, text=True, cwd=ROOT)
    return json.loads(done.stdout)


newest_python, oldest_python, steps, log = sys.argv[1:]
newest, oldest = (printed_by(python, LIST, *PACKAGES) for python in (newest_python, oldest_python))
rows = "".join(f"| {name} | {oldest[name]} | {newest[name]} |\n" for name in newest)
PAGE.write_text(
    f"""# Tested versions

The tests run on two sets of releases at every change: the newest that `pip` finds with nothing pinned, and the oldest
that `pyproject.toml` allows. `.ci/run` writes this table after it has run them.

| package | oldest | newest |
|---|---|---|
{rows}"""
)
seconds = {name: int(value) for name, value in (line.split("\t") for line in Path(steps).read_text().splitlines())}
summary = re.findall(r"^=+ .*\b(\d+) passed.* in ([\d.]+)s", Path(log).read_text(), re.MULTILINE)[-1]
report = {
    # The package is installed outside the checkout here, and cannot tell its commit.
    "circumstances": printed_by(newest_python, CIRCUMSTANCES)
    | {"commit": subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip()},
    "fast_tests": {"passed": int(summary[0]), "seconds": float(summary[1])},
    "steps": seconds,
}
TIMES.write_text(json.dumps(report, indent=2) + "\n")
print(PAGE.read_text(), TIMES.read_text(), sep="\n")
