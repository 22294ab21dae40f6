"""The tests that need a GPU, run by pytest in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import gentrie

_TAIL = 4000


@dataclass(frozen=True)
class PytestOutcome:
    """What the tests came to.

    Attributes
    ----------
    passed, failed, skipped
        How many; failed ones include errors outside tests.
    exit_code
        pytest's.
    seconds
        How long it took.
    tail
        The end of what pytest printed, where something failed.
    """

    passed: int
    failed: int
    skipped: int
    exit_code: int
    seconds: float
    tail: str

    @property
    def is_passed(self) -> bool:
        """Whether pytest found tests and none failed."""
        return self.exit_code == 0


def find_tests(given: Path | None) -> Path | None:
    """The folder of the tests: the one given, or that of the checkout that gentrie is imported from; None for none.

    Raises
    ------
    NotADirectoryError
        The one given is no folder.
    """
    if given is not None:
        if not given.is_dir():
            raise NotADirectoryError(f"--tests {given}: there is no such folder")
        return given
    package = Path(gentrie.__file__).resolve().parent
    beside = package.parents[1] / "tests"
    is_checkout = (beside / "kernels").is_dir() and (package.parents[1] / "pyproject.toml").is_file()
    return beside if is_checkout else None


def run_tests(folder: Path) -> PytestOutcome:
    """Run ``pytest -m gpu`` over ``folder``."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        start = time.perf_counter()
        done = subprocess.run(
            [*command, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        seconds = time.perf_counter() - start
        counts = _counts(report)
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    tail = done.stdout[-_TAIL:] if done.returncode else ""
    return PytestOutcome(passed, failed, counts["skipped"], done.returncode, seconds, tail)


def _counts(report: Path) -> dict[str, int]:
    """Counts of pytest's report; zeros where it wrote none."""
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    if report.is_file():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            for name in counts:
                counts[name] += int(suite.get(name, 0))
    return counts
