"""The Python of the documentation's pages runs as it stands, and a line ``expression  # -> value`` tells the truth."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SELF_CONTAINED = ["start/generation", "start/training", "start/serving", "howto/migrate"]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def told(block: str) -> str:
    """The block with each told value checked."""
    lines, out, begin = block.splitlines(), [], 0
    for number, line in enumerate(lines):
        if line and not line[0].isspace() and line[0] not in ")]}":
            begin = len(out)
        if "  # -> " in line:
            code, value = line.split("  # -> ")
            expression = "\n".join([*out[begin:], code])
            out[begin:] = [f"check(({expression}\n), {value!r}, {number})"]
        else:
            out.append(line)
    return "\n".join(out)


def check(value: object, expected: str, number: int) -> None:
    assert str(value) == expected, f"line {number} of its block"


@pytest.mark.parametrize("page", SELF_CONTAINED)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"check": check, "__name__": page}
    blocks = BLOCK.findall((DOCS / f"{page}.md").read_text(encoding="utf-8"))
    assert len(blocks) > 2
    for block in blocks:
        exec(compile(told(block), page, "exec"), names)


def test_every_page_is_tested() -> None:
    with_code = {
        str(path.relative_to(DOCS).with_suffix(""))
        for path in DOCS.rglob("*.md")
        if BLOCK.search(path.read_text(encoding="utf-8"))
    }
    elsewhere = {"howto/searches", "howto/filters", "howto/gpu"}  # tests/python/test_readme.py
    fragments = {"howto/live_catalogs"}  # of a server; their calls are those of howto/filters
    assert with_code == set(SELF_CONTAINED) | elsewhere | fragments


def test_messages_are_those_of_the_library() -> None:
    """What the page on errors quotes stands in a source, up to what is left out."""
    sources = [*ROOT.glob("python/**/*.py"), *ROOT.glob("csrc/**/*.cc"), *ROOT.glob("csrc/**/*.h")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    text = re.sub(r'"\s*\n\s*f?"', "", text)  # literals that go on in the next line
    rows = re.findall(r"^\| (.+?) \|", (DOCS / "howto/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE)
    quoted = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(quoted) > 12
    parts = [part for message in quoted for part in re.split(r"\.\.\.|=1", message) if len(part.strip()) > 4]
    assert [part for part in parts if part.strip() not in text] == []


def test_values_that_differ_are_seen() -> None:
    exec(told("a = 2\n[\n    a,\n    3,\n]  # -> [2, 3]\na + 1  # -> 3"), {"check": check})
    with pytest.raises(AssertionError, match="line 1"):
        exec(told("a = 2\na + 1  # -> 4"), {"check": check})
