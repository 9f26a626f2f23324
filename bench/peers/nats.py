"""NATS: a subject a topic, core publish and subscribe."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Final

from bench.peers.adapter import Adapter, user
from bench.peers.peer import (
    Auth,
    Peer,
    Server,
    Task,
    asked_version,
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
