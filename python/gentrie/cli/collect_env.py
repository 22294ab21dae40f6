"""``gentrie collect-env``: what a bug report should say about the machine and the packages."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import metadata, util
from typing import Annotated, Any

import typer

_PACKAGES = (
    "gentrie",
    "numpy",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "mistral-common",
    "safetensors",
    "pyarrow",
    "xgrammar",
    "llguidance",
    "vllm",
    "sglang",
)


def collect_env(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Print versions, platform, CPU and GPUs, for bug reports."""
    found = environment()
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    for name, value in found.items():
        if isinstance(value, dict):
            typer.echo(f"{name}:")
            for key, entry in value.items():
                typer.echo(f"  {key}: {'not installed' if entry is None else entry}")
        elif isinstance(value, list):
            typer.echo(f"{name}: {'; '.join(value) or 'none'}")
        else:
            typer.echo(f"{name}: {'none' if value is None else value}")


def environment() -> dict[str, Any]:
    """Return what ``collect-env`` prints; values are strings, numbers, None, lists or dicts of strings."""
    from gentrie.bench.harness import circumstances

    found = circumstances()
    del found["device"]
    found["versions"] = {package: _version(package) for package in _PACKAGES}
    found["gpus"] = _gpus()
    # Only the package itself knows what it was built for; importing it is the slow part of this command.
    if util.find_spec("torch") is not None:
        import torch

        found["torch"] = {
            "cuda_built": str(torch.version.cuda),
            "cuda_available": str(torch.cuda.is_available()),
            "threads": str(torch.get_num_threads()),
        }
    return found


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """GPUs as their driver lists them, which needs no framework."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    query = [command, "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.strip().splitlines()
