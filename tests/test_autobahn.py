"""The cases of the Autobahn test suite; `make autobahn` shows more of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imserver import _core

ROOT = Path(__file__).parent.parent


#: Of those that kosoku can judge: each size, each way to fragment, each answer to an offer.
COMPRESSED = [
    "12.1.4",
    "12.1.9",
    "12.2.12",
    "12.3.6",
    "12.4.8",
    "12.4.13",
    "12.5.7",
    "12.5.14",
    "13.1.5",
    "13.2.8",
    "13.3.4",
    "13.6.9",
    "13.7.4",
    "13.7.14",
]


def autobahn(*arguments: str) -> str:
    command = [sys.executable, "ci/autobahn", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-4_000:]
    return done.stdout


@pytest.mark.timeout(300)
def test_every_case_is_strictly_right() -> None:
    said = autobahn()
    assert "247 cases passed" in said
    assert "244 OK, 3 INFORMATIONAL" in said


@pytest.mark.timeout(300)
@pytest.mark.skipif(not _core.HAS_ZLIB, reason="a build without zlib")
def test_compressed_messages_are_right() -> None:
    said = autobahn(*(word for case in COMPRESSED for word in ("-i", case)))
    assert "12 OK, 2 declined" in said


@pytest.mark.timeout(300)
def test_messages_of_sixteen_megabytes_are_right() -> None:
    assert "2 OK" in autobahn("-i", "9.1.6", "-i", "9.2.6")
