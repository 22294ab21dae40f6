"""gpu-check: every benchmark at tiny sizes, also with kernels interpreted; what the command keeps and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("matplotlib")

from gpu_check_fakes import counts, dies, fails  # noqa: E402
from gpu_check_sizes import TINY  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from gentrie.bench.gpu import check, gpu_tests, peers, timing  # noqa: E402
from gentrie.bench.gpu.check import Outcome, Result, machine, run_benchmarks  # noqa: E402
from gentrie.bench.gpu.figures import GpuFigure, Percentiles  # noqa: E402
from gentrie.bench.gpu.generate import operations_per_call  # noqa: E402
from gentrie.bench.gpu.report import plot, table  # noqa: E402
from gentrie.bench.gpu.suite import SUITE, Benchmark  # noqa: E402
from gentrie.cli import app  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", TINY)
def test_benchmark_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(timing, "WARMUP", 0)
    figures = SUITE[name].measure(TINY[name], device="cpu", rounds=2)
    assert len({figure.name for figure in figures}) == len(figures)
    assert figures
    for figure in figures:
        if figure.median is None:
            assert figure.note
        else:
            assert figure.low <= figure.median <= figure.high <= figure.p95 <= figure.p99
            assert min(figure.rounds) <= figure.low <= figure.high <= max(figure.rounds)


@pytest.mark.slow
def test_benchmarks_in_the_interpreter():
    pytest.importorskip("triton")
    script = Path(__file__).with_name("gpu_check_interpreted.py")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    *measured, launched = done.stdout.splitlines()
    found = {line.split()[0]: line for line in measured}
    assert list(found) == list(TINY)
    assert found["generate"].endswith("[1.0]")
    launches = {"beam_step", "trie_mask", "trie_constrain", "launch_topb_threshold", "launch_bear_loss"}
    assert launches < set(launched.split())
    assert any(name.startswith("launch_trie_linear") for name in launched.split())


def test_sizes_are_of_every_benchmark():
    assert TINY.keys() == SUITE.keys()
    assert SUITE["beam-step"].cuts() == [
        "items: (10000, 1000000) instead of (10000, 100000, 1000000, 20000000)",
    ]
    assert SUITE["trie-mask"].cuts() == []


def test_one_failure_does_not_lose_the_others(tmp_path: Path):
    sizes = "of no use"
    suite = {"fails": Benchmark(fails, sizes), "dies": Benchmark(dies, sizes), "counts": Benchmark(counts, sizes)}
    found = dict(run_benchmarks(suite, quick=True, rounds=11, device="cpu"))
    assert found["fails"].error is not None
    assert found["fails"].error.startswith("ValueError: no luck on cpu (gpu_check_fakes.py:")
    assert found["dies"].error == "its process died"
    assert found["counts"].error is None
    assert (found["counts"].figures[0].low, found["counts"].figures[0].high) == (2, 8)
    result = Result({"rounds": 11}, [], machine("cpu"), None, found)
    assert not result.is_sound
    figures, drawing = result.write(tmp_path / "new")
    assert drawing.name == "gpu_check-cpu-counts.png"
    assert drawing.read_bytes().startswith(b"\x89PNG")
    saved = json.loads(figures.read_text())
    assert saved["benchmarks"]["fails"]["error"] == found["fails"].error
    (figure,) = saved["benchmarks"]["counts"]["figures"]
    assert GpuFigure(**figure | {"rounds": tuple(figure["rounds"])}) == found["counts"].figures[0]
    assert "FAILED" in shown(found)
    assert "9.5, 9.9" in shown(found)  # percentiles of 0 to 10


def shown(benchmarks: dict[str, Outcome]) -> str:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(benchmarks, "a machine"))
    return console.export_text()


def test_figures_and_what_is_missing(tmp_path: Path):
    there = GpuFigure.exact("ours", "us", 2.0, goal=1)
    absent = GpuFigure.missing("theirs", "us", "not importable", goal=1)
    assert (there.verdict, replace(there, at_least=True).verdict, absent.verdict) == ("SHORT", "ok", "")
    assert "not measured" in shown({"pair": Outcome([there, absent], 0.1)})
    assert not plot("pair", [absent], "cpu", tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_peers_that_fail_are_said_to():
    def absent() -> timing.Method:
        raise ImportError("No module named 'other'")

    def wrong() -> timing.Method:
        raise AssertionError("its scores differ")

    found = peers.Peers(CPU)
    found.add("absent", "us", absent)
    found.add("wrong", "us", wrong)
    found.add("sound", "us", lambda: lambda: None, capture=True)
    taken = timing.compare({"ours": lambda: None, **found.methods}, CPU, rounds=3)
    assert len(taken["ours"].rounds) == 3
    figures = found.figures(taken, "us", 1e6)
    assert [figure.name for figure in figures] == ["sound", "absent", "wrong"]
    assert [figure.note for figure in figures[1:]] == [
        "not importable: No module named 'other'",
        "failed: AssertionError: its scores differ",
    ]
    assert peers.ratio("r", taken, "absent", "ours", goal=2).note == "absent is not measured"
    halved = {"a": Percentiles.of([1.0, 2.0]), "b": Percentiles.of([2.0, 4.0])}
    assert peers.ratio("r", halved, "a", "b").rounds == (0.5, 0.5)


def test_operations_are_counted():
    from gentrie import TokenTrie
    from gentrie.device import DeviceTrie
    from gentrie.kernels.trie_mask import trie_mask

    resident = DeviceTrie(TokenTrie.from_sequences([[5, 6]], vocab_size=10), CPU)
    scores, states, none = torch.zeros(1, 10), torch.tensor([0]), torch.empty(0, dtype=torch.int64)

    def masks_twice() -> None:
        for _ in range(2):
            trie_mask(scores, states, -1, none, True, resident.descriptors, None, None, None)

    assert operations_per_call(masks_twice, CPU, 3) == (2, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a CUDA device")
def test_command_refuses_without_cuda(tmp_path: Path):
    done = CliRunner().invoke(app, ["gpu-check", "--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert done.stderr.startswith("gentrie: gpu-check needs a CUDA device, and torch sees none")
    assert list(tmp_path.iterdir()) == []


def test_command_refuses_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    done = CliRunner().invoke(app, ["gpu-check", "--output", str(tmp_path / "out")])
    assert done.exit_code == 1
    assert "unset TRITON_INTERPRET" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command runs on the CPU with one small benchmark."""
    on_cuda = check.run_benchmarks
    monkeypatch.setattr(check, "require_cuda", lambda: None)
    monkeypatch.setattr(check, "machine", lambda device: {"gpu": {"name": "NVIDIA None 100"}})
    monkeypatch.setattr(check, "run_benchmarks", lambda suite, **options: on_cuda(suite, **options, device="cpu"))
    sizes = TINY["topb-threshold"]
    small = {"counts": Benchmark(counts, sizes, replace(sizes, rows=1)), "fails": Benchmark(fails, sizes)}
    monkeypatch.setattr("gentrie.bench.gpu.suite.SUITE", small)


@pytest.mark.usefixtures("pretended")
def test_command_writes_what_it_measured(tmp_path: Path):
    arguments = ["gpu-check", "--quick", "--rounds", "3", "--only", "counts", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "cut: counts: rows: 1 instead of 3" in done.stdout
    names = ["gpu_check-nvidia-none-100-short-counts.png", "gpu_check-nvidia-none-100-short.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    saved = json.loads((tmp_path / names[1]).read_text())
    assert saved["settings"]["sizes"] == {"counts": {"rows": 1, "vocab_size": 1100, "beam_width": 10}}
    assert saved["cuts"] == ["counts: rows: 1 instead of 3", "tests: not run", "fails: not run"]
    assert saved["tests"] is None


@pytest.mark.usefixtures("pretended")
def test_command_fails_where_a_test_or_benchmark_does(tmp_path: Path):
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_it.py").write_text(
        "import pytest\n@pytest.mark.gpu\n@pytest.mark.parametrize('n', [0, 1])\ndef test_it(n):\n    assert n\n"
        "def test_other():\n    assert False\n"
    )
    options = ["--only", "tests", "--only", "fails", "--tests", str(folder), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, ["gpu-check", *options])
    assert done.exit_code == 1
    assert "tests: 1 passed, 1 failed, 0 skipped" in done.stdout
    saved = json.loads((tmp_path / "gpu_check-nvidia-none-100-short.json").read_text())
    assert (saved["tests"]["passed"], saved["tests"]["failed"], saved["tests"]["exit_code"]) == (1, 1, 1)
    assert saved["benchmarks"]["fails"]["error"].startswith("ValueError: no luck on cpu")


@pytest.mark.usefixtures("pretended")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "other"], "'other' is not one of tests, counts, fails"),
        (["--tests", "nowhere"], "--tests nowhere: there is no such folder"),
    ],
)
def test_wrong_options(options: list[str], message: str, tmp_path: Path):
    done = CliRunner().invoke(app, ["gpu-check", *options, "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tests_of_the_checkout_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gpu_tests.gentrie, "__file__", str(tmp_path / "python" / "gentrie" / "__init__.py"))
    assert gpu_tests.find_tests(None) is None
    (tmp_path / "tests" / "kernels").mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    assert gpu_tests.find_tests(None) == tmp_path / "tests"
