"""Programs that are compiled on first use: the floor, and whatever peer comes as source.

Everything lands in `_build/<digest of sources and tools>/`, so an edited source is a new build and
two checkouts never share one.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / "_build"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
CFLAGS = (*STRICT, "-D_GNU_SOURCE", "-O2")


def compiler() -> list[str]:
    """The C compiler as a command line. RuntimeError when there is none."""
    command = shlex.split(os.environ.get("CC", "gcc"))
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"no C compiler {command[0]!r}: install gcc, or set CC")
    return command


def floor() -> Path:
    """The floor as a program; built when it is not there yet."""
    toolchain = repr((CFLAGS, compiler()))
    return built("floor", toolchain, [HERE / "floor.c"], _build_floor) / "floor"


def built(
    name: str, toolchain: str, sources: Iterable[Path], build: Callable[[Path], None]
) -> Path:
    """The directory that `build` has filled; it is called again when the sources or what they
    are built with have changed. Concurrent first uses build twice, and one of them stays."""
    digest = hashlib.sha256(toolchain.encode())
    for source in sources:
        digest.update(source.read_bytes())
    place = BUILD / f"{name}-{digest.hexdigest()[:16]}"
    if not place.exists():
        BUILD.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            build(made)
            try:
                made.rename(place)
            except OSError:
                if not place.exists():
                    raise
    return place


def _build_floor(place: Path) -> None:
    arguments = [*CFLAGS, str(HERE / "floor.c"), "-o", str(place / "floor")]
    done = subprocess.run([*compiler(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(compiler())} failed:\n{done.stderr}")
