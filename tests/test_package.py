"""What the installed package and the source distribution hold: metadata, types, headers, CMake package."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from enum import EnumMeta
from importlib.resources import files
from pathlib import Path

import pytest

import gentrie
from gentrie import _core

REPOSITORY = Path(__file__).resolve().parent.parent
CONSUMER = Path(__file__).resolve().parent / "consumer"


def find_tool(*names: str) -> str | None:
    """The first of ``names`` beside the interpreter (an environment need not be activated) or on the path."""
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return next((found for name in names if (found := shutil.which(name, path=search))), None)


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return its output; a failure shows that output."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


# --- metadata, types, import ---


def test_version_is_the_installed_one():
    assert gentrie.__version__ == importlib.metadata.version("gentrie")


def test_types_are_shipped():
    package = files("gentrie")
    assert (package / "py.typed").is_file()
    assert (package / "_core.pyi").is_file()


def test_kernels_are_part_of_the_package():
    assert (files("gentrie") / "kernels" / "reference.py").is_file()


def test_import_is_light():
    heavy = ["torch", "transformers", "tokenizers", "mistral_common", "matplotlib", "pyarrow", "pandas"]
    code = f"import sys, gentrie; print([name for name in {heavy} if name in sys.modules])"
    assert run(sys.executable, "-c", code).strip() == "[]"


def test_the_stepper_needs_neither_torch_nor_transformers():
    code = """
import sys
sys.modules["torch"] = sys.modules["transformers"] = None  # an import of them fails
import numpy as np
from gentrie import TokenTrie
from gentrie.search import BeamStepper
stepper = BeamStepper(TokenTrie.from_sequences([[4, 5], [4, 6], [7]], vocab_size=9), beam_width=2, scope="vocab")
stepper.add_request(0)
while len(rows := stepper.rows()):
    stepper.step(np.arange(9.0) * np.ones((int(rows.logit_counts.sum()), 1)))
print(stepper.pop_result(0).sequences)
"""
    assert run(sys.executable, "-c", code).strip() == "[[7], [4, 6]]"


def test_smoke_script():
    run(sys.executable, Path(__file__).resolve().parent / "smoke.py")


# --- the stub against the compiled module ---


def stub_members(body: list[ast.stmt]) -> dict[str, str]:
    """Public names that a stub's module or class body declares, each with its kind."""
    members = {}
    for node in body:
        if isinstance(node, ast.ClassDef):
            members[node.name] = "class"
        elif isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            is_property = any(name == "property" or name.endswith(".setter") for name in decorators)
            members[node.name] = "value" if is_property else "callable"
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            members[ast.unparse(target)] = "value"
    return {name: kind for name, kind in members.items() if not name.startswith("_")}


def compiled_members(owner: object) -> dict[str, str]:
    """The same of a compiled module or class."""
    members = {}
    for name in owner.__members__ if isinstance(owner, EnumMeta) else vars(owner):
        value = getattr(owner, name)
        if not name.startswith("_"):
            members[name] = "class" if isinstance(value, type) else "callable" if callable(value) else "value"
    return members


def stub_body() -> list[ast.stmt]:
    return ast.parse((files("gentrie") / "_core.pyi").read_text(encoding="utf-8")).body


def test_stub_declares_what_the_module_holds():
    assert stub_members(stub_body()) == compiled_members(_core)


def test_stub_declares_what_each_class_holds():
    for node in stub_body():
        if isinstance(node, ast.ClassDef):
            assert stub_members(node.body) == compiled_members(getattr(_core, node.name)), node.name


def stub_functions() -> list:
    """Each function and method of the stub, with the compiled one it describes."""
    pairs = []
    for node in stub_body():
        owner, body = (getattr(_core, node.name), node.body) if isinstance(node, ast.ClassDef) else (_core, [node])
        pairs += [
            pytest.param(item, getattr(owner, item.name), id=f"{owner.__name__}.{item.name}")
            for item in body
            if isinstance(item, ast.FunctionDef) and callable(getattr(owner, item.name))
        ]
    return pairs


@pytest.mark.parametrize(("declared", "compiled"), stub_functions())
def test_stub_declares_the_parameters_of_each_function(declared, compiled):
    # pybind11 writes the signature, in Python's syntax, on the first line of the docstring.
    (signature,) = ast.parse(f"def {compiled.__doc__.splitlines()[0]}: ...").body
    parameters = [
        [arg.arg for arg in function.args.args + function.args.kwonlyargs] for function in (declared, signature)
    ]
    assert parameters[0] == parameters[1]


# --- C++ ---


def test_cmake_package_is_installed():
    cmake_dir = Path(gentrie.get_cmake_dir())
    assert (cmake_dir / "gentrieConfig.cmake").is_file()
    assert (cmake_dir / "gentrieConfigVersion.cmake").is_file()
    assert (cmake_dir.parent.parent / "libgentrie.a").is_file()


def test_every_public_header_is_installed():
    source = REPOSITORY / "csrc" / "include" / "gentrie"
    if not source.is_dir():
        pytest.skip("the tests run without the repository around them")
    installed = Path(gentrie.get_include()) / "gentrie"
    assert {path.name for path in installed.iterdir()} == {path.name for path in source.iterdir()}


def test_consumer_project_builds_against_the_installed_package(tmp_path):
    cmake = find_tool("cmake")
    compiler = find_tool(*filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]))
    if cmake is None or compiler is None:
        pytest.skip("needs cmake and a C++ compiler")
    configure = [f"-Dgentrie_DIR={gentrie.get_cmake_dir()}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    ninja = find_tool("ninja")
    if ninja is not None:
        configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run(cmake, "-S", CONSUMER, "-B", tmp_path, *configure)
    run(cmake, "--build", tmp_path)
    assert run(tmp_path / "consumer").strip() == gentrie.__version__


# --- source distribution ---


@pytest.fixture(scope="module")
def sdist_names(tmp_path_factory):
    """Paths inside a source distribution made from the repository, without the leading folder."""
    if not (REPOSITORY / "pyproject.toml").is_file():
        pytest.skip("the tests run without the repository around them")
    pytest.importorskip("scikit_build_core", reason="needs scikit-build-core")
    target = tmp_path_factory.mktemp("sdist")
    code = "import sys; from scikit_build_core.build import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", code, target, cwd=REPOSITORY)
    (archive,) = target.iterdir()
    assert archive.name == f"gentrie-{gentrie.__version__}.tar.gz"
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


@pytest.mark.parametrize(
    "name",
    [
        "CMakeLists.txt",
        "LICENSE",
        "README.md",
        "cmake/gentrieConfig.cmake.in",
        "csrc/bindings/module.cc",
        "csrc/include/gentrie/version.h",
        "csrc/src/builder.cc",
        "kernels/reference.py",
        "pyproject.toml",
        "python/gentrie/_core.pyi",
        "python/gentrie/py.typed",
        "tests/consumer/main.cc",
        "tests/test_package.py",
    ],
)
def test_sdist_holds(sdist_names, name):
    assert name in sdist_names


def test_sdist_holds_no_build_products(sdist_names):
    folders = re.compile(r"(^|/)(\.git|\.github|\.\w+_cache|__pycache__|build|dist|wheelhouse)/")
    products = re.compile(r"\.(a|o|pyc|so|whl|gz)$")
    assert [name for name in sdist_names if folders.search(name) or products.search(name)] == []
