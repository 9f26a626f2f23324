"""Whether the core is built with zlib, for permessage-deflate.

setup.py and build_ffi.py run this file. Without zlib's header a build has everything but
`websocket.deflate`, which then says so.
"""

import os
import shlex
import subprocess
import sys

_ASKED = [*shlex.split(os.environ.get("CC", "cc")), "-E", "-include", "zlib.h", "-xc", os.devnull]

HAS_ZLIB = subprocess.run(_ASKED, capture_output=True, check=False).returncode == 0
LIBRARIES = ["z"] if HAS_ZLIB else []
MACROS = [("IM_ZLIB", "1")] if HAS_ZLIB else []

if not HAS_ZLIB:
    print("no zlib.h (zlib1g-dev): this build is without websocket.deflate", file=sys.stderr)
