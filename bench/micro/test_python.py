"""What Python does for a client: events across the border, control bodies, tokens."""

import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from imserver import _core
from imserver.auth import Authenticator, issue
from imserver.config import Auth, Config, Key
from imserver.config import Limits as Bounds
from imserver.gateway_core import make_core
from imserver.protocol import (
    CODEC_JSON,
    CODEC_MSGPACK,
    CODEC_PROTOBUF,
    Call,
    FrameType,
    Heartbeat,
    Hello,
    Limits,
    Reconnect,
    Subscribe,
    Welcome,
    decode_body,
    encode_frame,
)

CODECS = {"json": CODEC_JSON, "msgpack": CODEC_MSGPACK, "protobuf": CODEC_PROTOBUF}
BODIES = {
    FrameType.HELLO: Hello(version=1, user="bench-1", device="phone", client="bench/1"),
    FrameType.SUBSCRIBE: Subscribe(topic="room:bench-1"),
    FrameType.WELCOME: Welcome(
        user="bench-1",
        session="100000001",
        node="one",
        time=1,
        heartbeat=Heartbeat(30_000, 10_000, 3),
        limits=Limits(65_536, 256, 256),
        reconnect=Reconnect(500, 2.0, 30_000),
    ),
}
CALLS = 200  # under way at a time, all of them in one batch


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("type", BODIES, ids=lambda type: type.name)
def test_encode(benchmark: Any, type: FrameType, codec: str) -> None:
    frame = benchmark(encode_frame, type, BODIES[type], CODECS[codec], 1)
    assert decode_body(type, CODECS[codec], frame[8:]) == BODIES[type]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("type", BODIES, ids=lambda type: type.name)
def test_decode(benchmark: Any, type: FrameType, codec: str) -> None:
    data = encode_frame(type, BODIES[type], CODECS[codec], 1)[8:]
    assert benchmark(decode_body, type, CODECS[codec], data) == BODIES[type]


def test_token(benchmark: Any) -> None:
    auth = Auth(keys=(Key(algorithm="HS256", secret="0123456789abcdef0123456789abcdef"),))
    token = issue(auth, "bench-1", publish=["room:*"], subscribe=["room:*"])
    assert benchmark(Authenticator(auth).identify, token).user == "bench-1"


class Caller:
    """A core in this thread and a client that calls it, which is answered at once."""

    def __init__(self) -> None:
        self.core = make_core(Config(threads=0, limits=Bounds(calls=255)))
        self.core.start()
        listener = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(listener.getsockname())
        self.core.listen(listener.detach())
        self.client.sendall(encode_frame(FrameType.HELLO, BODIES[FrameType.HELLO], CODEC_JSON, 1))
        (hello,) = self.events(1)
        self.core.welcome(hello[1], b"bench-1", b"default", self.answer)
        call = encode_frame(FrameType.CALL, Call("ping", {}), CODEC_JSON, 2)
        self.calls = call * CALLS

    answer = encode_frame(FrameType.WELCOME, BODIES[FrameType.WELCOME], CODEC_JSON, 1)

    def events(self, count: int) -> list[Any]:
        found: list[Any] = []
        while len(found) < count:
            found += self.core.poll()
        return found

    def ask(self) -> None:
        """What a client does, apart from the time that is measured."""
        self.client.setblocking(False)
        try:
            while self.client.recv(1 << 16):
                pass
        except BlockingIOError:
            self.client.setblocking(True)
        self.client.sendall(self.calls)

    def cross(self) -> int:
        """CALLS events to Python, and as many commands back."""
        events = self.events(CALLS)
        for event in events:
            self.core.send(event[1], self.answer, _core.ENDS_CALL)
        return len(events)


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller()
    yield caller
    caller.client.close()
    caller.core.stop()


@pytest.mark.benchmark(timer=lambda: time.perf_counter() / CALLS)
def test_an_event_and_its_command(benchmark: Any, caller: Caller) -> None:
    assert benchmark.pedantic(caller.cross, setup=caller.ask, rounds=200) == CALLS
