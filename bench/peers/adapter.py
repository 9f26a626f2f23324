"""What the generator says to a server and how it counts what comes back: protocols as data.

An adapter is a wire and three templates that are filled in with the number of a connection. Here
are the frames of imserver, which the floor and the peers that we wrote speak, too, so all of
them move the same bytes; other protocols are beside the server that speaks them.

Written from docs/protocol.md and not with imserver's own encoder: a mistake there must not be
measured on both sides.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from struct import pack
from typing import Final

from imserver.load import FAILURE, MESSAGE, PING, WEBSOCKET, WEBSOCKET_MANY, Step, Wire

_HELLO, _WELCOME, _SUBSCRIBE, _SUBSCRIBED = 1, 2, 3, 4
_MESSAGE, _RECEIPT, _PING, _PONG, _ERROR, _GOAWAY = 7, 8, 11, 12, 15, 16
_DURABLE: Final = 1 << 0
_JSON: Final = 1 << 6

FRAMES: Final = Wire(
    type_at=4,
    kinds={_MESSAGE: MESSAGE, _PING: PING, _ERROR: FAILURE, _GOAWAY: FAILURE},
    pong=pack(">IBBH", 4, _PONG, 0, 0),
)
#: What counts is the receipt of a durable message, which repeats the id. So the stamp is the id,
#: and all differ, as they do in earnest: a server remembers them for a while.
RECEIPTS: Final = replace(
    FRAMES,
    kinds={_RECEIPT: MESSAGE, _PING: PING, _ERROR: FAILURE, _GOAWAY: FAILURE},
    stamp_from_end=24,
    stamp_at=24,
)

_UPGRADE: Final = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MTIzNDU2Nzg5MDEyMzQ1Ng==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_HTTP: Final = ord("H")
_WS_CLOSE, _WS_PING = 0x88, 0x89
_WS_MASKED: Final = 0x80


@dataclass(frozen=True)
class Adapter:
    """How to talk to one kind of server."""

    wire: Wire
    login: Callable[[int], tuple[Step, ...]]  # number of the connection
    subscribe: Callable[[str], tuple[Step, ...]]  # topic
    #: Number, topic and body. The last 8 bytes of the body become the stamp, in place: they
    #: end so far from the end of the frame as the wire says. Or what else the wire says.
    publish: Callable[[int, str, bytes], bytes]


def user(number: int) -> str:
    """Who logs in on a connection."""
    return f"bench-{number}"


def _message(number: int, topic: str, body: bytes, flags: int = 0) -> bytes:
    names = topic.encode(), user(number).encode()
    length = 32 + len(names[0]) + len(names[1]) + len(body)
    head = pack(">IBBHQQQ", length, _MESSAGE, flags, 0, 0, 0, 0)
    lengths = pack(">BBBB", len(names[0]), 0, len(names[1]), 0)
    return b"".join((head, lengths, *names, body))


_durable_message: Final = partial(_message, flags=_DURABLE)


def _control(type: int, request: int, body: Mapping[str, object]) -> bytes:
    data = json.dumps(body, separators=(",", ":")).encode()
    return pack(">IBBH", len(data) + 4, type, _JSON, request) + data


def frames(credentials: Callable[[int], Mapping[str, str]]) -> Adapter:
    """imserver's frames over TCP. `credentials` gives what HELLO proves a connection's user by:
    a token, or just the name where that is believed."""

    def login(number: int) -> tuple[Step, ...]:
        hello = {"version": 1, **credentials(number), "device": "bench", "client": "bench"}
        return (Step(_control(_HELLO, 1, hello), _WELCOME),)

    def subscribe(topic: str) -> tuple[Step, ...]:
        return (Step(_control(_SUBSCRIBE, 2, {"topic": topic}), _SUBSCRIBED),)

    return Adapter(FRAMES, login, subscribe, _message)


def receipts(adapter: Adapter) -> Adapter:
    """The same server, told to keep each message: nobody hears it, the receipt is what counts."""
    return Adapter(RECEIPTS, adapter.login, lambda topic: (), _durable_message)


def by_name(number: int) -> Mapping[str, str]:
    """The credentials where a name is believed."""
    return {"user": user(number)}


_HEARD: Final = (Step(pack(">IBBH", 4, _PING, 0, 0), _PING),)

#: The same frames for who knows no login: a PING takes the place of HELLO and of SUBSCRIBE, and
#: comes back. TCP tells a client that has answered from one that only listens (floor.c).
RAW: Final = Adapter(FRAMES, lambda number: _HEARD, lambda topic: _HEARD, _message)


def websocket(inner: Adapter, request: bytes = _UPGRADE, cut: int = WEBSOCKET) -> Adapter:
    """Each of its frames in a binary message of its own; what comes back is cut as `cut` says."""

    def wrapped(step: Step) -> Step:
        return Step(_masked(step.data), step.awaits)

    wire = replace(
        inner.wire,
        cut=cut,
        kinds={**inner.wire.kinds, _WS_CLOSE: FAILURE, _WS_PING: FAILURE},
        pong=_masked(inner.wire.pong),
    )
    return Adapter(
        wire,
        lambda number: (Step(request, _HTTP), *map(wrapped, inner.login(number))),
        lambda topic: tuple(map(wrapped, inner.subscribe(topic))),
        lambda number, topic, body: _masked(inner.publish(number, topic, body)),
    )


def im_v1(inner: Adapter) -> Adapter:
    """imserver's WebSocket, which puts all that it has to say at a time into one message."""
    subprotocol = b"Sec-WebSocket-Protocol: im.v1\r\n\r\n"
    request = _UPGRADE.replace(b"GET /", b"GET /ws").removesuffix(b"\r\n") + subprotocol
    return websocket(inner, request, WEBSOCKET_MANY)


def _masked(payload: bytes) -> bytes:
    """A client's message. Its mask is zero, so that the stamp can be written in place; a server
    cannot know, and unmasks as always."""
    size = len(payload)
    if size < 126:
        length = pack(">B", _WS_MASKED | size)
    elif size < 1 << 16:
        length = pack(">BH", _WS_MASKED | 126, size)
    else:
        length = pack(">BQ", _WS_MASKED | 127, size)
    return b"\x82" + length + bytes(4) + payload
