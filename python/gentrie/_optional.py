"""Imports of packages that only some users have installed."""

from importlib import import_module
from types import ModuleType


def require(module: str, *, extra: str) -> ModuleType:
    """Import and return ``module``, which the optional dependencies ``gentrie[extra]`` provide.

    Parameters
    ----------
    module
        Absolute name, dotted for a submodule (``"mistral_common.tokens"``).
    extra
        Name of the extra to suggest where the package is missing.

    Raises
    ------
    ImportError
        If the package is not installed, naming it and the command that installs it. An installed package that
        fails to import by itself raises its own error unchanged.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package:
            raise
        raise ImportError(
            f"this needs the package {package!r}, which is not installed: pip install 'gentrie[{extra}]'",
            name=package,
        ) from error
