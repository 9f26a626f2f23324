"""A gateway on a fake core that keeps account: who is paused gets one answer, and no other."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from imserver import _core
from imserver.auth import Authenticator
from imserver.config import Auth, Config, Key, Limits
from imserver.gateway import Gateway
from imserver.hooks import Hooks
from imserver.model_session import Session
from imserver.protocol import (
    Body,
    FrameType,
    Hello,
    codec_of,
    decode_body,
    encode_frame,
)
from imserver.routing import Routing
from imserver.sessions import MemorySessions

JSON, MSGPACK = 1, 2
AUTH = Auth(keys=(Key(algorithm="HS256", secret="0123456789abcdef" * 2),))


Event = tuple[int, int, int, int, bytes]


class Batch(list[Event]):
    """Events, which notes what the gateway knows as it walks over them."""

    def __init__(self, events: list[Event], buried: set[int]) -> None:
        super().__init__(events)
        self.buried = buried

    def __iter__(self) -> Iterator[Event]:
        for event in super().__iter__():
            yield event
            if event[0] == _core.EVENT_CLOSED:
                self.buried.add(event[1])


class FakeCore:
    """What the gateway sees of a core: its accounts of pauses and calls, no sockets.

    A command that ends what is not there, and any word to a connection that is known to have
    closed, is a violation. Commands that arrive while EVENT_CLOSED is still on its way are not:
    the real core ignores them.
    """

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.users: dict[int, str] = {}
        self.paused: dict[int, str] = {}
        self.calls: dict[int, int] = {}
        self.open: set[int] = set()
        self.buried: set[int] = set()  # the gateway has been told
        self.said: list[tuple[int, FrameType, Any]] = []
        self.closed: dict[int, int] = {}
        self.verdicts: dict[tuple[int, bytes], tuple[int, int]] = {}
        self.subscriptions: set[tuple[int, str]] = set()
        self.published: list[bytes] = []
        self.revoked: list[int] = []
        self.violations: list[str] = []
        self.is_listening = True
        self._fd = os.eventfd(0)

    # The gateway's side

    def fileno(self) -> int:
        return self._fd

    def start(self) -> None: ...

    def stop(self) -> None:
        os.close(self._fd)

    def goodbye(self, codec: int, code: int, frame: bytes) -> None:
        assert self.decode(frame)[0] is FrameType.GOAWAY

    def unlisten(self) -> None:
        self.is_listening = False

    def poll(self) -> list[Event]:
        events, self.events = self.events, []
        return Batch(events, self.buried)

    def welcome(self, conn: int, user: bytes, device: bytes, frame: bytes) -> None:
        if self._hears(conn, "welcome"):
            self._end(conn, "pause", "HELLO")
            self.users[conn] = user.decode()
            self._say(conn, frame)

    def send(self, conn: int, frame: bytes, ends: int = 0) -> None:
        if self._hears(conn, "send"):
            self._say(conn, frame)
            self._ends(conn, ends)

    def decide(self, conn: int, topic: bytes, verdict: int, code: int = 0) -> None:
        if self._hears(conn, "decide"):
            assert (verdict == _core.DENY) is (code != 0)
            self.verdicts[conn, topic] = (verdict, code)
            self._end(conn, "pause", "ASK")

    def subscribe(self, conn: int, topic: bytes, tags: bytes, frame: bytes, ends: int = 1) -> None:
        if topic == b"room:too-large":
            raise ValueError("larger than the core can take")
        if self._hears(conn, "subscribe"):
            self.subscriptions.add((conn, topic.decode()))
            self._say(conn, frame)
            self._ends(conn, ends)

    def unsubscribe(self, conn: int, topic: bytes, frame: bytes, ends: int = 0) -> None:
        if self._hears(conn, "unsubscribe"):
            self.subscriptions.discard((conn, topic.decode()))
            self._say(conn, frame)
            self._ends(conn, ends)

    def publish(self, frame: bytes, conn: int = 0, ends: int = 0) -> None:
        self.published.append(frame)
        if conn and self._hears(conn, "publish"):
            self._ends(conn, ends)

    def revoke(self, conn: int, topic: bytes = b"") -> None:
        if self._hears(conn, "revoke"):
            self.revoked.append(conn)

    def drain(self, conn: int, frame: bytes) -> None:
        if self._hears(conn, "drain"):
            self._say(conn, frame)

    def close(self, conn: int, code: int, frame: bytes = b"") -> None:
        if self._hears(conn, "close"):
            if frame:
                self._say(conn, frame)
            self.bury(conn, code)

    def stats(self) -> dict[str, int]:
        return {"connections": len(self.open)}

    # The clients' side

    def hello(self, conn: int, hello: Body | bytes, codec: int = JSON, request: int = 1) -> None:
        body = (
            hello if isinstance(hello, bytes) else encode_frame(FrameType.HELLO, hello, codec)[8:]
        )
        self.open.add(conn)
        self.paused[conn] = "HELLO"
        peer = b"127.0.0.1:5000"
        data = bytes([len(peer)]) + peer + body
        self.events.append((_core.EVENT_HELLO, conn, codec << 6, request, data))

    def frame(self, conn: int, type: FrameType, body: Body | bytes, request: int = 2) -> None:
        data = body if isinstance(body, bytes) else encode_frame(type, body, JSON)[8:]
        if type is FrameType.CALL:
            self.calls[conn] = self.calls.get(conn, 0) + 1
        else:
            self.paused[conn] = type.name
        self.events.append((_core.EVENT_FRAME, conn, type | JSON << 14, request, data))

    def ask(self, conn: int, topic: bytes) -> None:
        self.paused[conn] = "ASK"
        self.events.append((_core.EVENT_ASK, conn, 0, 0, topic))

    def message(self, conn: int, frame: bytes) -> None:
        self.calls[conn] = self.calls.get(conn, 0) + 1
        self.events.append((_core.EVENT_MESSAGE, conn, 0, 0, frame))

    def refused(self, conn: int, code: int, request: int, id: int, topic: bytes) -> None:
        self.paused[conn] = "REFUSED"
        data = id.to_bytes(8) + topic
        self.events.append((_core.EVENT_REFUSED, conn, code, request, data))

    def bury(self, conn: int, code: int = 0) -> None:
        """The end of a connection, by the peer (0) or by a command."""
        self.open.discard(conn)
        self.paused.pop(conn, None)
        self.calls.pop(conn, None)
        self.subscriptions = {pair for pair in self.subscriptions if pair[0] != conn}
        self.closed[conn] = code
        self.events.append((_core.EVENT_CLOSED, conn, code, 0, b""))

    def is_ready(self, conn: int) -> bool:
        """Whether a connection is active and read."""
        return conn in self.open and conn in self.users and conn not in self.paused

    def answers(self, conn: int) -> list[tuple[FrameType, Any]]:
        return [(type, body) for other, type, body in self.said if other == conn]

    def last(self, conn: int) -> tuple[FrameType, Any]:
        return self.answers(conn)[-1]

    # Accounts

    def _hears(self, conn: int, command: str) -> bool:
        if conn in self.buried:
            self.violations.append(f"{command} to {conn}, which has closed")
        return conn in self.open

    def _ends(self, conn: int, ends: int) -> None:
        if ends == _core.ENDS_PAUSE:
            self._end(conn, "pause")
        elif ends == _core.ENDS_CALL:
            self._end(conn, "call")

    def _end(self, conn: int, what: str, kind: str = "") -> None:
        if what == "call":
            if not self.calls.get(conn):
                self.violations.append(f"{conn} has no call to end")
            self.calls[conn] = self.calls.get(conn, 0) - 1
        else:
            if self.paused.get(conn, "nothing") not in (kind or self.paused.get(conn),):
                self.violations.append(f"{conn} does not wait for {kind or 'anything'}")
            if conn not in self.paused:
                self.violations.append(f"{conn} is not paused")
            self.paused.pop(conn, None)

    def _say(self, conn: int, frame: bytes) -> None:
        if frame:
            self.said.append((conn, *self.decode(frame)))

    @staticmethod
    def decode(frame: bytes) -> tuple[FrameType, Any]:
        type = FrameType(frame[4])
        return type, decode_body(type, codec_of(frame[5]), frame[8:])


class Bench:
    """A gateway on a FakeCore, in the running loop."""

    def __init__(self, core: FakeCore, config: Config, routing: Routing) -> None:
        limits = config.limits
        self.core = core
        self.hooks = Hooks(limits.hook_timeout_ms, limits.call_timeout_ms)
        self.sessions = MemorySessions()
        self.routing = routing
        authenticator = Authenticator(config.auth)
        self.gateway = Gateway(config, authenticator, routing, self.sessions, self.hooks, core)  # type: ignore[arg-type]

    def turn(self) -> None:
        """Take all events, and those that they cause."""
        while self.core.events:
            self.gateway.on_events()

    async def settle(self) -> None:
        """Turn until no hook has anything in hand."""
        self.turn()
        async with asyncio.timeout(10):
            while any(self.gateway.stats().values()) or self.core.events:
                await asyncio.sleep(0.001)
                self.turn()

    def login(self, conn: int, user: str = "ann", **fields: Any) -> Session:
        self.core.hello(conn, Hello(version=1, user=user, **fields))
        self.turn()
        session = self.sessions.get(conn)
        assert session is not None
        return session

    def login_with(self, conn: int, token: str) -> None:
        self.core.hello(conn, Hello(version=1, token=token))
        self.turn()


@asynccontextmanager
async def make_bench(routing: Routing | None = None, **fields: Any) -> AsyncIterator[Bench]:
    limits = Limits(hook_timeout_ms=20, call_timeout_ms=20)
    config = Config(**{"dev": True, "auth": AUTH, "limits": limits} | fields)
    bench = Bench(FakeCore(), config, routing or Routing(dev=config.dev))
    bench.gateway.start()
    try:
        yield bench
    finally:
        await bench.gateway.stop()
    assert bench.core.violations == []
