"""Builds the core once, as a static library, and the two doors to it; and the load generator of
`imserver bench`.

Everything else about the package is in pyproject.toml. Debug and sanitizer
builds come from CFLAGS and LDFLAGS, which the Makefile sets.
"""

import runpy
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

CORE = Path("_core")
LOAD = ("cut", "histogram", "load", "traffic", "wire")  # the load generator, for `imserver bench`
# The binding is relinked whenever any of these changes.
EVERYTHING = sorted(
    str(path) for path in CORE.iterdir() if path.suffix in {".c", ".h", ".pxd", ".pxi"}
)
STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Werror"]
HIDDEN = ["-fvisibility=hidden", "-fPIC"]
ZLIB = runpy.run_path("_core/build_zlib.py")

imcore = (
    "imcore",
    {
        "sources": sorted(str(path) for path in CORE.glob("*.c")),
        "obj_deps": {"": EVERYTHING},
        "cflags": STRICT + HIDDEN,
        "macros": ZLIB["MACROS"],
    },
)
imload = (
    "imload",
    {
        "sources": [f"bench/{name}.c" for name in LOAD],
        "obj_deps": {"": [f"bench/{name}.h" for name in ("cut", "engine", "histogram", "load")]},
        "cflags": [*STRICT, *HIDDEN, "-D_GNU_SOURCE"],
    },
)
binding = Extension(
    "imserver._core",
    ["_core/core.pyx"],
    include_dirs=["_core"],
    libraries=["imcore", *ZLIB["LIBRARIES"]],
    depends=EVERYTHING,
    extra_compile_args=[*HIDDEN, "-Wno-unused-function"],  # the C is Cython's
)
setup(
    libraries=[imcore, imload],
    ext_modules=cythonize(
        [binding],
        include_path=["_core"],
        build_dir="build/cython",
        compiler_directives={"language_level": 3, "auto_pickle": False},
    ),
    cffi_modules=["_core/build_ffi.py:ffi", "bench/build_ffi.py:ffi"],
)
