"""What a peer is, and how its process is run: pinned to a CPU, found, and ended by its id.

The kernel kills a server whose harness has died (`setpriv --pdeathsig`), so that no failure
leaves one behind. Each gets the descriptors that 19,000 connections need, where the system lets
it (`prlimit`).
"""

import re
import resource
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal

from bench.peers.adapter import Adapter
from imserver.load_process import Placement

ROOT: Final = Path(__file__).parent.parent.parent
#: What servers write is here, on a file system that is one, and not in a /tmp that may be memory.
DATA: Final = ROOT / "build" / "bench"
HOST: Final = "127.0.0.1"
START_S: Final = 20.0
STOP_S: Final = 10.0
DESCRIPTORS: Final = 20_000

#: "web" and "web-fanout": over WebSocket, by whoever has it.
Task = Literal["echo", "fanout", "durable", "web", "web-fanout"]
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


@dataclass(frozen=True)
class Peer:
    """A kind of server. Where there is an obstacle it has no title and cannot be started."""

    start: Callable[[Task, Auth, Placement], AbstractContextManager[Server]]
    obstacle: Callable[[], str]  # why it cannot be started; "" when it can
    title: Callable[[], str]  # with the version that is installed
    lacks: str = ""  # what imserver does for each message or connection and this does not


@contextmanager
def data_directory() -> Iterator[Path]:
    """For all that one server keeps. It goes with it."""
    DATA.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="imserver-bench-", dir=DATA) as directory:
        yield Path(directory)


def missing(program: str) -> str:
    """The obstacle of a peer that is a program."""
    return "" if shutil.which(program) else f"no {program} on the path: make peers"


def asked_version(*command: str) -> str:
    """Major and minor number, as the program tells them. mosquitto tells with exit code 3."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    found = re.search(r"(\d+\.\d+)", done.stdout + done.stderr)
    return found[1] if found else "of unknown version"


@contextmanager
def running(
    command: list[str], cpu: int, *, stdin: int | None = None, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The process while the block runs. What it writes is kept for errors, its stdout only
    where nobody else takes that."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    soft = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS)
    pinned = ["prlimit", f"--nofile={soft}:", "setpriv", "--pdeathsig", "KILL"]
    pinned += ["taskset", "-c", str(cpu), *command]
    with tempfile.TemporaryFile("w+") as log:
        child = subprocess.Popen(
            pinned, cwd=ROOT, stdin=stdin, stdout=stdout or log, stderr=log, text=True
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


def first_line(child: subprocess.Popen[str]) -> str:
    """What it says when it is ready."""
    line = child.stdout.readline().strip() if child.stdout else ""
    if not line:
        raise ServerError(f"ended with {child.wait(STOP_S)} before it was ready")
    return line


@contextmanager
def announced(name: str, command: list[str], adapter: Adapter, cpu: int) -> Iterator[Server]:
    """One of ours: it takes a port and prints it."""
    with running(command, cpu, stdout=subprocess.PIPE) as child:
        yield Server(name, child.pid, (HOST, int(first_line(child))), adapter)


@contextmanager
def listening(
    name: str, command: list[str], address: tuple[str, int], adapter: Adapter, cpu: int
) -> Iterator[Server]:
    """One that was told where to listen, once it does."""
    with running(command, cpu) as child:
        _await_port(child, address)
        yield Server(name, child.pid, address, adapter)


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


def free_address() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return HOST, probe.getsockname()[1]
