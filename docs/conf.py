"""Configuration of the documentation: ``sphinx-build -W -n -b html docs OUT``. Needs ``pip install ".[docs]"``."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

project = "gentrie"
author = "The gentrie authors"
copyright = author
version = release = version_of("gentrie")

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["attrs_block", "colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"gentrie {version}"
html_show_sphinx = False
html_copy_source = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 100
numpydoc_show_class_members = False

nitpicky = True
# The build needs no network, so names of other projects are not links.
nitpick_ignore_regex = [
    (
        r"py:.*",
        r"(torch|transformers|tokenizers|numpy|np|npt|collections|concurrent|datasets|typing|os|pathlib|_core|gentrie\._core)\..*",
    ),
    (r"py:class", r"Int64Array|Targets|PreTrained\w+"),  # names in annotations
    (r"py:attr", r"\w+"),  # listed under "Attributes" of a class
    (r"py:.*", r"gentrie\.kernels.*|gentrie(\.\w+){3,}|beam_recommend|Path"),  # not public
]

# Names that a module loads when they are first asked for: autodoc sees what is in its namespace.
for _page in (Path(__file__).parent / "api").glob("*.md"):
    if _page.stem in ("index", "cli"):
        continue
    _module = import_module("gentrie" if _page.stem == "gentrie" else f"gentrie.{_page.stem}")
    for _name in getattr(_module, "__all__", ()):
        setattr(_module, _name, getattr(_module, _name))


class CommandHelp(SphinxDirective):
    """What ``gentrie ARGUMENTS --help`` prints."""

    required_arguments = 0
    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        words = [*(self.arguments[0].split() if self.arguments else []), "--help"]
        environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
        command = [sys.executable, "-m", "gentrie", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        text = done.stdout.replace("python -m gentrie", "gentrie").strip("\n")
        return [nodes.literal_block(text, text, language="text")]


def resolve_short_name(app: Any, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """Link ``TokenTrie.walk`` from any page: to the one object whose full name ends so."""
    if node.get("refdomain") != "py":
        return None
    python = env.get_domain("py")
    target = node["reftarget"].removeprefix("gentrie.generation.")  # where search's names are exported too
    found = {
        (entry.docname, entry.node_id)
        for name, entry in python.objects.items()
        if name == target or name.endswith(f".{target}")
    }
    if len(found) != 1:
        return None
    ((document, anchor),) = found
    return make_refnode(app.builder, node["refdoc"], document, anchor, contnode, target)


def setup(app: Any) -> None:
    app.connect("missing-reference", resolve_short_name)
    app.add_directive("command-help", CommandHelp)
