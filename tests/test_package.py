"""What pip installs: sdist, wheel, a fresh environment, and the command in it."""

import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_the_sdist_becomes_a_wheel_that_works_in_a_fresh_environment(tmp_path: Path) -> None:
    python = sys.executable
    run(python, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path)
    sdist = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"_core/core.pyx", "_core/build_ffi.py", "_core/loop.h", "imserver/_core.pyi"} <= names
    assert {"bench/load.c", "bench/load.h", "bench/build_ffi.py"} <= names
    assert not any(name.endswith((".so", ".o")) for name in names)

    run(python, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation",
        "--wheel-dir", tmp_path, sdist, cwd=tmp_path)  # fmt: skip
    wheel = next(tmp_path.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert any(name.startswith("imserver/_core.cpython") for name in inside)
    assert any(name.startswith("imserver/_load.") for name in inside)
    assert {"imserver/_core.pyi", "imserver/py.typed", "imserver/control.proto"} <= inside
    static = [path for path in (ROOT / "imserver/static").rglob("*") if path.is_file()]
    assert {path.relative_to(ROOT).as_posix() for path in static} <= inside
    assert not any(name.endswith((".pyx", ".c", ".h")) for name in inside)

    fresh = tmp_path / "venv"
    venv.create(fresh, with_pip=True)
    run(fresh / "bin/pip", "install", "-q", wheel, cwd=tmp_path)
    assert "imserver" in run(fresh / "bin/imserver", "--version", cwd=tmp_path)
    origin = "import imserver._core as core; print(core.__file__)"
    where = run(fresh / "bin/python", "-c", origin, cwd=tmp_path)
    assert str(fresh) in where
    run(fresh / "bin/imserver", "doctor", "--dev", cwd=tmp_path)
    assert "fan-out" in run(fresh / "bin/imserver", "bench", "--seconds", "0.1", cwd=tmp_path)
