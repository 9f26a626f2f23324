"""The classical server in Go (server.go), built on first use."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench import build
from bench.peers.adapter import by_name, frames
from bench.peers.peer import Auth, Peer, Server, Task, announced, asked_version, missing
from imserver.load_process import Placement

HERE: Final = Path(__file__).parent
BUILD_S: Final = 300.0


@contextmanager
def go(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    with announced("go", [str(program())], frames(by_name), where.server) as server:
        yield server


def program() -> Path:
    """The server; built when it is not there yet."""
    sources = (HERE / "server.go", HERE / "go.mod")
    return build.built("go", _version(), sources, _build) / "server"


def _build(place: Path) -> None:
    done = subprocess.run(
        ["go", "build", "-o", str(place / "server"), "."],
        cwd=HERE,
        env={**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=BUILD_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"go build failed:\n{done.stderr}")


def _version() -> str:
    return asked_version("go", "version")


def _obstacle() -> str:
    if obstacle := missing("go"):
        return obstacle
    try:
        program()
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


GO: Final = Peer(
    start=go,
    obstacle=_obstacle,
    title=lambda: f"Go {_version()}",
    lacks="no authentication, no heartbeats",
)
