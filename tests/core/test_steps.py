"""Single steps of the whole core, in an order that no real thread can be made to keep.

steps.c takes the turns of all threads by hand. Each of its steps is a true sentence, and once
was not.
"""

import re

import pytest
from building import CHECKED, CORE, HERE, build, run

STEPS = re.findall(r"^\s+STEP\((\w+)\),$", (HERE / "steps.c").read_text(), flags=re.M)


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("steps")
    return build(folder / "steps", CHECKED["asan"], [*CORE, HERE / "steps.c"])


@pytest.mark.parametrize("name", STEPS)
def test_step(steps, name) -> None:
    result = run(*steps, name, timeout_s=30)
    assert result.returncode == 0, result.stderr[-6000:] or f"exit {result.returncode}"
