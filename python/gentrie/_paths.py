"""Where the C++ headers and the CMake package of this installation lie."""

from pathlib import Path

from gentrie import _core

# CMake installs everything beside the extension, in an editable install too, where this file lies elsewhere.
_PREFIX = Path(_core.__file__).parent


def get_include() -> str:
    """Directory to add to a compiler's include path for ``#include <gentrie/...>``.

    Raises
    ------
    FileNotFoundError
        If this installation holds no headers.
    """
    return _installed("include")


def get_cmake_dir() -> str:
    """Directory of ``gentrieConfig.cmake``, to be given to CMake as ``gentrie_DIR``.

    The package defines the target ``gentrie::gentrie``: the static library, its headers and C++17.

    Raises
    ------
    FileNotFoundError
        If this installation holds no CMake package.
    """
    return _installed("lib/cmake/gentrie")


def _installed(relative: str) -> str:
    path = _PREFIX / relative
    if not path.is_dir():
        raise FileNotFoundError(f"this installation of gentrie lacks {path}; reinstall gentrie")
    return str(path)
