"""Tokenizers from the places that the command line accepts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gentrie._optional import require


def load_tokenizer(name: str) -> Any:
    """Load a tokenizer from a file or folder, or by its name on the Hugging Face Hub; its code is not run.

    Parameters
    ----------
    name
        A ``tokenizer.json``; a tokenizer file of mistral-common (``tekken*.json``, ``*.model``,
        ``*.model.v3``); a folder with either or with a tokenizer of ``transformers``; or, where no such path
        exists, ``owner/name`` on the Hub.

    Raises
    ------
    FileNotFoundError
        If there is no such path and the name is not of the form ``owner/name``.
    ImportError
        If the package that reads this kind is not installed.
    ValueError
        If the file or folder holds no tokenizer, or a broken one.
    """
    path = Path(name)
    if path.is_dir():
        return _load_folder(path)
    if path.is_file():
        return _load_file(path)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(f"there is no tokenizer file or folder {name}")
    return _load_transformers(name)


def _load_folder(folder: Path) -> Any:
    if (folder / "tokenizer_config.json").is_file():
        return _load_transformers(str(folder))
    for pattern in ("tokenizer.json", "tekken*.json", "tokenizer.model.v*"):
        for path in sorted(folder.glob(pattern)):
            return _load_file(path)
    return _load_transformers(str(folder))


def _load_file(path: Path) -> Any:
    if path.suffix == ".json" and "tekken" not in path.name:
        tokenizers = require("tokenizers", extra="hf")
        try:
            return tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises plain Exception for every kind of broken file
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
    mistral = require("mistral_common.tokens.tokenizers.mistral", extra="mistral")
    try:
        return mistral.MistralTokenizer.from_file(str(path))
    except ImportError:
        raise
    except Exception as error:  # of many kinds: JSON, pydantic, sentencepiece, assertions
        raise ValueError(f"{path} is not a tokenizer of mistral-common: {error}") from error


def _load_transformers(name: str) -> Any:
    transformers = require("transformers", extra="hf")
    try:
        # Without the argument it asks on stdin whether code of the folder may run.
        return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except ImportError:
        raise
    except Exception as error:  # of many kinds, by what is missing
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"no tokenizer could be loaded from {name}: {reason}") from error
