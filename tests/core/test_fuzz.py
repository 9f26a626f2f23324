"""The fuzz harnesses for some seconds each, on inputs that are the same every time.

`make fuzz` lets libFuzzer look for inputs, for as long as one likes.
"""

import pytest
from building import CHECKED, CORE, HERE, build, run

FUZZ = HERE.parent / "fuzz"
HARNESSES = sorted(path.stem for path in FUZZ.glob("fuzz_*.c"))


@pytest.fixture(scope="module", params=HARNESSES)
def harness(request, tmp_path_factory):
    program = tmp_path_factory.mktemp("fuzz") / request.param
    sources = [*CORE, HERE / "storm_web.c", FUZZ / f"{request.param}.c", FUZZ / "drive.c"]
    return build(program, [f"-I{HERE}", *CHECKED["asan"]], sources)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_input_is_too_strange(harness, seed) -> None:
    result = run(*harness, 40_000, seed)
    assert result.returncode == 0, result.stderr[-6000:]
