"""Builds C programs around the core, plainly or for a sanitizer, and runs them.

They have no interpreter in them, and none of the options that a sanitizer run of these tests
sets for the interpreter.
"""

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CORE = sorted((HERE.parent.parent / "_core").glob("*.c"))
COMMON = ["-std=c11", "-pthread", f"-I{HERE.parent.parent / '_core'}"]
WARNINGS = ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
_CHECKED = ["-O1", "-g", "-DIM_DEBUG", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
CHECKED = {
    "plain": ["-O2"],
    "asan": [*_CHECKED, "-fsanitize=address,undefined"],
    "tsan": [*_CHECKED, "-fsanitize=thread"],
}

_FOREIGN = {"LD_PRELOAD", "ASAN_OPTIONS", "UBSAN_OPTIONS", "PYTHONMALLOC"}
_ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in _FOREIGN} | {
    "TSAN_OPTIONS": "halt_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def run(*command: str | Path | int, timeout_s: int = 110) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env=_ENVIRONMENT,
        timeout=timeout_s,
    )


def build(program: Path, flags: list[str], sources: list[Path]) -> list[str | Path]:
    """The command that starts the program. Skips where these flags do not work at all."""
    before = _around(flags)
    _try_empty(program.with_name("empty"), flags, before)
    built = run("cc", *COMMON, *WARNINGS, *flags, *sources, "-o", program)
    assert built.returncode == 0, built.stderr
    return [*before, program]


def _try_empty(program: Path, flags: list[str], before: list[str]) -> None:
    source = program.with_suffix(".c")
    source.write_text("int main(void) { return 0; }\n")
    for command in (["cc", *flags, source, "-o", program], [*before, program]):
        result = run(*command)
        if result.returncode:
            pytest.skip(f"{flags[-1]} does not work here: {result.stderr.strip()[-500:]}")


def _around(flags: list[str]) -> list[str]:
    """TSan wants memory where a kernel with many random bits does not put it."""
    random_bits = Path("/proc/sys/vm/mmap_rnd_bits")
    if "-fsanitize=thread" not in flags or not os.access(random_bits, os.R_OK):
        return []
    return ["setarch", "-R"] if int(random_bits.read_text()) > 28 else []
