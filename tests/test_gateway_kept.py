"""CALLs that the store answers: history in pages, read marks, members."""

import asyncio
import json
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from imserver import timeline_memory
from imserver.bodies import Result
from imserver.config import Config, Limits
from imserver.errors import ErrorCode, ImError
from imserver.gateway_calls import Calls
from imserver.gateway_frames import Frames
from imserver.gateway_kept import Kept
from imserver.membership import Membership
from imserver.model_session import Rights, Session, Terms
from imserver.protocol import encode_message, read_body
from imserver.routing import Routing
from imserver.sessions import MemorySessions
from imserver.timeline import Gap, Page, Timeline
from imserver.timeline_memory import MemoryTimeline
from imserver.timeline_sqlite import SqliteTimeline

BYTES, JSON, MSGPACK, PROTOBUF = 0, 1, 2, 3
ROOMS = Rights(subscribe=("room:*", "group:*"))


class Bench:
    """The CALLs of one store, and sessions that ask. An answer has been through a frame."""

    def __init__(self, store: Timeline, max_frame_bytes: int = 65_536) -> None:
        self.store = store
        self.sessions = MemorySessions()
        self.routing = Routing()
        self.frames = Frames(Config(limits=Limits(max_frame_bytes=max_frame_bytes)))
        self.members = Membership(
            store,
            is_kept=lambda topic: True,
            on_joined=lambda user, topic: None,
            on_left=lambda user, topic: None,
        )
        kept = Kept(store, self.members, self.routing, self.sessions, max_frame_bytes)
        self.calls = Calls(self.sessions, self.routing, lambda session, token: None, kept, 5.0)
        self.ann = self.login(1, "ann")

    def login(self, conn: int, user: str, codec: int = JSON, rights: Rights = ROOMS) -> Session:
        session = Session(conn, user, Terms("phone", rights, codec))
        self.sessions.open(session)
        return session

    async def ask(self, method: str, session: Session | None = None, **params: Any) -> Any:
        session = session or self.ann
        assert self.calls.waits(method)
        result = await self.calls.answer_later(session, method, params)
        frame = self.frames.result(result, session, 7)
        body = read_body(Result, session.codec, frame[8:])
        assert isinstance(body, Result)
        return body.result

    async def refused(self, method: str, session: Session | None = None, **params: Any) -> int:
        with pytest.raises(ImError) as error:
            await self.ask(method, session, **params)
        return error.value.code


@pytest.fixture(params=["memory", "sqlite"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    store: Timeline = MemoryTimeline()
    if request.param == "sqlite":
        store = await SqliteTimeline.open(tmp_path / "data")
    yield Bench(store)
    await store.close()


@pytest.fixture
def memory() -> Bench:
    return Bench(MemoryTimeline())


async def say(bench: Bench, topic: str, count: int, size: int = 0, **fields: Any) -> None:
    for number in range(count):
        body = json.dumps({"n": number, "x": "x" * size}).encode()
        await bench.store.append(encode_message(topic, "bob", body, codec=JSON, **fields))


def seqs(page: dict[str, Any]) -> list[int]:
    return [message["seq"] for message in page["messages"]]


# History


async def test_history_goes_on_in_both_directions_without_a_hole(bench: Bench) -> None:
    await say(bench, "room:a", 10)
    last = await bench.ask("history", topic="room:a", limit=4)
    assert (seqs(last), last["first"], last["last"], last["head"]) == ([7, 8, 9, 10], 7, 10, 10)
    before = await bench.ask("history", topic="room:a", before=last["first"], limit=4)
    assert seqs(before) == [3, 4, 5, 6]
    rest = await bench.ask("history", topic="room:a", before=before["first"], limit=4)
    assert seqs(rest) == [1, 2]
    start = await bench.ask("history", topic="room:a", before=rest["first"], limit=4)
    assert (seqs(start), start["first"], start["last"]) == ([], 1, 0)
    first = await bench.ask("history", topic="room:a", after=0, limit=6)
    assert seqs(first) == [1, 2, 3, 4, 5, 6]
    more = await bench.ask("history", topic="room:a", after=first["last"], limit=6)
    assert seqs(more) == [7, 8, 9, 10]
    assert seqs(await bench.ask("history", topic="room:a", after=10)) == []
    assert first["epoch"] == f"{bench.store.epoch:x}"
    nothing = await bench.ask("history", topic="room:none")
    assert (nothing["messages"], nothing["head"]) == ([], 0)


async def test_a_message_is_told_whole(memory: Bench) -> None:
    frame = encode_message("room:a", "bob", b'{"text":"h\\u00e9"}', tag="t", codec=JSON, id=7)
    await memory.store.append(frame)
    (message,) = (await memory.ask("history", topic="room:a"))["messages"]
    assert message.pop("time_ms") > 1_700_000_000_000
    assert message == {
        "seq": 1, "sender": "bob", "tag": "t", "id": 7, "flags": 1,
        "codec": "json", "form": "value", "body": {"text": "hé"},
    }  # fmt: skip


@pytest.mark.parametrize("codec", [JSON, MSGPACK, PROTOBUF])
async def test_every_codec_of_a_body_is_told_to_every_codec_of_a_session(
    memory: Bench, codec: int
) -> None:
    bodies = [
        (JSON, b'{"a":[1,null,true,"x"]}', "value", {"a": [1, None, True, "x"]}),
        (MSGPACK, msgpack.packb({"a": 1.5}), "value", {"a": 1.5}),
        (JSON, b"{broken", "base64", b"{broken"),
        (JSON, b"\xff", "base64", b"\xff"),
        (MSGPACK, b"\xc1", "base64", b"\xc1"),
        (BYTES, b"\x00\xff", "base64", b"\x00\xff"),
        (BYTES, b"", "base64", b""),
        (PROTOBUF, b"\x08\x01", "base64", b"\x08\x01"),
        (MSGPACK, msgpack.packb(msgpack.Timestamp(1)), "base64", msgpack.packb(msgpack.Timestamp(1))),
    ]  # fmt: skip
    for kind, body, *_ in bodies:
        await memory.store.append(encode_message("room:a", "bob", body, codec=kind))
    page = await memory.ask("history", memory.login(2, "eve", codec), topic="room:a")
    names = ["bytes", "json", "msgpack", "protobuf"]
    for message, (kind, _, form, value) in zip(page["messages"], bodies, strict=True):
        told = b64decode(message["body"]) if form == "base64" else message["body"]
        assert (message["codec"], message["form"], told) == (names[kind], form, value)


async def test_numbers_that_a_codec_cannot_hold_are_text(memory: Bench) -> None:
    for id in (2**53, 2**53 + 1, 2**64 - 1):
        await memory.store.append(encode_message("room:a", "bob", b"2", codec=JSON, id=id))
    body = msgpack.packb(2**60)
    await memory.store.append(encode_message("room:a", "bob", body, codec=MSGPACK))
    page = await memory.ask("history", memory.login(2, "eve", PROTOBUF), topic="room:a")
    ids = [message["id"] for message in page["messages"]]
    assert ids == [2**53, str(2**53 + 1), str(2**64 - 1), 0]
    assert page["messages"][3]["form"] == "base64", "2**60 is not exact in Protobuf's Value"
    page = await memory.ask("history", topic="room:a")
    assert page["messages"][3]["body"] == 2**60


@pytest.mark.parametrize("codec", [JSON, MSGPACK, PROTOBUF])
async def test_a_page_is_as_long_as_a_frame_and_nothing_is_left_out(
    memory: Bench, codec: int
) -> None:
    memory = Bench(memory.store, max_frame_bytes=4_096)
    session = memory.login(2, "eve", codec)
    for size in (0, 10, 500, 900, 3_000, 20, 2_500, 1, 400):
        await say(memory, "room:a", 7, size, tag="t" * 30)
    found, after = [], 0
    while page := seqs(
        await memory.ask("history", session, topic="room:a", after=after, limit=256)
    ):
        found += page
        after = page[-1]
    assert found == list(range(1, 64))
    back: list[int] = []
    before = 64
    while page := seqs(
        await memory.ask("history", session, topic="room:a", before=before, limit=256)
    ):
        back = page + back
        before = page[0]
    assert back == found


async def test_a_body_that_no_answer_can_hold_is_said_to_be_left_out(memory: Bench) -> None:
    memory = Bench(memory.store, max_frame_bytes=2_048)
    await say(memory, "room:a", 1)
    await memory.store.append(encode_message("room:a", "bob", b"\xff" * 1_900))
    await say(memory, "room:a", 1)
    first = await memory.ask("history", topic="room:a", after=0)
    forms = [(message["seq"], message["form"]) for message in first["messages"]]
    rest = await memory.ask("history", topic="room:a", after=first["last"])
    forms += [(message["seq"], message["form"]) for message in rest["messages"]]
    assert forms == [(1, "value"), (2, "omitted"), (3, "value")]


async def test_what_is_gone_and_what_cannot_be_read_is_told(memory: Bench) -> None:
    await say(memory, "room:a", 6)
    await memory.store.trim("room:a", 3)
    page = await memory.ask("history", topic="room:a", after=0, limit=2)
    assert (seqs(page), page["first"]) == ([3, 4], 3)
    whole = await memory.store.read("room:a")

    async def damaged(*_: Any) -> Page:
        size = len(whole.frames) // 4
        frames = whole.frames[:size] + whole.frames[3 * size :]
        return Page(3, 6, frames, 2, (Gap(4, 5, "damaged"),))

    memory.store.read = memory.store.read_back = damaged  # type: ignore[method-assign]
    for where in ({"after": 2}, {"before": 7}):
        page = await memory.ask("history", topic="room:a", **where)
        assert seqs(page) == [3, 6]
        assert page["gaps"] == [{"first": 4, "last": 5, "reason": "damaged"}]


async def test_a_gap_goes_to_the_page_that_it_is_in(memory: Bench) -> None:
    """When a page is cut to what fits, a gap behind the cut comes with the next."""
    memory = Bench(memory.store, max_frame_bytes=1_024)
    await say(memory, "room:a", 4, 300)
    whole = await memory.store.read("room:a")
    size = len(whole.frames) // 4
    frames = [whole.frames[n * size : (n + 1) * size] for n in range(4)]

    async def damaged(*_: Any) -> Page:
        joined = frames[0] + frames[1] + frames[3]
        return Page(1, 4, joined, 3, (Gap(3, 3, "damaged"),))

    memory.store.read = memory.store.read_back = damaged  # type: ignore[method-assign]
    page = await memory.ask("history", topic="room:a", after=0)
    assert (seqs(page), page["last"], page["gaps"]) == ([1], 1, [])
    page = await memory.ask("history", topic="room:a", before=5)
    gap = {"first": 3, "last": 3, "reason": "damaged"}
    assert (seqs(page), page["first"], page["gaps"]) == ([4], 3, [gap])


@pytest.mark.parametrize(
    ("params", "code"),
    [
        ({"topic": "user:eve"}, 403),
        ({"topic": "$system"}, 403),
        ({"topic": ""}, 422),
        ({}, 422),
        ({"topic": "room:a", "after": 1, "before": 2}, 422),
        ({"topic": "room:a", "after": -1}, 422),
        ({"topic": "room:a", "after": 2**64}, 422),
        ({"topic": "room:a", "limit": 0}, 422),
        ({"topic": "room:a", "limit": 257}, 422),
    ],
)
async def test_a_bad_question_about_history_is_refused(
    memory: Bench, params: dict[str, Any], code: int
) -> None:
    assert await memory.refused("history", **params) == code


async def test_a_right_that_ends_during_the_wait_is_no_right(memory: Bench) -> None:
    await say(memory, "room:a", 1)
    extent = memory.store.extent

    async def deny_then(topic: str) -> Any:
        memory.routing.deny("ann", "room:*")
        return await extent(topic)

    memory.store.extent = deny_then  # type: ignore[method-assign]
    assert await memory.refused("history", topic="room:a") == 403


async def test_a_member_without_a_right_in_the_token_sees_what_they_are_subscribed_to(
    memory: Bench,
) -> None:
    session = memory.login(2, "eve", rights=Rights())
    assert await memory.refused("history", session, topic="group:a") == 403
    memory.sessions.subscribe(session, "group:a")
    assert (await memory.ask("history", session, topic="group:a"))["messages"] == []


async def test_a_disk_that_takes_too_long_is_not_waited_for(memory: Bench) -> None:
    async def stuck(*_: Any) -> Any:
        await asyncio.Event().wait()

    memory.store.read_back = stuck  # type: ignore[method-assign]
    memory.calls._timeout_s = 0.01
    assert await memory.refused("history", topic="room:a") == ErrorCode.TIMEOUT


# Marks


async def test_a_mark_counts_on_every_device_and_moves_forward_only(bench: Bench) -> None:
    await say(bench, "room:a", 5)
    tablet = bench.login(2, "ann")
    assert await bench.ask("read", topic="room:a", seq=3) == {"read": 3}
    assert await bench.ask("read", tablet, topic="room:a", seq=1) == {"read": 3}
    assert await bench.ask("read", topic="room:a", seq=99) == {"read": 5}
    assert await bench.refused("read", topic="user:eve", seq=1) == 403
    assert await bench.refused("read", topic="room:a", seq=-1) == 422
    assert await bench.refused("read", topic="room:a") == 422


async def test_unread_is_told_for_the_topics_that_are_named(bench: Bench) -> None:
    await say(bench, "room:a", 5)
    await bench.ask("read", topic="room:a", seq=3)
    assert await bench.ask("unread", topics=["room:a", "room:none"]) == {
        "room:a": {"head": 5, "read": 3, "unread": 2},
        "room:none": {"head": 0, "read": 0, "unread": 0},
    }
    assert await bench.refused("unread", topics=["room:a", "user:eve"]) == 403
    assert await bench.refused("unread", topics=["room:a"] * 257) == 422
    assert await bench.ask("unread", topics=[]) == {}


async def test_unread_without_topics_is_of_all_that_one_belongs_to(bench: Bench) -> None:
    await say(bench, "group:a", 3)
    await bench.members.join("group:a", ["ann"])
    await say(bench, "group:a", 2)
    await say(bench, "user:ann", 1)
    assert await bench.ask("unread") == {
        "user:ann": {"head": 1, "read": 0, "unread": 1},
        "group:a": {"head": 5, "read": 0, "unread": 2},
    }


# Members


async def test_members_are_those_of_the_store_in_pages(bench: Bench) -> None:
    await bench.members.join("group:a", ["bob", "ann", "eve"])
    assert await bench.ask("members", topic="group:a") == ["ann", "bob", "eve"]
    assert await bench.ask("members", topic="group:a", limit=2) == ["ann", "bob"]
    assert await bench.ask("members", topic="group:a", after="bob") == ["eve"]
    assert await bench.ask("members", topic="group:a", after="eve") == []
    assert await bench.refused("members", topic="user:eve") == 403


async def test_where_nobody_is_a_member_those_who_are_subscribed_are_told(bench: Bench) -> None:
    bench.sessions.subscribe(bench.ann, "room:a")
    assert await bench.ask("members", topic="room:a") == ["ann"]


async def test_a_member_leaves_alone_and_needs_no_right_for_it(bench: Bench) -> None:
    await bench.members.join("group:a", ["ann", "bob"])
    bench.routing.deny("ann", "group:*")
    assert await bench.ask("leave", topic="group:a") == {"left": True}
    assert [member.user for member in await bench.store.members("group:a")] == ["bob"]
    assert await bench.ask("leave", topic="group:a") == {"left": False}
    assert await bench.ask("leave", topic="dm:ann:bob") == {"left": False}
    assert await bench.refused("leave", topic="dm:bob:eve") == 403
    assert await bench.refused("leave", topic="user:ann") == 403
    assert await bench.refused("leave", topic="$system") == 403
    assert await bench.refused("leave", topic="") == 422
    assert await bench.refused("leave") == 422


async def test_who_leaves_makes_room_for_another_membership(
    memory: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline_memory, "MEMBERSHIPS_MAX", 2)
    for topic in ("dm:ann:bob", "dm:ann:eve"):
        await memory.members.before_publish(topic)
    with pytest.raises(ImError, match="442"):
        await memory.members.before_publish("dm:ann:joe")
    await memory.ask("leave", topic="dm:ann:bob")
    await memory.members.before_publish("dm:ann:joe")
    assert await memory.members.topics_of("ann") == ["user:ann", "dm:ann:eve", "dm:ann:joe"]


# Without a store


@pytest.mark.parametrize("method", ["history", "read", "unread", "leave"])
def test_a_server_that_keeps_nothing_says_so(method: str) -> None:
    calls = Calls(MemorySessions(), Routing(), lambda session, token: None)
    session = Session(1, "ann", Terms("phone", ROOMS, JSON))
    assert not calls.waits(method)
    with pytest.raises(ImError) as error:
        calls.answer(session, method, {"topic": "room:a"})
    assert error.value.code == ErrorCode.NOT_DURABLE


def test_the_methods_are_those_of_the_document(memory: Bench) -> None:
    text = (Path(__file__).parent.parent / "docs/protocol.md").read_text()
    table = text.split("| method | params | result |")[1].split("\n\n")[0]
    documented = set(re.findall(r"^\| (\w+) \|", table, flags=re.M))
    assert documented == {*memory.calls._methods, *memory.calls._waiting}
    page = text.split("A page of history has")[1].split("\n\n")[1]
    fields = {
        name
        for row in re.findall(r"^\| ([\w, ]+) \|", page, flags=re.M)
        for name in row.split(", ")
    }
    told = asyncio.run(memory.ask("history", topic="room:a"))
    assert fields - {"field"} == set(told)
