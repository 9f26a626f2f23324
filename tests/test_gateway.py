"""The gateway against a core that keeps account: logins, frames, hooks, rights that end."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from gateway_bench import AUTH, JSON, MSGPACK, Bench, make_bench

from imserver import _core
from imserver.auth import issue
from imserver.errors import CloseCode, ImError
from imserver.gateway_calls import Calls
from imserver.gateway_kept import Kept
from imserver.hooks import Publication
from imserver.membership import Membership
from imserver.model_session import Login, Session
from imserver.protocol import (
    Body,
    Call,
    FrameType,
    Hello,
    Subscribe,
    Unsubscribe,
    encode_message,
)
from imserver.timeline_memory import MemoryTimeline


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
