"""What the generator says to a server and how it counts what comes back: protocols as data.

An adapter is a wire and three templates that are filled in with the number of a connection. The
floor gets the very frames that imserver gets, without the login, so both move the same bytes.

Written from docs/protocol.md and not with imserver's own encoder: a mistake there must not be
measured on both sides.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from struct import pack

from imserver.load import FAILURE, MESSAGE, PING, Step, Wire

HELLO, WELCOME, SUBSCRIBE, SUBSCRIBED = 1, 2, 3, 4
_MESSAGE, _PING, _PONG, _ERROR, _GOAWAY = 7, 11, 12, 15, 16
_JSON = 1 << 6

IMSERVER_WIRE = Wire(
    type_at=4,
    kinds={_MESSAGE: MESSAGE, _PING: PING, _ERROR: FAILURE, _GOAWAY: FAILURE},
    pong=pack(">IBBH", 4, _PONG, 0, 0),
)


@dataclass(frozen=True)
class Adapter:
    """How to talk to one kind of server."""

    wire: Wire
    login: Callable[[int], tuple[Step, ...]]  # number of the connection
    subscribe: Callable[[str], tuple[Step, ...]]  # topic
    publish: Callable[[int, str, bytes], bytes]  # number, topic and body: the frame


def user(number: int) -> str:
    """Who logs in on a connection."""
    return f"bench-{number}"


def message(number: int, topic: str, body: bytes) -> bytes:
    """A MESSAGE frame from the user of that connection."""
    names = topic.encode(), user(number).encode()
    length = 32 + len(names[0]) + len(names[1]) + len(body)
    head = pack(">IBBHQQQBBBB", length, _MESSAGE, 0, 0, 0, 0, 0, len(names[0]), 0, len(names[1]), 0)
    return b"".join((head, *names, body))


def _control(type: int, request: int, body: Mapping[str, object]) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    return pack(">IBBH", len(data) + 4, type, _JSON, request) + data


def imserver(credentials: Callable[[int], Mapping[str, str]]) -> Adapter:
    """`credentials` gives what HELLO proves a connection's user by: a token, or with --dev just
    the name."""

    def login(number: int) -> tuple[Step, ...]:
        hello = {"version": 1, **credentials(number), "device": "bench", "client": "bench"}
        return (Step(_control(HELLO, 1, hello), WELCOME),)

    def subscribe(topic: str) -> tuple[Step, ...]:
        return (Step(_control(SUBSCRIBE, 2, {"topic": topic}), SUBSCRIBED),)

    return Adapter(IMSERVER_WIRE, login, subscribe, message)


FLOOR = Adapter(IMSERVER_WIRE, lambda number: (), lambda topic: (), message)
