"""Compiles the C of this directory on first use: the generator as a module, the floor as a program.

Everything lands in `_build/<digest of sources and flags>/`, so an edited source is a new build and
two checkouts never share one. Our C is compiled under strict flags by itself; what cffi writes
around it is not ours to be strict about.
"""

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
BUILD = HERE / "_build"
STRICT = ("-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror")
CFLAGS = (*STRICT, "-D_GNU_SOURCE", "-O2", "-fPIC")
GENERATOR = ("histogram.c", "cut.c", "load.c", "wire.c", "traffic.c")
HEADERS = ("histogram.h", "cut.h", "load.h", "engine.h")

# The compiler checks these against the headers.
DECLARATIONS = """
struct histogram { uint64_t count; uint64_t max; ...; };
struct histogram *histogram_new(void);
void histogram_free(struct histogram *);
void histogram_add(struct histogram *, const struct histogram *);
uint64_t histogram_at(const struct histogram *, double share);
void histogram_record(struct histogram *, uint64_t value);

struct cut { uint32_t kind; uint32_t length_at; uint32_t length_adds; int32_t type_at;
             uint32_t max_bytes; };
uint32_t cut_reply(const struct cut *, const uint8_t *at, size_t len, uint8_t *type);

struct load_wire { struct cut cut; uint32_t stamp_from_end; uint32_t pong_len; uint8_t pong[16];
                   uint8_t kinds[256]; };
struct load_run { uint64_t duration_ns; uint64_t drain_ns; uint64_t messages; uint64_t rate;
                  uint32_t depth; uint32_t burst; };
struct load_result { uint64_t sent; uint64_t expected; uint64_t received; uint64_t surplus;
                     uint64_t wall_ns; uint64_t cpu_ns; uint64_t wakeups; uint64_t receives;
                     uint64_t sends; uint32_t lost; };
struct load *load_new(uint32_t max_connections, const struct load_wire *);
void load_free(struct load *);
int64_t load_group(struct load *, uint32_t members);
int64_t load_add(struct load *, uint32_t group, const uint8_t *frame, uint32_t frame_len);
int load_step(struct load *, uint32_t number, const uint8_t *bytes, uint32_t len, int32_t awaits);
int load_open(struct load *, const char *ip, uint16_t port, uint32_t at_once, uint64_t timeout_ns);
void load_go(struct load *, const struct load_run *, struct load_result *,
             struct histogram *latency, struct histogram *lateness);
const char *load_failure(const struct load *);
"""


def compiler() -> list[str]:
    """The C compiler as a command line. RuntimeError when there is none."""
    command = shlex.split(os.environ.get("CC", "gcc"))
    if shutil.which(command[0]) is None:
        raise RuntimeError(f"no C compiler {command[0]!r}: install gcc, or set CC")
    return command


def generator() -> ModuleType:
    """The generator as a cffi module, with `ffi` and `lib`; built when it is not there yet."""
    sources = [HERE / source for source in (*GENERATOR, *HEADERS)]
    path = built("generator", _toolchain(), sources, _build_generator) / "_load.so"
    spec = importlib.util.spec_from_file_location("_load", path)
    if spec is None or spec.loader is None:
        raise RuntimeError(f"{path} is not a module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def floor() -> Path:
    """The floor as a program; built when it is not there yet."""
    return built("floor", _toolchain(), [HERE / "floor.c"], _build_floor) / "floor"


def _toolchain() -> str:
    return repr((CFLAGS, DECLARATIONS, compiler(), sys.version))


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


def _build_generator(place: Path) -> None:
    from cffi import FFI  # type: ignore[import-untyped]

    objects = []
    for source in GENERATOR:
        objects.append(str(place / source.replace(".c", ".o")))
        _compile([*CFLAGS, "-c", str(HERE / source), "-o", objects[-1]])
    ffi = FFI()
    ffi.cdef(DECLARATIONS)
    ffi.set_source(
        "_load",
        '#include "load.h"',
        include_dirs=[str(HERE)],
        extra_objects=objects,
        libraries=["m"],
    )
    Path(ffi.compile(tmpdir=str(place), target="_load.*")).rename(place / "_load.so")


def _build_floor(place: Path) -> None:
    _compile([*CFLAGS, str(HERE / "floor.c"), "-o", str(place / "floor")])


def _compile(arguments: list[str]) -> None:
    done = subprocess.run([*compiler(), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(compiler())} failed:\n{done.stderr}")
