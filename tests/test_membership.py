"""Who belongs to which topics, over the store in memory."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from imserver import membership
from imserver.errors import ErrorCode, ImError
from imserver.membership import Membership
from imserver.protocol import encode_message
from imserver.timeline import Member
from imserver.timeline_memory import MemoryTimeline


class Slow(MemoryTimeline):
    """A fake that stops where a test says, as a disk may."""

    def __init__(self) -> None:
        super().__init__()
        self.gates: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []

    async def _pass(self, name: str) -> None:
        self.calls.append(name)
        if name in self.gates:
            await self.gates[name].wait()

    async def memberships(self, user: str) -> list[str]:
        found = await super().memberships(user)
        await self._pass("memberships")
        return found

    async def leave(self, topic: str, users: Any) -> list[str]:
        left = await super().leave(topic, users)
        await self._pass("leave")
        return left

    async def extent(self, topic: str) -> Any:
        self.calls.append("extent")
        return await super().extent(topic)


class Bench:
    def __init__(self, is_kept: Callable[[str], bool] = lambda topic: True) -> None:
        self.store = Slow()
        self.told: list[tuple[str, str, str]] = []
        self.members = Membership(
            self.store,
            is_kept=is_kept,
            on_joined=lambda user, topic: self.told.append(("joined", user, topic)),
            on_left=lambda user, topic: self.told.append(("left", user, topic)),
        )


async def soon(done: Callable[[], bool]) -> None:
    for _ in range(100):
        if done():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to that")


async def refused(work: Awaitable[Any]) -> int:
    with pytest.raises(ImError) as error:
        await work
    return error.value.code


async def test_a_login_reads_its_inbox_and_what_the_user_is_a_member_of() -> None:
    bench = Bench()
    assert await bench.members.topics_of("ann") == ["user:ann"]
    await bench.members.join("group:b", ["ann", "bob"])
    await bench.members.join("group:a", ["ann"])
    assert await bench.members.topics_of("ann") == ["user:ann", "group:a", "group:b"]
    await bench.members.leave("group:b", ["ann", "eve"])
    assert await bench.members.topics_of("ann") == ["user:ann", "group:a"]
    assert await bench.members.topics_of("bob") == ["user:bob", "group:b"]


async def test_an_inbox_that_keeps_nothing_is_not_read_by_itself() -> None:
    bench = Bench(is_kept=lambda topic: not topic.startswith("user:"))
    await bench.members.join("group:a", ["ann"])
    assert await bench.members.topics_of("ann") == ["group:a"]


async def test_changes_are_told_once_and_in_their_order() -> None:
    bench = Bench()
    await bench.members.join("group:a", ["bob", "ann", "bob"])
    await bench.members.join("group:a", ["ann"])
    await bench.members.leave("group:a", ["ann", "eve"])
    assert bench.told == [
        ("joined", "ann", "group:a"),
        ("joined", "bob", "group:a"),
        ("left", "ann", "group:a"),
    ]


async def test_many_join_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "USERS_A_COMMIT", 3)
    bench = Bench()
    users = [f"u{n}" for n in range(8)]
    await bench.members.join("group:a", users)
    assert [member.user for member in await bench.store.members("group:a")] == users
    assert bench.store.calls.count("extent") == 3, "one look at the head a portion"
    await bench.members.leave("group:a", users)
    assert len(bench.told) == 16


async def test_who_stops_waiting_does_not_stop_the_telling() -> None:
    """Somebody who was thrown out must not go on reading because a caller was in a hurry."""
    bench = Bench()
    await bench.members.join("group:a", ["ann"])
    bench.store.gates["leave"] = asyncio.Event()
    leaving = asyncio.create_task(bench.members.leave("group:a", ["ann"]))
    await soon(lambda: "leave" in bench.store.calls)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert bench.told[1:] == []
    bench.store.gates["leave"].set()
    await bench.members.close()
    assert bench.told[1:] == [("left", "ann", "group:a")]


async def test_what_is_left_during_a_login_is_not_in_its_topics() -> None:
    bench = Bench()
    await bench.members.join("group:a", ["ann", "bob"])
    bench.store.gates["memberships"] = asyncio.Event()
    reading = asyncio.create_task(bench.members.topics_of("ann"))
    other = asyncio.create_task(bench.members.topics_of("bob"))
    await soon(lambda: bench.store.calls.count("memberships") == 2)
    await bench.members.leave("group:a", ["ann"])
    bench.store.gates["memberships"].set()
    assert await reading == ["user:ann"]
    assert await other == ["user:bob", "group:a"]
    assert bench.members._reads == {}


async def test_the_first_message_of_a_dm_makes_both_its_members_of_all_of_it() -> None:
    bench = Bench()
    await bench.members.before_publish("dm:ann:bob")
    await bench.store.append(encode_message("dm:ann:bob", "ann", b"hello"))
    assert bench.told == [("joined", "ann", "dm:ann:bob"), ("joined", "bob", "dm:ann:bob")]
    assert await bench.store.members("dm:ann:bob") == [Member("ann", 0), Member("bob", 0)]
    assert (await bench.store.marks("bob", ["dm:ann:bob"]))["dm:ann:bob"].unread == 1
    looks = len(bench.store.calls)
    await bench.members.before_publish("dm:ann:bob")
    assert bench.members.is_settled("dm:ann:bob")
    assert len(bench.store.calls) == looks, "no second look into the store"


async def test_who_left_a_dm_stays_out_whoever_writes() -> None:
    bench = Bench()
    await bench.members.before_publish("dm:ann:bob")
    await bench.store.append(encode_message("dm:ann:bob", "ann", b"hello"))
    await bench.members.leave("dm:ann:bob", ["ann", "bob"])
    again = Membership(
        bench.store, is_kept=lambda topic: True, on_joined=pytest.fail, on_left=pytest.fail
    )
    await again.before_publish("dm:ann:bob")
    assert await bench.store.members("dm:ann:bob") == []


async def test_other_topics_need_nothing_before_a_publish() -> None:
    bench = Bench()
    for topic in ("group:a", "room:a", "user:ann"):
        assert bench.members.is_settled(topic)
        await bench.members.before_publish(topic)
    assert bench.store.calls == []


async def test_the_dms_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "SETTLED_MAX", 2)
    bench = Bench()
    for other in ("bob", "eve", "joe"):
        await bench.members.before_publish(f"dm:ann:{other}")
    assert not bench.members.is_settled("dm:ann:bob")
    assert bench.members.is_settled("dm:ann:eve")
    assert bench.members.is_settled("dm:ann:joe")


@pytest.mark.parametrize(
    ("topic", "user", "code"),
    [
        ("dm:ann:bob", "eve", ErrorCode.FORBIDDEN),
        ("dm:bob:ann", "ann", ErrorCode.FORBIDDEN),
        ("user:ann", "ann", ErrorCode.FORBIDDEN),
        ("$server", "ann", ErrorCode.FORBIDDEN),
        ("group:", "ann", ErrorCode.FORBIDDEN),
        ("group:a", "an n", ErrorCode.BAD_BODY),
        ("group:\x1b", "ann", ErrorCode.BAD_BODY),
    ],
)
async def test_who_cannot_be_a_member_is_refused_and_nobody_joins(
    topic: str, user: str, code: int
) -> None:
    bench = Bench()
    assert await refused(bench.members.join(topic, ["bob", user])) == code
    assert bench.told == []
    assert await bench.members.topics_of("bob") == ["user:bob"]


async def test_a_store_that_has_stopped_refuses_and_tells_nobody() -> None:
    bench = Bench()
    bench.store.fail("the disk")
    assert await refused(bench.members.join("group:a", ["ann"])) == ErrorCode.NOT_DURABLE
    assert await refused(bench.members.before_publish("dm:ann:bob")) == ErrorCode.NOT_DURABLE
    assert not bench.members.is_settled("dm:ann:bob")
    assert bench.told == []
