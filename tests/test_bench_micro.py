"""The micro-benchmarks still run, and the gate on instructions can fail. No time is looked at."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench import instructions
from bench.instructions import Row, compare

ROOT = Path(__file__).parent.parent


def test_every_micro_benchmark_runs() -> None:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "--benchmark-disable"]
    done = subprocess.run(
        [*command, "bench/micro"], cwd=ROOT, capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stdout[-3000:]
    if shutil.which("valgrind"):
        assert "skipped" not in done.stdout


@pytest.mark.parametrize(
    ("now", "before", "fails"), [(111.0, 100.0, True), (109.0, 100.0, False), (50.0, 100.0, False)]
)
def test_a_tenth_more_is_a_regression(now: float, before: float, fails: bool) -> None:
    (row,) = compare({"path": now}, {"path": before})
    assert row.is_regression is fails
    assert ("REGRESSION" in str(row)) is fails


def test_paths_that_came_or_went_are_no_regressions() -> None:
    rows = compare({"new path": 1.0}, {"old path": 2.0})
    assert rows == [Row("old path", None, 2.0), Row("new path", 1.0, None)]
    assert ["gone" in str(rows[0]), "new" in str(rows[1])] == [True, True]
    assert not any(row.is_regression for row in rows)


def test_without_a_compiler_or_valgrind_the_gate_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert instructions.main([]) == 2
    assert "install it" in capsys.readouterr().err
    with pytest.raises(instructions.GateError, match="valgrind"):
        instructions.build(tmp_path)


@pytest.mark.parametrize(
    ("compiler", "counts", "told", "here", "in_ci"),
    [
        ("gcc 1", {"path": 120.0}, "", 1, 1),
        ("gcc 1", {"path": 100.0}, "", 0, 0),
        ("gcc 1", {"path": 100.0, "new": 1.0}, "", 0, 0),
        ("gcc 2", {"path": 120.0}, "the baseline is of gcc 1, and this is gcc 2", 0, 1),
        ("gcc 1", {"other": 100.0}, "'path' is gone", 0, 1),
    ],
)
def test_the_gate_compares_what_it_can_and_in_ci_it_has_to(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    compiler: str,
    counts: dict[str, float],
    told: str,
    here: int,
    in_ci: int,
) -> None:
    baseline = tmp_path / "instructions.json"
    baseline.write_text('{"compiler": "gcc 1", "instructions": {"path": 100.0}}')
    monkeypatch.setattr(instructions, "BASELINE", baseline)
    monkeypatch.setattr(instructions, "compiler", lambda: compiler)
    monkeypatch.setattr(instructions, "measure", lambda: counts)
    for ci, exit_code in (("", here), ("true", in_ci)):
        monkeypatch.setenv("CI", ci)
        assert instructions.main([]) == exit_code
        out = capsys.readouterr().out
        assert told in out
        assert ("Not compared" in out) is bool(told)


def test_a_path_in_which_nothing_was_counted_is_no_pass(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "instructions"
    program.with_suffix(".callgrind").write_text("summary: 0\n")
    monkeypatch.setattr(instructions, "_run", lambda command: "100\n")
    with pytest.raises(instructions.GateError, match="counted nothing"):
        instructions.count(program, "path")


def test_the_compiler_is_named_with_its_major_version_and_machine() -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    machine = subprocess.run(["gcc", "-dumpmachine"], capture_output=True, text=True, check=True)
    name, major, where = instructions.compiler().split()
    assert (name, where) == ("gcc", machine.stdout.strip())
    assert major.isdigit()


def test_the_gate_counts_a_real_path(tmp_path: Path) -> None:
    if shutil.which("valgrind") is None:
        pytest.skip("valgrind is not installed")
    program = instructions.build(tmp_path)
    first = instructions.count(program, "parse a frame")
    assert first > 20
    assert instructions.count(program, "parse a frame") == first
