"""The whole core in a storm of clients, without an interpreter and under sanitizers.

storm.c plays the control plane and storm_clients.c the clients. What is tested is in them: every
well-behaved peer receives each message once, whole and in order, whatever the others do, and in
the end the core has given everything back.
"""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted([*(ROOT / "_core").glob("*.c"), *(ROOT / "tests/core").glob("*.c")])
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
CHECKED = ["-O1", "-g", "-DIM_DEBUG", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
FLAGS = {
    "plain": ["-O2"],
    "asan": [*CHECKED, "-fsanitize=address,undefined"],
    "tsan": [*CHECKED, "-fsanitize=thread"],
}

#: Of our own, without what a sanitizer run of these tests sets for the interpreter.
ENVIRONMENT = {
    name: value
    for name, value in os.environ.items()
    if name not in ("LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS")
} | {"TSAN_OPTIONS": "halt_on_error=1", "UBSAN_OPTIONS": "print_stacktrace=1"}


def run(*command: str | Path, timeout_s: int = 110) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=timeout_s,
    )


def check_sanitizer(folder: Path, flags: list[str]) -> None:
    """Skips when this machine cannot build or run even an empty program with these flags."""
    source, program = folder / "empty.c", folder / "empty"
    source.write_text("int main(void) { return 0; }\n")
    for command in (["cc", *flags, source, "-o", program], [*around(flags), program]):
        result = run(*command)
        if result.returncode:
            pytest.skip(f"no {flags[-1]} on this machine: {result.stderr.strip()[-500:]}")


def around(flags: list[str]) -> list[str]:
    """TSan wants memory where a kernel with many random bits does not put it."""
    random_bits = Path("/proc/sys/vm/mmap_rnd_bits")
    if "-fsanitize=thread" not in flags or not random_bits.exists():
        return []
    return ["setarch", "-R"] if int(random_bits.read_text()) > 28 else []


@pytest.fixture(scope="session", params=FLAGS)
def storm(request, tmp_path_factory) -> list[str | Path]:
    """The command that starts a storm, built with one set of flags."""
    flags, folder = FLAGS[request.param], tmp_path_factory.mktemp(request.param)
    check_sanitizer(folder, flags)
    program = folder / "storm"
    common = ["-std=c11", "-pthread", f"-I{ROOT / '_core'}", *WARNINGS]
    built = run("cc", *common, *flags, *SOURCES, "-o", program)
    assert built.returncode == 0, built.stderr
    return [*around(flags), program]


@pytest.mark.parametrize("io_threads", [0, 1, 2, 3])
def test_everybody_receives_everything_once_and_in_order(storm, io_threads) -> None:
    result = run(*storm, io_threads, 1)
    assert result.returncode == 0, result.stderr[-6000:]
    assert f"storm: {io_threads} threads" in result.stdout


@pytest.mark.parametrize("seed", [2, 3])
def test_so_it_is_whatever_the_dice_say(storm, seed) -> None:
    result = run(*storm, 2, seed)
    assert result.returncode == 0, result.stderr[-6000:]
