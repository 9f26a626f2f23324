"""The gateway against a core that keeps account: who is paused gets one answer, and no other."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imserver import _core
from imserver.auth import Authenticator, issue
from imserver.config import Auth, Config, Key, Limits
from imserver.errors import CloseCode, ImError
from imserver.gateway import Gateway
from imserver.gateway_answers import Answers
from imserver.gateway_calls import Calls
from imserver.gateway_kept import Kept
from imserver.hooks import Hooks, Publication
from imserver.membership import Membership
from imserver.model_session import Login, Session
from imserver.protocol import (
    Body,
    Call,
    FrameType,
    Hello,
    Subscribe,
    Unsubscribe,
    codec_of,
    decode_body,
    encode_frame,
    encode_message,
)
from imserver.routing import Routing
from imserver.sessions import MemorySessions
from imserver.timeline_memory import MemoryTimeline

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


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with make_bench() as bench:
        yield bench


# HELLO


@pytest.mark.parametrize(
    ("hello", "codec", "error", "close"),
    [
        (b"{", JSON, 422, 4004),
        (b"{}", JSON, 422, 4004),
        (b'{"version":1,"user":"ann"}', 0, 400, 4004),
        (b"\xc1", MSGPACK, 422, 4004),
        (Hello(version=1, user="ann", device="a b"), JSON, 422, 4004),
        (Hello(version=1, user="", device="x"), JSON, 422, 4004),
        (Hello(version=1, user="$server"), JSON, 422, 4004),
        (Hello(version=2, user="ann"), JSON, 400, 4005),
        (Hello(version=0, user="ann"), MSGPACK, 400, 4005),
        (Hello(version=1), JSON, 401, 4001),
        (Hello(version=1, token="nonsense"), JSON, 401, 4001),
        (Hello(version=1, token="", user="ann"), MSGPACK, 401, 4001),
    ],
)
async def test_a_bad_hello_gets_its_number(
    bench: Bench, hello: Body | bytes, codec: int, error: int, close: int
) -> None:
    bench.core.hello(1, hello, codec)
    bench.turn()
    kinds = [(kind, body.code) for kind, body in bench.core.answers(1)]
    assert kinds == [(FrameType.ERROR, error), (FrameType.GOAWAY, close)]
    assert bench.core.closed == {1: close}
    assert len(bench.sessions) == 0


async def test_a_user_by_name_is_for_dev_servers_only() -> None:
    async with make_bench(dev=False) as bench:
        bench.core.hello(1, Hello(version=1, user="ann"))
        bench.turn()
        assert bench.core.closed == {1: 4001}


async def test_a_good_token_is_welcome() -> None:
    async with make_bench(dev=False) as bench:
        bench.login_with(1, issue(AUTH, "ann", publish=["room:a"], device="phone"))
        kind, welcome = bench.core.last(1)
        assert (kind, welcome.user) == (FrameType.WELCOME, "ann")
        session = bench.sessions.get(1)
        assert session is not None
        assert (session.device, session.id) == ("phone", welcome.session)
        bench.core.ask(1, b"room:a")
        bench.turn()
        bench.core.ask(1, b"room:b")
        bench.turn()
        assert bench.core.verdicts == {
            (1, b"room:a"): (_core.ALLOW, 0),
            (1, b"room:b"): (_core.DENY, 403),
        }


async def test_a_token_for_one_device_is_good_for_no_other(bench: Bench) -> None:
    token = issue(AUTH, "ann", device="phone")
    bench.core.hello(1, Hello(version=1, token=token, device="desk"))
    bench.turn()
    assert bench.core.closed == {1: 4001}


async def test_the_server_answers_in_the_codec_of_hello(bench: Bench) -> None:
    bench.core.hello(1, Hello(version=1, user="ann"), MSGPACK)
    bench.turn()
    session = bench.sessions.get(1)
    assert session is not None
    assert session.codec == MSGPACK


async def test_the_same_device_replaces_its_older_session(bench: Bench) -> None:
    bench.login(1, device="phone")
    bench.login(2, device="desk")
    bench.login(3, device="phone")
    assert bench.core.closed == {1: 4009}
    assert sorted(one.conn for one in bench.sessions.of("ann")) == [2, 3]


@pytest.mark.parametrize(
    ("code", "close"),
    [(401, 4001), (403, 4003), (1234, 4003), (429, 4129), (500, 4100), (503, 4153)],
)
async def test_the_application_refuses_a_login(bench: Bench, code: int, close: int) -> None:
    @bench.hooks.on_connect
    async def judge(login: Login) -> None:
        assert login.peer == "127.0.0.1:5000"
        raise ImError(code, "no")

    bench.core.hello(1, Hello(version=1, user="ann"))
    await bench.settle()
    assert bench.core.answers(1)[0][1].code == code
    assert bench.core.closed == {1: close}


async def test_who_goes_while_the_application_judges_is_forgotten(bench: Bench) -> None:
    @bench.hooks.on_connect
    async def judge(login: Login) -> None:
        await asyncio.sleep(0.005)

    bench.core.hello(1, Hello(version=1, user="ann"))
    bench.turn()
    bench.core.bury(1)
    await bench.settle()
    assert len(bench.sessions) == 0
    assert bench.core.said == []


# Frames


@pytest.mark.parametrize(
    ("type", "body", "code"),
    [
        (FrameType.SUBSCRIBE, b"{", 422),
        (FrameType.SUBSCRIBE, Subscribe("room:\n"), 422),
        (FrameType.SUBSCRIBE, Subscribe(""), 422),
        (FrameType.SUBSCRIBE, Subscribe("room:a", "a|b"), 422),
        (FrameType.SUBSCRIBE, Subscribe("user:bob"), 403),
        (FrameType.SUBSCRIBE, Subscribe("$server"), 403),
        (FrameType.SUBSCRIBE, Subscribe("room:a", durable=True), 507),
        (FrameType.SUBSCRIBE, Subscribe("room:a", after=0), 507),
        (FrameType.SUBSCRIBE, Subscribe("room:too-large"), 500),
        (FrameType.UNSUBSCRIBE, Unsubscribe("room:a"), 404),
        (FrameType.CALL, Call("nothing"), 404),
        (FrameType.CALL, Call("presence"), 422),
        (FrameType.CALL, Call("presence", {"users": "ann"}), 422),
        (FrameType.CALL, Call("presence", {"users": ["u"] * 1001}), 422),
        (FrameType.CALL, Call("members", {"topic": "group:7"}), 403),
        (FrameType.CALL, Call("members", {"topic": ""}), 422),
        (FrameType.CALL, Call("members", {"topic": "room:a", "limit": 0}), 422),
        (FrameType.CALL, Call("refresh", {"token": "x"}), 401),
        (FrameType.CALL, Call("refresh", {}), 422),
    ],
)
async def test_a_bad_frame_gets_its_number(
    bench: Bench, type: FrameType, body: Body | bytes, code: int
) -> None:
    bench.login(1)
    bench.core.frame(1, type, body)
    bench.turn()
    kind, error = bench.core.last(1)
    assert (kind, error.code) == (FrameType.ERROR, code)
    assert 1 in bench.core.open
    assert bench.core.paused == {}


async def test_subscribing_twice_and_leaving_once(bench: Bench) -> None:
    session = bench.login(1)
    for tags in ("*", "a||b"):
        bench.core.frame(1, FrameType.SUBSCRIBE, Subscribe("room:a", tags))
        bench.turn()
        assert bench.core.last(1)[0] is FrameType.SUBSCRIBED
    assert list(bench.sessions.topics(session)) == ["room:a"]
    bench.core.frame(1, FrameType.UNSUBSCRIBE, Unsubscribe("room:a"))
    bench.turn()
    assert bench.core.last(1)[0] is FrameType.UNSUBSCRIBED
    assert bench.core.subscriptions == set()
    assert not bench.sessions.members("room:a")


async def test_presence_and_members(bench: Bench) -> None:
    bench.login(1, "ann", device="phone")
    bench.login(2, "ann", device="desk")
    bench.login(3, "bob")
    for conn in (1, 2, 3):
        bench.core.frame(conn, FrameType.SUBSCRIBE, Subscribe("room:a"))
        bench.turn()
    bench.core.frame(1, FrameType.CALL, Call("presence", {"users": ["ann", "eve"]}))
    bench.turn()
    assert bench.core.last(1)[1].result == {
        "ann": {"online": True, "devices": ["phone", "desk"]},
        "eve": {"online": False, "devices": []},
    }
    bench.core.frame(1, FrameType.CALL, Call("members", {"topic": "room:a"}))
    bench.turn()
    assert bench.core.last(1)[1].result == ["ann", "bob"]
    bench.core.frame(1, FrameType.CALL, Call("members", {"topic": "room:a", "limit": 1}))
    bench.turn()
    assert bench.core.last(1)[1].result == ["ann"]


async def test_what_the_store_is_asked_is_answered_when_it_has_answered(bench: Bench) -> None:
    store = MemoryTimeline()
    await store.append(encode_message("room:a", "bob", b"!"))
    members = Membership(
        store, is_kept=lambda topic: True, on_joined=pytest.fail, on_left=pytest.fail
    )
    kept = Kept(store, members, bench.routing, bench.sessions, 65_536)
    refresh = bench.gateway.orders.refresh
    bench.gateway._calls = Calls(bench.sessions, bench.routing, refresh, kept, 5.0)
    bench.login(1)
    bench.core.frame(1, FrameType.CALL, Call("history", {"topic": "room:a"}))
    bench.core.frame(1, FrameType.CALL, Call("history", {"topic": "user:eve"}), request=3)
    await bench.settle()
    (_, page), (_, error) = bench.core.answers(1)[1:]
    assert page.result["messages"][0]["body"] == "IQ=="
    assert error.code == 403
    assert bench.core.calls[1] == 0


@pytest.mark.parametrize("topic", [b"room:\xff", b"room:\n", b"\xc3"])
async def test_a_topic_that_is_no_text_is_refused_for_good(bench: Bench, topic: bytes) -> None:
    bench.login(1)
    bench.core.ask(1, topic)
    bench.turn()
    assert bench.core.verdicts == {(1, topic): (_core.DENY, 400)}


async def test_a_refusal_of_the_core_is_put_into_words(bench: Bench) -> None:
    bench.login(1)
    bench.core.refused(1, 403, 9, 2**64 - 1, b"room:\xff")
    bench.turn()
    kind, error = bench.core.last(1)
    assert (kind, error.code, error.id) == (FrameType.ERROR, 403, 2**64 - 1)
    assert error.topic.startswith("room:")


async def test_a_result_larger_than_a_frame_is_an_error(bench: Bench) -> None:
    @bench.hooks.on_call("much")
    async def much(session: Session, params: Any) -> str:
        return "x" * 70_000

    @bench.hooks.on_call("strange")
    async def strange(session: Session, params: Any) -> object:
        return object()

    bench.login(1)
    for method, code in (("much", 413), ("strange", 500)):
        bench.core.frame(1, FrameType.CALL, Call(method))
        await bench.settle()
        assert bench.core.last(1)[1].code == code
    assert bench.core.calls == {1: 0}


# Messages that hooks see


async def test_a_hook_takes_its_topics_off_the_fast_path(bench: Bench) -> None:
    bench.login(1)

    @bench.hooks.on_publish("room:h*")
    async def judge(batch: list[Publication]) -> None:
        for publication in batch:
            if publication.message.tag == "bad":
                publication.refuse(1001, "no swearing")

    assert bench.core.revoked == [1], "verdicts given before the hook came are asked for again"
    for topic in (b"room:h1", b"room:a"):
        bench.core.ask(1, topic)
        bench.turn()
    assert [verdict for verdict, _ in bench.core.verdicts.values()] == [_core.HOOK, _core.ALLOW]
    good = encode_message("room:h1", "ann", b"x", id=1)
    bench.core.message(1, good)
    bench.core.message(1, encode_message("room:h1", "ann", b"x", id=2, tag="bad"))
    await bench.settle()
    assert bench.core.published == [good]
    error = bench.core.last(1)[1]
    assert (error.code, error.id, error.topic) == (1001, 2, "room:h1")
    assert bench.core.calls == {1: 0}


async def test_the_words_of_one_who_left_are_delivered(bench: Bench) -> None:
    @bench.hooks.on_publish("room:*")
    async def see(batch: list[Publication]) -> None: ...

    bench.login(1)
    frame = encode_message("room:a", "ann", b"x")
    bench.core.message(1, frame)
    bench.core.bury(1)
    await bench.settle()
    assert bench.core.published == [frame]


async def test_a_right_that_ends_while_a_hook_judges_has_ended(bench: Bench) -> None:
    @bench.hooks.on_publish("room:*")
    async def see(batch: list[Publication]) -> None:
        bench.gateway.orders.revoke("ann", "room:*")

    @bench.hooks.on_subscribe("room:*")
    async def judge(session: Session, topic: str, tags: str) -> None:
        bench.gateway.orders.revoke("ann", "room:*")

    bench.login(1)
    bench.core.message(1, encode_message("room:a", "ann", b"x", id=7))
    await bench.settle()
    assert bench.core.published == []
    assert bench.core.last(1)[1].code == 403
    bench.gateway.orders.allow("ann", None)
    bench.core.frame(1, FrameType.SUBSCRIBE, Subscribe("room:a"))
    await bench.settle()
    assert bench.core.last(1)[1].code == 403
    assert bench.core.subscriptions == set()


# Rights that end


async def test_a_revoked_topic_ends_at_once_and_for_later_logins(bench: Bench) -> None:
    for conn, user in ((1, "ann"), (2, "bob")):
        bench.login(conn, user)
        for topic in ("room:a", f"user:{user}"):
            bench.core.frame(conn, FrameType.SUBSCRIBE, Subscribe(topic))
            bench.turn()
    bench.gateway.orders.revoke("ann", "room:*")
    assert bench.core.revoked == [1]
    kind, ended = bench.core.last(1)
    assert (kind, ended.topic, ended.code) == (FrameType.UNSUBSCRIBED, "room:a", 403)
    assert bench.core.subscriptions == {(1, "user:ann"), (2, "room:a"), (2, "user:bob")}
    bench.login(3, "ann", device="other")
    bench.core.ask(3, b"room:a")
    bench.turn()
    assert bench.core.verdicts[3, b"room:a"] == (_core.DENY, 403)


async def test_an_expired_token_ends_the_connection(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.login_with(1, issue(AUTH, "ann", ttl_s=60))
    bench.login(2, "bob")
    bench.gateway.on_sweep()
    assert bench.core.closed == {}
    now_s = time.time() + 61
    monkeypatch.setattr(time, "time", lambda: now_s)
    bench.gateway.on_sweep()
    bench.gateway.on_sweep()
    assert bench.core.closed == {1: 4112}


async def test_a_new_token_brings_new_rights_and_more_time(bench: Bench) -> None:
    old = issue(AUTH, "ann", subscribe=["group:*"], ttl_s=60)
    bench.login_with(1, old)
    bench.core.frame(1, FrameType.SUBSCRIBE, Subscribe("group:7"))
    bench.turn()
    session = bench.sessions.get(1)
    assert session is not None
    before_s = session.expires_s
    for user, error in (("bob", 403), ("ann", 0)):
        token = issue(AUTH, user, publish=["group:7"], ttl_s=600)
        bench.core.frame(1, FrameType.CALL, Call("refresh", {"token": token}))
        bench.turn()
        kind, answer = bench.core.last(1)
        assert (kind is FrameType.ERROR) is bool(error)
    assert answer.result == {"expires_ms": int(session.expires_s * 1000)}
    assert session.expires_s > before_s
    assert bench.core.subscriptions == set(), "the new token says nothing of subscribing"
    bench.core.ask(1, b"group:7")
    bench.turn()
    assert bench.core.verdicts[1, b"group:7"] == (_core.ALLOW, 0)


async def test_leaving_asks_everybody_and_takes_nobody(bench: Bench) -> None:
    told: list[tuple[str, int]] = []

    @bench.hooks.on_close
    async def tell(session: Session, code: int) -> None:
        told.append((session.user, code))

    bench.login(1)
    bench.gateway.leave()
    kind, goaway = bench.core.last(1)
    assert (kind, goaway.code, goaway.retry_after_ms) == (FrameType.GOAWAY, 4201, 5_000)
    assert not bench.core.is_listening
    bench.core.hello(2, Hello(version=1, user="bob"))
    bench.turn()
    assert bench.core.closed == {2: 4201}
    assert not bench.gateway.is_idle
    bench.core.bury(1)
    await bench.settle()
    assert bench.gateway.is_idle
    assert told == [("ann", 0)]


async def test_stopping_tells_the_close_hooks() -> None:
    told: list[int] = []
    async with make_bench() as bench:

        @bench.hooks.on_close
        async def tell(session: Session, code: int) -> None:
            await asyncio.sleep(0.001)
            told.append(code)

        bench.login(1)
    assert told == [CloseCode.RESTART]


# Every pause is ended exactly once


class Trap(Routing):
    """A policy with a bug."""

    def may_publish(self, user: str, rights: Any, topic: str) -> bool:
        if topic == "room:trap":
            raise ZeroDivisionError
        return super().may_publish(user, rights, topic)


async def misbehave(how: str) -> None:
    """What hooks do, by the last part of a name."""
    if how.endswith("slow"):
        await asyncio.sleep(0.002)
    elif how.endswith("hang"):
        await asyncio.sleep(10)
    elif how.endswith("no"):
        raise ImError(1001, "no")
    elif how.endswith("odd"):
        raise ImError(-1, "x" * 10_000, id=-5)
    elif how.endswith("bug"):
        raise KeyError(how)
    elif how.endswith("cancel"):
        raise asyncio.CancelledError


def register(hooks: Hooks) -> None:
    """One hook of each kind."""

    @hooks.on_connect
    async def connect(login: Login) -> None:
        await misbehave(login.client)

    @hooks.on_subscribe("room:h-*")
    async def subscribe(session: Session, topic: str, tags: str) -> None:
        await misbehave(topic)

    @hooks.on_publish("room:h-*")
    async def publish(batch: list[Publication]) -> None:
        for publication in batch:
            await misbehave(publication.message.topic)

    @hooks.on_call("do")
    async def call(session: Session, params: Any) -> Any:
        await misbehave(str(params))
        return params

    @hooks.on_close
    async def close(session: Session, code: int) -> None:
        await misbehave(session.device)


HOW = ["ok", "ok", "slow", "no", "odd", "bug", "cancel", "hang"]
TOPICS = [f"room:h-{how}" for how in HOW] + ["room:a", "room:trap", "room:too-large", "user:ann"]
CONNS = st.integers(1, 4)
STEPS = st.one_of(
    st.tuples(st.just("hello"), CONNS, st.sampled_from([*HOW, "bad", "old", "who"])),
    st.tuples(st.just("subscribe"), CONNS, st.sampled_from([*TOPICS, "\n"])),
    st.tuples(st.just("unsubscribe"), CONNS, st.sampled_from(TOPICS)),
    st.tuples(st.just("call"), CONNS, st.sampled_from([*HOW, "presence", "unknown", "bytes"])),
    st.tuples(st.just("ask"), CONNS, st.sampled_from([*TOPICS, "\n"])),
    st.tuples(st.just("message"), CONNS, st.sampled_from(TOPICS)),
    st.tuples(st.just("refused"), CONNS, st.just("")),
    st.tuples(st.just("leave"), CONNS, st.just("")),
    st.tuples(st.just("order"), CONNS, st.sampled_from(["kick", "revoke", "again", "expire"])),
    st.tuples(st.just("turn"), CONNS, st.just("")),
    st.tuples(st.just("wait"), CONNS, st.sampled_from(["0", "0.001", "0.003"])),
)


async def step(bench: Bench, name: str, conn: int, what: str) -> None:
    core = bench.core
    if name == "hello":
        start(core, conn, what)
    elif name == "order":
        order(bench, f"user{conn % 2}", what)
    elif name == "turn":
        bench.turn()
    elif name == "wait":
        bench.turn()
        await asyncio.sleep(float(what))
    elif name == "leave":
        if conn in core.open:
            core.bury(conn)
    elif core.is_ready(conn):
        speak(core, name, conn, what)


def start(core: FakeCore, conn: int, what: str) -> None:
    """A new connection, with a number that was never used before."""
    conn += 10 * sum(1 for used in (core.open | set(core.closed)) if used % 10 == conn)
    if what == "bad":
        core.hello(conn, b"{")
    elif what == "who":
        core.hello(conn, Hello(version=1))
    else:
        version = 7 if what == "old" else 1
        device = "default" if conn % 3 else what
        core.hello(conn, Hello(version, user=f"user{conn % 2}", device=device, client=what))


def speak(core: FakeCore, name: str, conn: int, what: str) -> None:
    if name == "subscribe":
        core.frame(conn, FrameType.SUBSCRIBE, Subscribe(what))
    elif name == "unsubscribe":
        core.frame(conn, FrameType.UNSUBSCRIBE, Unsubscribe(what))
    elif name == "ask":
        core.ask(conn, what.encode())
    elif name == "refused":
        core.refused(conn, 403, 0, 1, b"room:a")
    elif name == "message":
        core.message(conn, encode_message(what, core.users[conn], b"x", id=conn))
    elif what == "bytes":
        core.frame(conn, FrameType.CALL, b"\xff")
    elif what in ("presence", "unknown"):
        core.frame(conn, FrameType.CALL, Call(what, {"users": ["ann"]}))
    else:
        core.frame(conn, FrameType.CALL, Call("do", what))


def order(bench: Bench, user: str, what: str) -> None:
    orders = bench.gateway.orders
    if what == "kick":
        orders.disconnect(user, 4010)
    elif what == "revoke":
        orders.revoke(user, "room:*")
    elif what == "again":
        orders.allow(user, None)
        orders.revoke(user, None)
    else:
        for session in bench.sessions.of(user):
            session.expires_s = 1.0
        bench.gateway.on_sweep()


async def play(steps: list[tuple[str, int, str]], prepare: Callable[[Bench], None]) -> None:
    async with make_bench(Trap(dev=True)) as bench:
        prepare(bench)
        # Conversations need somebody to begin with.
        for conn in (1, 2, 3, 4):
            start(bench.core, conn, "ok")
        await bench.settle()
        for name, conn, what in steps:
            alive = [one for one in bench.core.open if one % 10 == conn]
            await step(bench, name, max(alive, default=conn) if name != "hello" else conn, what)
            assert bench.core.violations == []
        await bench.settle()
        assert bench.core.violations == []
        assert bench.core.paused == {}, "everybody who waited has been answered"
        assert {conn: count for conn, count in bench.core.calls.items() if count} == {}
        assert {one.conn for one in bench.sessions} == bench.core.open & set(bench.core.users)
        subscribed = {(one.conn, topic) for one in bench.sessions for topic in topics(bench, one)}
        assert subscribed == bench.core.subscriptions


def topics(bench: Bench, session: Session) -> list[str]:
    return list(bench.sessions.topics(session))


@pytest.mark.filterwarnings("error")
@given(st.lists(STEPS, max_size=40))
@settings(max_examples=150, deadline=None)
def test_every_pause_is_ended_exactly_once(steps: list[tuple[str, int, str]]) -> None:
    asyncio.run(play(steps, lambda bench: register(bench.hooks)))


@given(st.lists(STEPS, max_size=40))
@settings(max_examples=100, deadline=None)
def test_and_so_it_is_without_hooks(steps: list[tuple[str, int, str]]) -> None:
    asyncio.run(play(steps, lambda bench: None))


def test_the_accounts_notice_a_forgotten_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deliberately broken gateway, to show that the test above can fail."""
    monkeypatch.setattr(Answers, "refuse", lambda *args: None)
    with pytest.raises(AssertionError, match="everybody who waited"):
        asyncio.run(play([("subscribe", 1, "user:ann")], lambda bench: None))


def test_the_accounts_notice_a_second_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    once = Answers.refuse

    def twice(*args: Any) -> None:
        once(*args)
        once(*args)

    monkeypatch.setattr(Answers, "refuse", twice)
    with pytest.raises(AssertionError, match="not paused"):
        asyncio.run(play([("subscribe", 1, "user:ann"), ("turn", 1, "")], lambda bench: None))
