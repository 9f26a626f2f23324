"""imserver itself: as a process of its own, and embedded in a program that holds the GIL."""

import importlib.util
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from bench.peers.adapter import Adapter, by_name, frames, im_v1, receipts, user
from bench.peers.peer import (
    Auth,
    Peer,
    Server,
    ServerError,
    Task,
    data_directory,
    first_line,
    free_address,
    listening,
    running,
)
from imserver.load_process import Placement


@contextmanager
def imserver(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    """`imserver serve`, as an operator would run it."""
    address = free_address()
    with _configured(auth, address) as (config, adapter):
        if task == "durable":
            adapter = receipts(adapter)
        elif task in ("web", "web-fanout"):
            adapter = im_v1(adapter)
        command = [sys.executable, "-m", "imserver", "serve", "--config", str(config)]
        with listening("imserver", command, address, adapter, where.server) as server:
            yield server


def over_tcp(task: Task, auth: Auth, where: Placement) -> AbstractContextManager[Server]:
    """The same server without WebSocket, whatever the task."""
    return imserver("echo", auth, where)


@contextmanager
def gil_host(auth: Auth, where: Placement) -> Iterator[Server]:
    """A Python program with imserver embedded, which holds the GIL when told to."""
    address = free_address()
    with _configured(auth, address) as (config, adapter):
        command = [sys.executable, "-m", "bench.gil_server", str(config)]
        pipe = subprocess.PIPE
        with running(command, where.server, stdin=pipe, stdout=pipe) as child:
            if first_line(child) != "ready":
                raise ServerError("spoke before it was ready")
            yield Server("imserver", child.pid, address, adapter, child.stdin, child.stdout)


@contextmanager
def _configured(auth: Auth, address: tuple[str, int]) -> Iterator[tuple[Path, Adapter]]:
    """A configuration with a key made for this run, and the adapter that signs with it."""
    secret = secrets.token_urlsafe(48)
    lines = [f'listen = "{address[0]}:{address[1]}"', 'http = ""']
    if auth == "dev":
        lines.append("dev = true")
    lines += ["[[auth.keys]]", 'algorithm = "HS256"', f'secret = "{secret}"']
    # Rooms alone: who logs in has no inbox that would be subscribed by itself.
    lines += ["[[namespaces]]", 'prefix = "room"', 'publish = "claim"', 'subscribe = "claim"']
    lines += ['durable = "asked"']
    with data_directory() as directory:
        config = directory / "imserver.toml"
        lines.insert(0, f'data_dir = "{directory}/data"')
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        yield config, frames(_tokens(secret) if auth == "jwt" else by_name)


def _tokens(secret: str) -> Callable[[int], Mapping[str, str]]:
    import jwt

    now_s = int(time.time())
    rights = {"publish": ["room:*"], "subscribe": ["room:*"]}

    def token(number: int) -> Mapping[str, str]:
        claims = {"sub": user(number), "iat": now_s, "exp": now_s + 3_600, "im": rights}
        return {"token": jwt.encode(claims, secret, "HS256")}

    return token


def _obstacle() -> str:
    for module in ("imserver", "imserver._core", "imserver.server", "jwt"):
        try:
            if importlib.util.find_spec(module) is None:
                return f"no module {module}: build it first (make build)"
        except ImportError as error:
            return str(error)
    return ""


IMSERVER: Final = Peer(
    start=imserver, obstacle=_obstacle, title=lambda: f"imserver {version('imserver')}"
)
IMSERVER_TCP: Final = Peer(
    start=over_tcp, obstacle=_obstacle, title=lambda: f"imserver {version('imserver')}, TCP"
)
