"""The hot paths of the core (paths.c), in nanoseconds an operation.

The clock runs between their marks only, so setting a core up and playing its clients is not in
it, and by the number of operations slower: the table shows one of them.
"""

from pathlib import Path
from typing import Any

import pytest

from bench.instructions import GateError, build


class Clock:
    """Seconds between the marks of a path, an operation; `operations` of one run of it."""

    paths: Any = None
    operations = 1

    def __call__(self) -> float:
        return self.paths.path_ns() / 1e9 / self.operations if self.paths else 0.0


clock = Clock()


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from cffi import FFI  # type: ignore[import-untyped]

    try:
        library = build(tmp_path_factory.mktemp("paths"), "-shared", "-fPIC")
    except GateError as error:
        pytest.skip(str(error))
    ffi = FFI()
    ffi.cdef("const char *path_name(uint32_t); uint64_t path_run(uint32_t); uint64_t path_ns();")
    return ffi.dlopen(str(library))


def names() -> list[str]:
    """As paths.c lists them, without building it: pytest asks before it runs anything."""
    table = (Path(__file__).parent.parent / "paths.c").read_text().partition("} PATHS[] = {")[2]
    return table.partition("};")[0].split('"')[1::2]


@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("number", range(len(names())), ids=names())
def test_path(benchmark: Any, paths: Any, number: int) -> None:
    clock.paths, clock.operations = paths, paths.path_run(number)
    assert benchmark.pedantic(paths.path_run, (number,), rounds=5) == clock.operations
