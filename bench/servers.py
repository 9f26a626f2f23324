"""Servers under measurement: started pinned to a CPU, found, and ended by their process id.

Each is a context manager that yields a running `Server`. The kernel kills a server whose harness
has died (`setpriv --pdeathsig`), so that no failure leaves one behind. A peer to come is one more
function here, an adapter, and a row in PEERS.
"""

import importlib.util
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

from bench import build
from bench.adapters import FLOOR, Adapter, imserver, user
from imserver.load_process import Placement

ROOT: Final = Path(__file__).parent.parent
START_S: Final = 20.0
STOP_S: Final = 10.0

Task = Literal["echo", "fanout"]
Auth = Literal["jwt", "dev"]


class ServerError(RuntimeError):
    """A server did not start, or not as asked. Carries the end of what it wrote."""


@dataclass(frozen=True)
class Server:
    """One that runs. `input` and `output` are its pipes, where it has any to talk through."""

    name: str
    pid: int
    address: tuple[str, int]
    adapter: Adapter
    input: IO[str] | None = None
    output: IO[str] | None = None

    def ask(self, line: str) -> str:
        """Say a line to it and return the line it answers with."""
        if self.input is None or self.output is None:
            raise ServerError(f"{self.name} is not one to talk to")
        self.input.write(line + "\n")
        self.input.flush()
        return self.output.readline().strip()


class Peer(NamedTuple):
    """A kind of server: how it is started for a task, and why it cannot be ("" when it can)."""

    start: Callable[[Task, Auth, Placement], AbstractContextManager[Server]]
    obstacle: Callable[[], str]


@contextmanager
def _running(
    command: list[str], cpu: int, *, stdin: int | None = None, stdout: int
) -> Iterator[subprocess.Popen[str]]:
    pinned = ["setpriv", "--pdeathsig", "KILL", "taskset", "-c", str(cpu), *command]
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            pinned, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=log, text=True
        )
        try:
            yield child
        except Exception as error:
            log.seek(0)
            written = [line for line in log.read()[-4000:].splitlines() if line.strip()]
            if not written:
                raise
            last = "\n    ".join(written[-5:])
            raise ServerError(f"{error}; the server wrote last:\n    {last}") from error
        finally:
            child.terminate()
            try:
                child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            for pipe in (child.stdin, child.stdout):
                if pipe is not None:
                    pipe.close()


def _first_line(child: subprocess.Popen[str]) -> str:
    line = child.stdout.readline().strip() if child.stdout else ""
    if not line:
        raise ServerError(f"ended with {child.wait(STOP_S)} before it was ready")
    return line


def _await_port(child: subprocess.Popen[str], address: tuple[str, int]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise ServerError(f"ended with {child.returncode} before it was ready")
        try:
            socket.create_connection(address, timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise ServerError(f"does not listen on {address[1]} after {START_S:.0f} s")


def _free_address() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return "127.0.0.1", probe.getsockname()[1]


@contextmanager
def floor(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    """The C floor. It knows no login, whatever `auth` says."""
    command = [str(build.floor()), task]
    with _running(command, where.server, stdout=subprocess.PIPE) as child:
        port = int(_first_line(child))
        yield Server("floor", child.pid, ("127.0.0.1", port), FLOOR)


@contextmanager
def imserver_process(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    """`imserver serve`, as an operator would run it."""
    address = _free_address()
    with _configured(auth, address) as (config, adapter):
        command = [sys.executable, "-m", "imserver", "serve", "--config", str(config)]
        with _running(command, where.server, stdout=subprocess.DEVNULL) as child:
            _await_port(child, address)
            yield Server("imserver", child.pid, address, adapter)


@contextmanager
def gil_host(auth: Auth, where: Placement) -> Iterator[Server]:
    """A Python program with imserver embedded, which holds the GIL when told to."""
    address = _free_address()
    with _configured(auth, address) as (config, adapter):
        command = [sys.executable, "-m", "bench.gil_server", str(config)]
        pipe = subprocess.PIPE
        with _running(command, where.server, stdin=pipe, stdout=pipe) as child:
            if _first_line(child) != "ready":
                raise ServerError("spoke before it was ready")
            yield Server("imserver", child.pid, address, adapter, child.stdin, child.stdout)


@contextmanager
def _configured(auth: Auth, address: tuple[str, int]) -> Iterator[tuple[Path, Adapter]]:
    """A configuration with a key made for this run, and the adapter that signs with it."""
    secret = secrets.token_urlsafe(48)
    lines = [f'listen = "{address[0]}:{address[1]}"', 'http = "127.0.0.1:0"']
    if auth == "dev":
        lines.append("dev = true")
    lines += ["[[auth.keys]]", 'algorithm = "HS256"', f'secret = "{secret}"']
    with tempfile.TemporaryDirectory(prefix="imserver-bench-") as directory:
        config = Path(directory) / "imserver.toml"
        config.write_text("\n".join(lines) + "\n")
        config.chmod(0o600)
        yield config, imserver(_tokens(secret) if auth == "jwt" else _names)


def _names(number: int) -> Mapping[str, str]:
    return {"user": user(number)}


def _tokens(secret: str) -> Callable[[int], Mapping[str, str]]:
    import jwt

    now_s = int(time.time())
    rights = {"publish": ["room:*"], "subscribe": ["room:*"]}

    def token(number: int) -> Mapping[str, str]:
        claims = {"sub": user(number), "iat": now_s, "exp": now_s + 3_600, "im": rights}
        return {"token": jwt.encode(claims, secret, "HS256")}

    return token


def _floor_obstacle() -> str:
    try:
        build.floor()
    except RuntimeError as error:
        return str(error)
    return ""


def _imserver_obstacle() -> str:
    for module in ("imserver", "imserver._core", "imserver.server", "jwt"):
        try:
            if importlib.util.find_spec(module) is None:
                return f"no module {module}: build it first (make build)"
        except ImportError as error:
            return str(error)
    return ""


PEERS: Final[Mapping[str, Peer]] = {
    "floor": Peer(floor, _floor_obstacle),
    "imserver": Peer(imserver_process, _imserver_obstacle),
}
