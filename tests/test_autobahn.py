"""The cases of the Autobahn test suite; `make autobahn` shows more of them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(300)
def test_every_case_is_strictly_right() -> None:
    done = subprocess.run(
        [sys.executable, "ci/autobahn"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    assert "247 cases passed" in done.stdout
    assert "244 OK, 3 INFORMATIONAL" in done.stdout
