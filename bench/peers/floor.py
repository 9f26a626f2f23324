"""The floor: what the kernel asks for this traffic, and nothing else (floor.c)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from bench import build
from bench.peers.adapter import RAW, receipts
from bench.peers.peer import Auth, Peer, Server, Task, announced, data_directory
from imserver.load_process import Placement


@contextmanager
def floor(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    """It knows no login, whatever `auth` says, and no WebSocket: there it is the floor of TCP."""
    command = [str(build.floor()), "echo" if task == "web" else task]
    if task != "durable":
        with announced("floor", command, RAW, where.server) as server:
            yield server
        return
    with data_directory() as directory:
        command.append(str(directory / "kept"))
        with announced("floor", command, receipts(RAW), where.server) as server:
            yield server


def _obstacle() -> str:
    try:
        build.floor()
    except RuntimeError as error:
        return str(error)
    return ""


FLOOR: Final = Peer(
    start=floor,
    obstacle=_obstacle,
    title=lambda: "floor",
    lacks="no login, topics, heartbeats or bounds",
)
