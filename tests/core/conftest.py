"""After every test of a structure there are as many descriptors as before it."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def no_descriptor_is_left_behind() -> Iterator[None]:
    before = len(os.listdir("/proc/self/fd"))
    yield
    # Fewer when a server of other tests is still closing its connections.
    assert len(os.listdir("/proc/self/fd")) <= before
