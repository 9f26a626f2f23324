"""NATS: a subject a topic; core publish and subscribe, and JetStream for what is to be kept."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any, Final

from bench.peers.adapter import Adapter, user
from bench.peers.peer import (
    START_S,
    Auth,
    Peer,
    Server,
    ServerError,
    Task,
    asked_version,
    data_directory,
    free_address,
    listening,
    missing,
)
from imserver.load import FAILURE, MESSAGE, NATS, PING, Step, Wire
from imserver.load_process import Placement

_MSG, _INFO, _PING, _PONG, _ERR = map(ord, "SNIOE")  # the second letter of each
_WIRE: Final = Wire(
    cut=NATS,
    kinds={_MSG: MESSAGE, _PING: PING, _ERR: FAILURE},
    stamp_from_end=len("stampstp\r\n"),
    pong=b"PONG\r\n",
)


def adapter() -> Adapter:
    numbers = count(1)  # of subscriptions; each connection needs its own to differ

    def login(number: int) -> tuple[Step, ...]:
        options = {"verbose": False, "pedantic": False, "echo": True, "name": user(number)}
        connect = f"CONNECT {json.dumps(options)}\r\nPING\r\n"
        return Step(b"", _INFO), Step(connect.encode(), _PONG)

    def subscribe(topic: str) -> tuple[Step, ...]:
        return (Step(f"SUB {topic} {next(numbers)}\r\nPING\r\n".encode(), _PONG),)

    def publish(number: int, topic: str, body: bytes) -> bytes:
        return b"PUB %s %d\r\n%s\r\n" % (topic.encode(), len(body), body)

    return Adapter(_WIRE, login, subscribe, publish)


@contextmanager
def nats(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    """As it comes; it takes 65,536 connections."""
    host, port = address = free_address()
    command = ["nats-server", "--addr", host, "--port", str(port)]
    with listening("nats", command, address, adapter(), where.server) as server:
        yield server


NATS_SERVER: Final = Peer(
    start=nats,
    obstacle=lambda: missing("nats-server"),
    title=lambda: f"NATS {asked_version('nats-server', '--version')}",
    lacks="no authentication",
)


# --- JetStream ---------------------------------------------------------------------------------

_STREAM: Final = "kept"


def jetstream_adapter() -> Adapter:
    """Each connection hears its own inbox alone, where the acknowledgements of what it publishes
    arrive. One that tells of an error looks the same here: see `ask`."""
    core = adapter()

    def login(number: int) -> tuple[Step, ...]:
        return *core.login(number), *core.subscribe(f"_INBOX.{user(number)}")

    def publish(number: int, topic: str, body: bytes) -> bytes:
        names = f"{_STREAM}.{topic} _INBOX.{user(number)}".encode()
        return b"PUB %s %d\r\n%s\r\n" % (names, len(body), body)

    return Adapter(replace(_WIRE, stamp_from_end=0), login, lambda topic: (), publish)


def ask(address: tuple[str, int], request: str, body: str = "") -> dict[str, Any]:
    """What JetStream answers to a request of its API about the one stream there is."""
    with socket.create_connection(address, START_S) as link, link.makefile("rb") as heard:
        subject = f"$JS.API.STREAM.{request}.{_STREAM}"
        link.sendall(
            b'CONNECT {"verbose":false}\r\nSUB answer 1\r\n'
            + f"PUB {subject} answer {len(body)}\r\n{body}\r\n".encode()
        )
        for line in heard:
            if line.startswith(b"MSG "):
                found: dict[str, Any] = json.loads(heard.read(int(line.split()[-1])))
                if "error" in found:
                    raise ServerError(f"{request}: {found['error']}")
                return found
            if line.startswith(b"-ERR"):
                break
    raise ServerError(f"{request}: no answer")


@contextmanager
def jetstream(task: Task, auth: Auth, where: Placement) -> Iterator[Server]:
    """One stream in files, of all topics. As it comes: nothing is flushed before the answer."""
    host, port = address = free_address()
    stream = {"name": _STREAM, "subjects": [f"{_STREAM}.>"], "storage": "file"}
    with data_directory() as directory:
        command = ["nats-server", "--addr", host, "--port", str(port)]
        command += ["--jetstream", "--store_dir", str(directory)]
        with listening("jetstream", command, address, jetstream_adapter(), where.server) as server:
            ask(address, "CREATE", json.dumps(stream))
            yield server


JETSTREAM: Final = Peer(
    start=jetstream,
    obstacle=lambda: missing("nats-server"),
    title=lambda: f"NATS {asked_version('nats-server', '--version')} JetStream, file store",
    lacks="no authentication, answers up to minutes before the flush",
)
