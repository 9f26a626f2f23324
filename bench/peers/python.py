"""The peers in Python: four ways to write a server, each a program of its own beside this file.

They share what a frame and a room are (rooms.py) and are otherwise what the documentation of
their library shows.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Final

from bench.peers.adapter import Adapter, by_name, frames, websocket
from bench.peers.peer import Auth, Peer, Server, Task, announced
from imserver.load_process import Placement

TCP: Final = frames(by_name)
WEBSOCKET: Final = websocket(TCP)
_LACKS: Final = "no authentication, no heartbeats"


@contextmanager
def program(
    name: str, module: str, adapter: Adapter, task: Task, auth: Auth, where: Placement
) -> Iterator[Server]:
    command = [sys.executable, "-m", f"bench.peers.{module}"]
    with announced(name, command, adapter, where.server) as server:
        yield server


def _needs(*modules: str) -> str:
    lacking = [module for module in modules if importlib.util.find_spec(module) is None]
    return f"no module {', '.join(lacking)}: make peers" if lacking else ""


ASYNCIO: Final = Peer(
    start=partial(program, "asyncio", "asyncio_streams", TCP),
    obstacle=_needs,
    title=lambda: f"asyncio streams {sys.version_info.major}.{sys.version_info.minor}",
    lacks=_LACKS,
)
UVLOOP: Final = Peer(
    start=partial(program, "uvloop", "uvloop_protocol", TCP),
    obstacle=partial(_needs, "uvloop"),
    title=lambda: f"uvloop Protocol {version('uvloop')}",
    lacks=_LACKS,
)
PICOWS: Final = Peer(
    start=partial(program, "picows", "picows_listener", WEBSOCKET),
    obstacle=partial(_needs, "uvloop", "picows"),
    title=lambda: f"picows {version('picows')}",
    lacks=_LACKS,
)
WEBSOCKETS: Final = Peer(
    start=partial(program, "websockets", "websockets_handler", WEBSOCKET),
    obstacle=partial(_needs, "uvloop", "websockets"),
    title=lambda: f"websockets {version('websockets')}",
    lacks=_LACKS,
)
