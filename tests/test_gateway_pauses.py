"""The gateway against a core that keeps account: every pause is ended exactly once."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from gateway_bench import Bench, FakeCore, make_bench
from hypothesis import given, settings
from hypothesis import strategies as st

from imserver.errors import ImError
from imserver.gateway_answers import Answers
from imserver.hooks import Hooks, Publication
from imserver.model_session import Login, Session
from imserver.protocol import (
    Call,
    FrameType,
    Hello,
    Subscribe,
    Unsubscribe,
    encode_message,
)
from imserver.routing import Routing


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
