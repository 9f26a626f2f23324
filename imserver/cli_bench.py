"""`imserver bench`: how fast this installation is on this machine, or a server that runs already.

A few seconds each of ping-pong, pipelined and fan-out by the C load generator, and latency in an
open loop. A server of our own is a child process on a CPU of its own, and its CPU time is
counted; of another server only throughput and latency can be seen.

Not here: other servers to compare with, repeats, targets and plots (bench, run from the
repository).
"""

import ctypes
import json
import os
import platform
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

import click

from imserver import __version__
from imserver.bodies import Hello, Subscribe
from imserver.cli_chat import claims_of
from imserver.cli_serve import raise_file_limit
from imserver.config import split_address
from imserver.load import FAILURE, MESSAGE, PING, Generator, LoadError, Step, Wire
from imserver.load_process import Placement, pin, placement, usage
from imserver.model import CODEC_JSON
from imserver.protocol import FrameType, encode_bare, encode_frame, encode_message

START_S: Final = 20.0
STOP_S: Final = 10.0
WARM_UP_S: Final = 0.3
BODY: Final = bytes(range(64))
PERCENTILES: Final = ("p50", "p90", "p99", "p99.9", "max")

WIRE: Final = Wire(
    type_at=4,
    kinds={
        FrameType.MESSAGE: MESSAGE,
        FrameType.PING: PING,
        FrameType.ERROR: FAILURE,
        FrameType.GOAWAY: FAILURE,
    },
    pong=encode_bare(FrameType.PONG),
)


class CannotBench(Exception):
    """Why nothing could be measured, in a line or two."""


class Case(NamedTuple):
    name: str
    title: str
    hears: Literal["itself", "all"]
    connections: int
    depth: int
    burst: int = 1


CASES: Final = (
    Case("ping-pong", "100 connections, one message of each under way", "itself", 100, 1),
    Case("pipelined", "50 connections, 64 messages of each under way", "itself", 50, 64),
    Case("fan-out", "1 to 1,000 connections, bursts of 32", "all", 1_001, 32, 32),
)


@dataclass(frozen=True)
class Subject:
    """The server that is measured; `pid` when it is ours. Who logs in: a token, or a name to
    which each connection appends its number."""

    address: tuple[str, int]
    login: Mapping[str, str]
    pid: int | None = None
    cpus: frozenset[int] = frozenset()  # of ours

    def sender(self, number: int) -> str:
        if "user" in self.login:
            return f"{self.login['user']}-{number}"
        return str(claims_of(self.login["token"]).get("sub", ""))

    def hello(self, number: int) -> Step:
        # A device each: two connections of one device are one, the later of them.
        who = {"user": self.sender(number)} if "user" in self.login else self.login
        body = Hello(version=1, device=f"bench-{number}", client="imserver-bench", **who)
        return Step(encode_frame(FrameType.HELLO, body, CODEC_JSON, 1), FrameType.WELCOME)


@dataclass(frozen=True)
class Outcome:
    """What a case came to. `server_us`: CPU time of the server a delivery, where it is known."""

    case: str
    title: str
    deliveries_per_s: float
    server_us: float | None
    generator_busy: float
    latency_us: Mapping[str, float] = field(default_factory=dict)
    is_generator_bound: bool = False


def bench(
    server: str | None, login: Mapping[str, str], seconds: float, threads: str, as_json: bool
) -> None:
    """Measure and print. CannotBench when there is nothing to measure."""
    raise_file_limit()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    where = placement()
    with remote(server, login) if server else own_server(where, threads) as subject:
        outcomes = measure(subject, where, seconds)
    about = {
        "version": __version__,
        "cpu": cpu_model(),
        "server": server or f"own, --threads {threads}",
        "server_cpus": None if server else sorted(subject.cpus),
        "generator_cpu": where.generator,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "seconds": seconds,
    }
    if as_json:
        click.echo(json.dumps({**about, "cases": [vars(one) for one in outcomes]}))
    else:
        show(outcomes, is_shared(subject, where), is_own=server is None)


def is_shared(subject: Subject, where: Placement) -> bool:
    """Whether server and generator take a CPU from each other, as far as we know."""
    return where.is_shared or where.generator in subject.cpus


def cpu_model() -> str:
    """Of the first CPU, as the kernel names it; "" where it does not."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else ""


# --- whom to measure -----------------------------------------------------------------------------


@contextmanager
def own_server(where: Placement, threads: str) -> Iterator[Subject]:
    """`imserver serve --dev` on a free port of loopback, without settings from around, on its
    CPUs. It ends with this block, and with this process however that ends."""
    environment = {key: at for key, at in os.environ.items() if not key.startswith("IMSERVER_")}
    command = [sys.executable, "-m", "imserver", "serve", "--dev", "--threads", threads]
    command += ["--listen", "127.0.0.1:0", "--http", "", "--data"]
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec there must be no import
    cpus = frozenset({where.server}) if threads == "1" else where.of_threads

    def prepare() -> None:
        libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        os.sched_setaffinity(0, cpus)

    with (
        tempfile.TemporaryFile("w+") as log,
        tempfile.TemporaryDirectory(prefix="imserver-bench-") as data_dir,
        subprocess.Popen(
            [*command, data_dir],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
            preexec_fn=prepare,
        ) as child,
    ):
        try:
            yield Subject(_greeted_address(child, log), {"user": "bench"}, child.pid, cpus)
        finally:
            child.terminate()
            try:
                child.communicate(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                child.kill()


def _greeted_address(child: subprocess.Popen[str], log: IO[str]) -> tuple[str, int]:
    """From the first line that `serve` prints, once it listens."""
    assert child.stdout is not None
    ready, _, _ = select.select([child.stdout], [], [], START_S)
    line = child.stdout.readline() if ready else ""
    found = re.search(r"listens on ([\d.]+):(\d+)", line)
    if found is None:
        child.kill()
        child.wait()
        log.seek(0)
        last = log.read().strip().splitlines()[-1:] or [f"it said nothing in {START_S:.0f} s"]
        raise CannotBench(f"the server did not start: {last[0]}")
    return found[1], int(found[2])


@contextmanager
def remote(server: str, login: Mapping[str, str]) -> Iterator[Subject]:
    """A server that runs."""
    if token := login.get("token"):
        claims = claims_of(token)
        if not isinstance(claims.get("sub"), str):
            raise CannotBench("the token names no user: it is not one of `imserver token`")
        if claims.get("im", {}).get("device") is not None:
            raise CannotBench("the token is good for one device only, and bench needs a thousand")
    try:
        host, port = split_address(server)
        found = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)
        address = str(found[0][4][0]), port
        socket.create_connection(address, timeout=5).close()
    except ValueError as error:
        raise CannotBench(f"--server {server}: {error}") from None
    except OSError as error:
        text = f"no server at {server}: {error.strerror or error}; bench knows IPv4 only"
        raise CannotBench(text) from None
    yield Subject(address, login)


# --- measuring -----------------------------------------------------------------------------------


def measure(subject: Subject, where: Placement, seconds: float) -> list[Outcome]:
    """All cases, one after the other."""
    before = os.sched_getaffinity(0)
    pin(where.generator)
    outcomes: list[Outcome] = []
    try:
        for case in CASES:
            click.echo(f"measuring {case.name}: {case.title}", err=True)
            outcomes += _measure(subject, case, seconds, where)
    except LoadError as error:
        raise CannotBench(f"{case.name}: {error}") from None
    except (FileNotFoundError, ProcessLookupError):
        raise CannotBench(f"{case.name}: the server has ended") from None
    finally:
        os.sched_setaffinity(0, before)
    return outcomes


def _measure(subject: Subject, case: Case, seconds: float, where: Placement) -> Iterator[Outcome]:
    # Somebody else's server may need our CPU, too.
    spins = subject.pid is not None and not is_shared(subject, where)
    with Generator(WIRE, case.connections, spins=spins) as load:
        _lay_out(load, subject, case)
        load.open(subject.address)
        load.check(load.run(WARM_UP_S, depth=case.depth, burst=case.burst))
        before_ns = usage(subject.pid).cpu_ns if subject.pid else 0
        traffic = load.check(load.run(seconds, depth=case.depth, burst=case.burst))
        used_ns = usage(subject.pid).cpu_ns - before_ns if subject.pid else 0
        per_s = traffic.received / traffic.wall_s
        yield Outcome(
            case.name,
            case.title,
            per_s,
            used_ns / 1000 / traffic.received if subject.pid else None,
            traffic.busy,
            is_generator_bound=traffic.is_saturated and used_ns / 1e9 / traffic.wall_s < 0.9,
        )
        if case.depth > 1:
            return
        # Of a closed loop the latency tells how deep the queues were. This is what a client sees.
        rate = max(1, int(per_s / 2))
        click.echo(f"measuring latency at {rate:,} messages a second", err=True)
        traffic = load.check(load.run(seconds, rate=rate))
        title = f"at half of that rate, {rate:,} messages a second"
        latency_us = {
            **traffic.latency.summary_us(),
            "late_p99.9": traffic.lateness.at(0.999) / 1e3,
        }
        yield Outcome(
            "latency", title, traffic.received / traffic.wall_s, None, traffic.busy, latency_us
        )


def _lay_out(load: Generator, subject: Subject, case: Case) -> None:
    """Rooms of one, or one room in which the first talks to all others."""
    together = load.group(case.connections - 1) if case.hears == "all" else 0
    for number in range(case.connections):
        topic = "room:bench" if case.hears == "all" else f"room:bench-{number}"
        script = [subject.hello(number)]
        frames = [encode_message(topic, subject.sender(number), BODY)]
        if case.hears == "itself" or number > 0:
            body = Subscribe(topic=topic, tags="*")
            subscribe = encode_frame(FrameType.SUBSCRIBE, body, CODEC_JSON, 2)
            script.append(Step(subscribe, FrameType.SUBSCRIBED))
        if case.hears == "all" and number > 0:
            frames = []
        group = together if case.hears == "all" else load.group(1)
        load.add(group, frames=frames, script=script)


# --- printing ------------------------------------------------------------------------------------


def show(outcomes: list[Outcome], is_one_cpu: bool, is_own: bool) -> None:
    """The table and what must be known to believe it."""
    head = ["case", "deliveries/s", *(["server CPU, µs each"] if is_own else []), ""]
    rows = [head]
    for one in outcomes:
        if not one.latency_us:
            cpu = [f"{one.server_us:.3f}"] if one.server_us is not None else []
            rows.append([one.case, f"{one.deliveries_per_s:,.0f}", *cpu, one.title])
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    for row in rows:
        click.echo("  ".join(cell.ljust(at) for cell, at in zip(row, widths, strict=True)).rstrip())
    for one in outcomes:
        if one.latency_us:
            found = ", ".join(f"{name} {one.latency_us[name]:,.0f}" for name in PERCENTILES)
            click.echo(f"latency in µs {one.title}: {found}")
            if one.latency_us["late_p99.9"] > 1_000:
                click.echo(
                    "note: something else ran on the generator's CPU; the tail tells of that"
                )
    bound = [one.case for one in outcomes if one.is_generator_bound]
    if bound:
        click.echo(f"note: the generator was at its limit in {', '.join(bound)}")
    if is_one_cpu:
        click.echo("note: server and generator share a CPU, so both look slow")
