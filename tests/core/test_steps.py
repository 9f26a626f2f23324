"""Single steps of the whole core, in an order that no real thread can be made to keep.

The C files take the turns of all threads by hand, and make the commits of the store. Each of
their steps is a true sentence, and once was not or might not be.
"""

import re

import pytest
from building import CHECKED, CORE, HERE, build, run

FILES = ["steps", "steps_store", "steps_follow", "steps_web", "steps_wrap"]
STEPS = [
    (file, name)
    for file in FILES
    for name in re.findall(r"^\s+STEP\((\w+)\),$", (HERE / f"{file}.c").read_text(), flags=re.M)
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Each built when it is first needed."""
    folder = tmp_path_factory.mktemp("steps")
    built = {}

    def program(file):
        if file not in built:
            sources = [*CORE, HERE / "storm_web.c", HERE / f"{file}.c"]
            built[file] = build(folder / file, CHECKED["asan"], sources)
        return built[file]

    return program


@pytest.mark.parametrize(("file", "name"), STEPS, ids=[name for _, name in STEPS])
def test_step(programs, file, name) -> None:
    result = run(*programs(file), name, timeout_s=30)
    assert result.returncode == 0, result.stderr[-6000:] or f"exit {result.returncode}"
