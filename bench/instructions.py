"""python -m bench.instructions: instructions of each hot path, beside a saved baseline.

Builds paths.c with the core under fixed flags, runs each case under callgrind, and fails
when one takes over 10 % more than in instructions.json. Time on a shared machine moves by half;
this moves by less than 2 %. Counts belong to a compiler: under another one than the baseline's
they are shown and do not decide. Nor does a path that is gone. In CI (`CI` is set) both fail:
there a gate that looks at nothing would pass for ever.

    python -m bench.instructions            compare, exit 1 after a regression
    python -m bench.instructions --save     make this the baseline
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
BASELINE: Final = ROOT / "bench" / "instructions.json"
ALLOWED: Final = 0.10
CASE_S: Final = 120
_FLAGS: Final = ("-std=c11", "-O2", "-g", "-pthread", "-Wno-unused-function")
# One kind of memcpy and memcmp, whatever this machine has.
_PLAIN: Final = "-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-ERMS,-FSRM,-MOVBE,-BMI2,-SSSE3,-SSE4_1"


class GateError(RuntimeError):
    """Nothing could be counted."""


class Row(NamedTuple):
    """`before` is None for a case that the baseline does not have, `now` for one that is gone."""

    case: str
    now: float | None
    before: float | None

    @property
    def change(self) -> float:
        """0.1 for 10 % more; 0 where there is nothing to compare."""
        if self.now is None or self.before is None:
            return 0.0
        return self.now / self.before - 1

    @property
    def is_regression(self) -> bool:
        return self.change > ALLOWED

    def __str__(self) -> str:
        now = "gone" if self.now is None else f"{self.now:,.1f}"
        if self.before is None:
            return f"{self.case:42} {now:>10} {'new':>10}"
        note = "" if self.now is None else f" {self.change:+8.1%}"
        return f"{self.case:42} {now:>10} {self.before:>10,.1f}{note}" + (
            "  REGRESSION" if self.is_regression else ""
        )


def compare(now: Mapping[str, float], before: Mapping[str, float]) -> list[Row]:
    """One row a case, of either side."""
    return [Row(case, now.get(case), before.get(case)) for case in {**before, **now}]


def compiler() -> str:
    """Its name, major version and machine, which the counts belong to."""
    version = _run(["gcc", "-dumpversion"]).strip()
    return f"gcc {version.partition('.')[0]} {_run(['gcc', '-dumpmachine']).strip()}"


def build(place: Path, *flags: str) -> Path:
    """The program, or with flags for it a library. GateError names what is missing."""
    if shutil.which("valgrind") is None:
        raise GateError("no valgrind: install it with your package manager")
    program = place / "instructions"
    sources = [str(path) for path in sorted((ROOT / "_core").glob("*.c"))]
    include = [f"-I{ROOT / '_core'}", f"-I{ROOT / 'tests' / 'core'}"]
    sources += [str(ROOT / "bench" / name) for name in ("paths.c", "instructions.c")]
    _run(["gcc", *_FLAGS, *flags, *include, *sources, "-o", str(program)])
    return program


def count(program: Path, case: str) -> float:
    """Instructions an operation."""
    out = program.with_suffix(".callgrind")
    valgrind = ["valgrind", "-q", "--tool=callgrind", "--collect-atstart=no"]
    operations = int(_run([*valgrind, f"--callgrind-out-file={out}", str(program), case]))
    found = re.search(r"^(?:summary|totals): (\d+)", out.read_text(), re.MULTILINE)
    if found is None or int(found[1]) == 0:
        raise GateError(f"callgrind counted nothing for {case!r}")
    return round(int(found[1]) / operations, 1)


def measure() -> dict[str, float]:
    """All cases."""
    with tempfile.TemporaryDirectory() as place:
        program = build(Path(place))
        return {case: count(program, case) for case in _run([str(program)]).splitlines()}


def _run(command: Sequence[str]) -> str:
    environment = os.environ | {"GLIBC_TUNABLES": f"glibc.cpu.hwcaps={_PLAIN}"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=CASE_S, env=environment
        )
    except FileNotFoundError:
        raise GateError(f"no {command[0]}: install it with your package manager") from None
    except subprocess.TimeoutExpired:
        raise GateError(f"{command[0]} took longer than {CASE_S} s") from None
    except subprocess.CalledProcessError as error:
        raise GateError(f"{command[0]} failed:\n{error.stderr[-2000:]}") from None
    return done.stdout


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--save", action="store_true", help="make this the baseline")
    options = parser.parse_args(arguments)
    try:
        name, counts = compiler(), measure()
    except GateError as error:
        print(error, file=sys.stderr)
        return 2
    saved = json.loads(BASELINE.read_text()) if BASELINE.exists() else {"instructions": {}}
    rows = compare(counts, saved["instructions"])
    print(f"{'instructions an operation':42} {'now':>10} {'baseline':>10}   change")
    print("\n".join(map(str, rows)))
    if options.save:
        baseline = {"compiler": name, "instructions": counts}
        BASELINE.write_text(json.dumps(baseline, indent=1) + "\n")
        return 0
    is_of_this_compiler = saved.get("compiler") == name
    unseen = [f"{row.case!r} is gone" for row in rows if row.now is None]
    if not is_of_this_compiler:
        unseen.append(f"the baseline is of {saved.get('compiler')}, and this is {name}")
    if unseen:
        print(f"Not compared: {'; '.join(unseen)}. Save a new baseline with --save.")
    is_worse = is_of_this_compiler and any(row.is_regression for row in rows)
    return 1 if is_worse or (unseen and os.environ.get("CI")) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
