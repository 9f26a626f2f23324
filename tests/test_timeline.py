"""One suite for every adapter of the port `timeline`, and what only a disk has at its end."""

import asyncio
import logging
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import apsw
import pytest

from imserver import timeline, timeline_sqlite_schema
from imserver.errors import ErrorCode, ImError
from imserver.protocol import DURABLE, RETRY, decode_message, encode_message
from imserver.timeline import (
    Clock,
    Cursor,
    DeadLetter,
    Extent,
    Mark,
    Member,
    StoreError,
    Timeline,
)
from imserver.timeline_memory import MemoryTimeline
from imserver.timeline_sqlite import SqliteTimeline
from imserver.timeline_sqlite_check import check

ROOT = Path(__file__).parent.parent


class Turned:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def wall() -> Turned:
    return Turned()


@pytest.fixture
def steady() -> Turned:
    return Turned()


@pytest.fixture(params=["memory", "sqlite"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, wall: Turned, steady: Turned
) -> AsyncIterator[Timeline]:
    if request.param == "memory":
        opened: Timeline = MemoryTimeline(Clock(wall_s=wall, steady_s=steady))
    else:
        opened = await SqliteTimeline.open(tmp_path / "data", wall_s=wall, steady_s=steady)
    yield opened
    await opened.close()


@pytest.fixture
async def disk(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """disk(): opens the store in one directory, again and again."""
    opened: list[SqliteTimeline] = []

    async def open(**options: Any) -> SqliteTimeline:
        while opened:
            await opened.pop().close()
        opened.append(await SqliteTimeline.open(tmp_path / "data", **options))
        return opened[0]

    yield open
    for store in opened:
        await store.close()


def message(
    topic: str, body: str = "", *, id: int = 0, sender: str = "ann", flags: int = 0
) -> bytes:
    return encode_message(topic, sender, body.encode(), id=id, flags=flags)


def bodies(frames: bytes) -> list[str]:
    return [decode_message(one).body.decode() for one in split(frames)]


def split(frames: bytes) -> list[bytes]:
    starts = [*timeline.frame_starts(frames), len(frames)]
    return [frames[a:b] for a, b in pairwise(starts)]


def seqs(frames: bytes) -> list[int]:
    return [decode_message(one).seq for one in split(frames)]


async def fill(store: Timeline, topic: str, count: int, start: int = 0) -> None:
    for number in range(start, start + count):
        await store.append(message(topic, str(number)))


# Appending


async def test_seqs_are_dense_in_each_topic_and_the_frames_come_back_numbered(
    store: Timeline, wall: Turned
) -> None:
    frames = b"".join(message(f"room:{n % 2}", str(n), id=n + 1) for n in range(5))
    appended = await store.append(frames, "phone")
    kept = [decode_message(one) for one in split(appended.frames)]
    assert [one.seq for one in kept] == [1, 1, 2, 2, 3]
    assert {one.time_ms for one in kept} == {1_700_000_000_000}
    assert {one.flags for one in kept} == {DURABLE}
    assert [one.id for one in kept] == [1, 2, 3, 4, 5]
    assert appended[1:] == (5, (), ())
    page = await store.read("room:0")
    assert split(page.frames) == split(appended.frames)[::2]
    assert page == (1, 3, page.frames, 3, ())


async def test_appends_that_do_not_wait_for_each_other_keep_their_order(store: Timeline) -> None:
    futures = [store.append(message("room:a", str(n))) for n in range(300)]
    done = await asyncio.gather(*futures)
    assert [seqs(one.frames)[0] for one in done] == list(range(1, 301))
    page = await store.read("room:a", limit=1000)
    assert bodies(page.frames) == [str(n) for n in range(300)]


async def test_the_bytes_are_those_that_were_published(store: Timeline) -> None:
    sent = encode_message("room:ü", "ann", bytes(range(256)), tag="t", id=2**64 - 1, flags=RETRY)
    kept = (await store.append(sent)).frames
    assert kept[:5] == sent[:5]
    assert kept[5] == sent[5] & ~RETRY | DURABLE
    assert kept[6:8] == sent[6:8]
    assert kept[24:] == sent[24:]


async def test_a_frame_larger_than_a_blob_is_kept_like_any_other(store: Timeline) -> None:
    big = "x" * 600_000
    await store.append(message("room:a", "1") + message("room:a", big) + message("room:a", "3"))
    assert bodies((await store.read("room:a", max_bytes=2**21)).frames) == ["1", big, "3"]
    assert bodies((await store.read("room:a", 1)).frames) == [big, "3"]
    assert bodies((await store.read("room:a", 1, max_bytes=10)).frames) == [big]


@pytest.mark.parametrize("junk", [b"x", message("room:a")[:-1], b"\0\0\0\4\x0b\0\0\0"])
async def test_what_are_no_messages_is_refused_and_nothing_of_it_kept(
    store: Timeline, junk: bytes
) -> None:
    good, bad = store.append(message("room:a")), store.append(message("room:a") + junk)
    with pytest.raises(ImError) as refused:
        await bad
    assert refused.value.code == ErrorCode.BAD_FRAME
    await good
    assert await store.extent("room:a") == Extent("room:a", 1, 1)
    assert not store.failure


async def test_an_append_of_nothing_is_nothing(store: Timeline) -> None:
    assert await store.append(b"") == (b"", 0, (), ())


async def test_more_than_may_wait_is_refused_until_there_is_room(
    store: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "WAITING_MAX_BYTES", 4_000)
    futures = []

    def flood() -> None:
        for _ in range(100_000):
            futures.append(store.append(message("room:a", "x" * 1_000)))

    with pytest.raises(ImError) as refused:
        flood()
    assert refused.value.code == ErrorCode.OVERLOADED
    await store.room()
    await store.append(message("room:a", "x" * 1_000))
    await asyncio.gather(*futures)
    assert (await store.extent("room:a")).head == len(futures) + 1


# Reading


async def test_a_topic_that_never_was_is_empty(store: Timeline) -> None:
    assert await store.extent("room:a") == Extent("room:a", 1, 0)
    assert await store.read("room:a") == (1, 0, b"", 0, ())
    assert await store.read_back("room:a", 10) == (1, 0, b"", 0, ())
    assert await store.topics() == []
    assert await store.trim("room:a", 5) == 0
    assert await store.retain("room:a", max_count=1) == 0
    assert await store.cursor("ann", "phone", "room:a") is None


async def test_pages_are_as_asked_in_both_directions(store: Timeline) -> None:
    """Against a list, with commits of every size."""
    rng = random.Random(5)
    written = 0
    while written < 120:
        frames = []
        for _ in range(rng.randint(1, 12)):
            frames.append(message("room:a", str(written)) + message("room:b"))
            written += 1
        await store.append(b"".join(frames))
    size = len(message("room:a", "100"))
    for _ in range(150):
        after, limit, fit = rng.randint(0, written + 1), rng.randint(1, 40), rng.randint(1, 40)
        page = await store.read("room:a", after, limit, fit * size)
        expected = [str(n) for n in range(written)][after : after + limit]
        if len(page.frames) <= (fit - 1) * size:  # bytes did not end it
            assert bodies(page.frames) == expected
        assert bodies(page.frames) == expected[: page.messages]
        assert page.messages >= min(1, len(expected))
        assert page[:2] == (after + 1, after + page.messages)
        assert len(page.frames) <= max(fit * size, size)

        page = await store.read_back("room:a", after, limit, fit * size)
        last = max(0, min(after - 1, written))
        expected = [str(n) for n in range(written)][max(0, last - limit) : last]
        assert bodies(page.frames) == expected[len(expected) - page.messages :]
        assert page.messages >= min(1, len(expected))
        assert page[:2] == (last - page.messages + 1, last)
        assert page.gaps == ()


async def test_topics_are_listed_in_pages(store: Timeline) -> None:
    for name in ("room:c", "room:a", "dm:x:y", "room:é"):
        await fill(store, name, 2)
    names = ["dm:x:y", "room:a", "room:c", "room:é"]
    assert await store.topics() == [Extent(name, 1, 2) for name in names]
    assert [one.topic for one in await store.topics("dm:x:y", 2)] == ["room:a", "room:c"]
    assert await store.topics("room:é") == []


# Retention


async def test_trimming_forgets_the_oldest_and_no_number(store: Timeline) -> None:
    await fill(store, "room:a", 10)
    assert await store.trim("room:a", 4) == 3
    assert await store.trim("room:a", 4) == 0
    assert await store.extent("room:a") == Extent("room:a", 4, 10)
    assert (await store.read("room:a")).first == 4
    assert seqs((await store.read_back("room:a", 6)).frames) == [4, 5]
    assert await store.read_back("room:a", 3) == (3, 2, b"", 0, ())
    assert await store.trim("room:a", 1_000) == 7
    assert await store.extent("room:a") == Extent("room:a", 11, 10)
    assert await store.read("room:a") == (11, 10, b"", 0, ())
    assert seqs((await store.append(message("room:a"))).frames) == [11]


async def test_trimming_inside_a_commit_hides_exactly_what_was_named(store: Timeline) -> None:
    await store.append(b"".join(message("room:a", str(n)) for n in range(10)))
    assert await store.trim("room:a", 4) == 3
    assert bodies((await store.read("room:a")).frames) == [str(n) for n in range(3, 10)]
    assert bodies((await store.read_back("room:a", 6)).frames) == ["3", "4"]
    assert await store.retain("room:a", max_count=2) == 5
    assert bodies((await store.read_back("room:a", 100)).frames) == ["8", "9"]


async def test_retention_by_length_keeps_the_newest(store: Timeline) -> None:
    await fill(store, "room:a", 10)
    assert await store.retain("room:a", max_count=20) == 0
    assert await store.retain("room:a", max_count=3) == 7
    assert await store.extent("room:a") == Extent("room:a", 8, 10)


@pytest.mark.parametrize("jump_s", [-3_600, 600, -30 * 365 * 86_400, 10 * 365 * 86_400])
async def test_a_clock_that_jumps_changes_times_and_nothing_else(
    store: Timeline, wall: Turned, jump_s: int
) -> None:
    await fill(store, "room:a", 2)
    first = await store.append(message("room:a", "x", id=7))
    await store.put_cursors([Cursor("ann", "phone", "room:a", 1)])
    await store.put_dead([dead(1)])
    wall.now_s += jump_s
    await fill(store, "room:a", 1, start=3)
    page = await store.read("room:a")
    assert seqs(page.frames) == [1, 2, 3, 4]
    times = [decode_message(one).time_ms for one in split(page.frames)]
    assert times[0] == times[1] == times[2] == times[3] - jump_s * 1000
    assert await store.retain("room:a", max_age_ms=60_000) == 0
    assert await store.expire_cursors(60_000) == await store.expire_dead(60_000) == 0
    again = await store.append(message("room:a", "x", id=7, flags=RETRY))
    assert again == (first.frames, 1, (0,), ())


async def test_what_is_old_goes_by_the_time_of_the_store(store: Timeline, steady: Turned) -> None:
    await fill(store, "room:a", 5)
    first = message("room:a", "x", id=7, flags=RETRY)
    await store.append(first)
    await store.put_cursors([Cursor("ann", "phone", "room:a", 1)])
    await store.put_dead([dead(1)])
    steady.now_s += 590
    assert (await store.append(first)).repeated == (0,)
    await fill(store, "room:a", 2, start=6)
    steady.now_s += 20
    assert (await store.append(first)).repeated == ()
    assert await store.retain("room:a", max_age_ms=700_000) == 0
    assert await store.expire_cursors(700_000) == await store.expire_dead(700_000) == 0
    assert await store.retain("room:a", max_age_ms=600_000) == 6
    assert await store.extent("room:a") == Extent("room:a", 7, 9)
    assert await store.expire_cursors(600_000) == await store.expire_dead(600_000) == 1


# Repeats


async def test_a_repeat_is_answered_with_the_first_receipt_and_kept_once(store: Timeline) -> None:
    first = await store.append(message("room:a", "x", id=7), "phone")
    await fill(store, "room:a", 3)
    again = await store.append(message("room:a", "x", id=7, flags=RETRY), "phone")
    assert again == (first.frames, 1, (0,), ())
    assert (await store.extent("room:a")).head == 4


async def test_a_repeat_that_overtakes_the_flush_is_one_too(store: Timeline) -> None:
    one = store.append(message("room:a", "x", id=7))
    two = store.append(message("room:a", "y") + message("room:a", "x", id=7, flags=RETRY))
    assert (await two).repeated == (1,)
    assert seqs((await two).frames) == [2, 1]
    assert (await one).repeated == ()


@pytest.mark.parametrize(
    "other",
    [message("room:a", "y", id=7, flags=RETRY), message("room:b", "x", id=7, flags=RETRY)],
)
async def test_the_same_id_with_other_content_is_a_conflict(store: Timeline, other: bytes) -> None:
    await store.append(message("room:a", "x", id=7), "phone")
    answer = await store.append(other, "phone")
    assert answer.refused == (0,)
    assert seqs(answer.frames) == [0]
    assert (await store.extent("room:a")).head == 1
    assert (await store.extent("room:b")).head == 0


async def test_a_publish_is_known_by_sender_device_and_id_together(store: Timeline) -> None:
    await store.append(message("room:a", "x", id=7), "phone")
    for frame, device in [
        (message("room:a", "x", id=7, flags=RETRY, sender="bob"), "phone"),
        (message("room:a", "x", id=7, flags=RETRY), "tablet"),
        (message("room:a", "x", id=8, flags=RETRY), "phone"),
        (message("room:a", "x", id=7), "phone"),  # not said to be a repeat
        (message("room:a", "x", flags=RETRY), "phone"),  # no number at all
        (message("room:a", "x", flags=RETRY), "phone"),
    ]:
        assert (await store.append(frame, device))[2:] == ((), ())
    assert (await store.extent("room:a")).head == 7


# Members and read marks


async def test_who_joins_is_a_member_from_the_head_on_until_they_leave(store: Timeline) -> None:
    await fill(store, "group:a", 3)
    assert await store.join("group:a", ["bob", "ann", "bob"]) == ["ann", "bob"]
    await fill(store, "group:a", 2)
    assert await store.join("group:a", ["ann", "eve"]) == ["eve"], "twice is once"
    assert await store.join("dm:ann:bob", ["ann", "bob"], since_seq=0) == ["ann", "bob"]
    assert await store.members("group:a") == [Member("ann", 3), Member("bob", 3), Member("eve", 5)]
    assert await store.members("dm:ann:bob") == [Member("ann", 0), Member("bob", 0)]
    assert await store.members("group:none") == []
    assert await store.memberships("ann") == ["dm:ann:bob", "group:a"]
    assert await store.leave("group:a", ["ann", "nobody"]) == ["ann"]
    assert await store.leave("group:none", ["ann"]) == []
    assert await store.memberships("ann") == ["dm:ann:bob"]
    assert await store.join("group:a", ["ann"]) == ["ann"]
    assert (await store.members("group:a"))[0] == Member("ann", 5), "a new time begins"


async def test_members_come_in_pages(store: Timeline) -> None:
    await store.join("group:a", [f"u{n}" for n in range(10)])
    await store.join("group:b", ["u4"])
    first = await store.members("group:a", limit=4)
    assert [member.user for member in first] == ["u0", "u1", "u2", "u3"]
    rest = await store.members("group:a", after="u3")
    assert [member.user for member in rest] == ["u4", "u5", "u6", "u7", "u8", "u9"]
    assert await store.members("group:a", after="u9") == []


async def test_a_full_topic_and_a_user_of_too_many_refuse_everybody(
    store: Timeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("timeline_memory", "timeline_sqlite_members"):
        monkeypatch.setattr(f"imserver.{module}.MEMBERS_MAX", 3)
        monkeypatch.setattr(f"imserver.{module}.MEMBERSHIPS_MAX", 2)
    await store.join("group:a", ["ann", "bob"])
    with pytest.raises(ImError, match="442") as refused:
        await store.join("group:a", ["eve", "joe"])
    assert refused.value.code == ErrorCode.TOO_MANY_SUBSCRIPTIONS
    assert [member.user for member in await store.members("group:a")] == ["ann", "bob"]
    await store.leave("group:a", ["bob"])
    assert await store.join("group:a", ["ann", "eve", "joe"]) == ["eve", "joe"]
    await store.join("group:b", ["ann"])
    with pytest.raises(ImError, match="memberships, which ann would exceed"):
        await store.join("group:c", ["ann", "bob"])
    assert await store.members("group:c") == []
    assert await store.join("group:b", ["ann"]) == [], "who is in is not counted again"
    assert (await store.append(message("group:a"))).messages == 1, "the store goes on"


async def test_a_read_mark_moves_forward_and_no_further_than_the_head(store: Timeline) -> None:
    await fill(store, "room:a", 5)
    assert await store.mark_read("ann", "room:a", 3) == 3
    assert await store.mark_read("ann", "room:a", 2) == 3
    assert await store.mark_read("ann", "room:a", 99) == 5
    assert await store.mark_read("bob", "room:a", 0) == 0
    assert await store.mark_read("ann", "room:none", 4) == 0
    await store.append(message("room:none"))
    assert await store.mark_read("ann", "room:none", 0) == 0, "not remembered from before"


async def test_unread_is_what_is_kept_came_in_ones_time_and_was_not_read(store: Timeline) -> None:
    await fill(store, "group:a", 10)
    await store.join("group:a", ["bob"])
    await fill(store, "group:a", 5)
    topics = ["group:a", "room:none"]
    marks = await store.marks("bob", topics)
    assert marks == {"group:a": Mark(0, 10, 1, 15), "room:none": Mark(0, 0, 1, 0)}
    assert [mark.unread for mark in marks.values()] == [5, 0]
    await store.mark_read("bob", "group:a", 12)
    assert (await store.marks("bob", topics))["group:a"].unread == 3
    assert (await store.marks("ann", topics))["group:a"].unread == 15
    await store.trim("group:a", 15)
    assert (await store.marks("bob", topics))["group:a"] == Mark(12, 10, 15, 15)
    assert (await store.marks("bob", topics))["group:a"].unread == 1
    await store.mark_read("bob", "group:a", 15)
    assert (await store.marks("bob", topics))["group:a"].unread == 0


# Cursors


async def test_cursors_move_forward_only_unless_told_to(store: Timeline) -> None:
    await store.put_cursors([Cursor("ann", "phone", "room:a", 5)])
    await store.put_cursors(
        [Cursor("ann", "phone", "room:a", 3), Cursor("ann", "phone", "room:b", 1)]
    )
    assert await store.cursor("ann", "phone", "room:a") == 5
    await store.put_cursors([Cursor("ann", "phone", "room:a", 3)], back=True)
    await store.put_cursors([Cursor("ann", "tablet", "room:a", 9), Cursor("bob", "x", "room:a", 2)])
    assert await store.cursors("ann") == [
        Cursor("ann", "phone", "room:a", 3),
        Cursor("ann", "phone", "room:b", 1),
        Cursor("ann", "tablet", "room:a", 9),
    ]
    assert await store.cursor("bob", "phone", "room:a") is None


async def test_cursors_of_a_topic_come_in_pages_by_user_and_device(store: Timeline) -> None:
    ones = [Cursor(user, device, "room:a", 1) for user in ("ann", "bob") for device in ("a", "z")]
    await store.put_cursors([*reversed(ones), Cursor("ann", "m", "room:b", 1)])
    assert await store.cursors_of("room:a") == ones
    assert await store.cursors_of("room:a", limit=2) == ones[:2]
    assert await store.cursors_of("room:a", after=("ann", "b")) == ones[1:]
    assert await store.cursors_of("room:none") == []


# Dead letters


def dead(
    seq: int, *, user: str = "ann", topic: str = "room:a", reason: str = "attempts"
) -> DeadLetter:
    frame = encode_message(topic, "bob", b"!", seq=seq)
    return DeadLetter(user, "phone", topic, seq, reason, 8, 1_700_000_000_000 + seq, frame)


async def test_a_dead_letter_and_the_cursor_past_it_are_one_step(store: Timeline) -> None:
    await store.put_dead([dead(4)], [Cursor("ann", "phone", "room:a", 4)])
    assert await store.cursor("ann", "phone", "room:a") == 4
    (kept,) = await store.dead()
    assert kept == dead(4)._replace(id=kept.id)
    assert kept.id > 0


async def test_dead_letters_are_listed_by_topic_and_user_in_pages(store: Timeline) -> None:
    await store.put_dead([dead(1), dead(2, user="bob"), dead(3, topic="room:b", reason="nack")])
    all_of_them = await store.dead()
    assert [one.seq for one in all_of_them] == [1, 2, 3]
    assert [one.seq for one in await store.dead(topic="room:a")] == [1, 2]
    assert [one.seq for one in await store.dead(topic="room:a", user="bob")] == [2]
    assert [one.seq for one in await store.dead(after=all_of_them[0].id, limit=1)] == [2]
    assert await store.dead_counts() == {"attempts": 2, "nack": 1}
    await store.take_dead([all_of_them[1].id])
    assert await store.dead_counts() == {"attempts": 1, "nack": 1}
    assert await store.dead_counts(taken=True) == {"attempts": 2, "nack": 1}
    assert await store.dead(topic="room:nothing") == []


async def test_the_letters_of_one_message_are_found(store: Timeline) -> None:
    await store.put_dead(
        [dead(1), dead(2, user="bob"), dead(1, user="bob"), dead(1, topic="room:b")]
    )
    found = await store.dead_of("room:a", 1)
    assert [(one.user, one.topic, one.seq) for one in found] == [
        ("ann", "room:a", 1),
        ("bob", "room:a", 1),
    ]
    assert await store.dead_of("room:a", 1, limit=1) == found[:1]
    assert await store.dead_of("room:a", 1, after=found[0].id) == found[1:]
    assert await store.dead_of("room:a", 3) == []


async def test_a_letter_under_way_again_is_kept_until_it_arrives_or_dies_again(
    store: Timeline,
) -> None:
    await store.put_dead([dead(1), dead(2)])
    one, two = [letter.id for letter in await store.dead()]
    taken = await store.take_dead([one, two, 999])
    assert [letter.is_taken for letter in taken] == [True, True]
    assert await store.take_dead([one]) == []
    assert await store.expire_dead(0) == 0
    assert await store.drop_dead([one, 999]) == 1
    await store.put_dead([dead(2, reason="again")])
    assert await store.dead() == [dead(2, reason="again")._replace(id=two)]


async def test_a_letter_can_be_put_as_taken_and_its_number_is_told(store: Timeline) -> None:
    ids = await store.put_dead([dead(1)._replace(is_taken=True), dead(2)])
    assert ids == [one.id for one in await store.dead()]
    assert [one.is_taken for one in await store.dead()] == [True, False]
    assert await store.put_dead([dead(1, reason="nack")]) == ids[:1]
    assert [one.is_taken for one in await store.dead()] == [False, False]


async def test_what_is_set_aside_of_one_subscriber_is_listed_in_pages(store: Timeline) -> None:
    letters = [dead(seq)._replace(is_taken=seq != 3) for seq in range(1, 6)]
    others = [
        dead(1, user="bob")._replace(is_taken=True),
        dead(1, topic="room:b")._replace(is_taken=True),
        dead(1)._replace(is_taken=True, device="tablet"),
    ]
    ids = await store.put_dead([*letters, *others])
    mine = await store.aside("ann", "phone", "room:a")
    assert mine == [letters[n]._replace(id=ids[n]) for n in (0, 1, 3, 4)]
    page = await store.aside("ann", "phone", "room:a", after=ids[1], limit=1)
    assert [one.seq for one in page] == [4]
    assert await store.aside("ann", "phone", "room:none") == []


async def test_attempts_are_counted_anew_when_a_letter_is_taken(store: Timeline) -> None:
    ids = await store.put_dead([dead(1)])
    (taken,) = await store.take_dead(ids)
    assert (taken.attempts, taken.is_taken) == (0, True)
    assert await store.dead() == [taken]


async def test_old_dead_letters_expire(store: Timeline) -> None:
    """By when they were put; the time that they show is for people."""
    old = dead(2)._replace(time_ms=1_600_000_000_000)
    await store.put_dead([dead(1)._replace(is_taken=True), old])
    assert await store.expire_dead(86_400_000) == 0
    assert await store.expire_dead(-60_000) == 1  # as if a minute had passed
    assert [one.seq for one in await store.dead()] == [1]


async def test_a_place_that_nobody_comes_back_to_is_forgotten(store: Timeline) -> None:
    await store.put_cursors([Cursor("ann", "phone", "room:a", 4), Cursor("bob", "pc", "room:a", 2)])
    await store.put_dead([dead(1)._replace(is_taken=True)])
    assert await store.expire_cursors(86_400_000) == 0
    assert [one.is_taken for one in await store.dead()] == [True]
    assert await store.expire_cursors(-60_000) == 2  # as if a minute had passed
    assert await store.cursors("ann") == await store.cursors("bob") == []
    assert [one.is_taken for one in await store.dead()] == [False], "nobody is on the way to it"


# Ending


async def test_a_closed_store_refuses_and_closes_twice(store: Timeline) -> None:
    last = store.append(message("room:a"))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert last.done()
    with pytest.raises(ImError) as refused:
        store.append(message("room:a"))
    assert refused.value.code == ErrorCode.NOT_DURABLE


# Only a disk


async def test_everything_is_there_after_a_restart(disk: Any) -> None:
    store = await disk()
    epoch = store.epoch
    first = await store.append(message("room:a", "x", id=7), "phone")
    await store.put_dead([dead(4)], [Cursor("ann", "phone", "room:a", 4)])
    await store.take_dead([1])
    await fill(store, "room:b", 3)
    await store.trim("room:b", 100)
    await store.join("group:c", ["ann"])
    await store.mark_read("ann", "room:a", 1)
    store = await disk()
    assert store.epoch == epoch
    assert store.damage == []
    assert await store.memberships("ann") == ["group:c"]
    assert (await store.marks("ann", ["room:a"]))["room:a"] == Mark(1, 0, 1, 1)
    assert (await store.read("room:a")).frames == first.frames
    assert await store.extent("room:b") == Extent("room:b", 4, 3)
    assert seqs((await store.append(message("room:b"))).frames) == [4]
    assert await store.cursor("ann", "phone", "room:a") == 4
    assert (await store.dead())[0].is_taken
    again = await store.append(message("room:a", "x", id=7, flags=RETRY), "phone")
    assert again == (first.frames, 1, (0,), ())
    other = await store.append(message("room:a", "y", id=7, flags=RETRY), "phone")
    assert other.refused == (0,)


async def test_the_time_of_the_store_stands_still_while_it_is_closed(disk: Any) -> None:
    """A clock that is wrong at a start, by minutes or years, makes nothing old, and nothing young
    that had become old before."""
    wall, steady = Turned(), Turned()
    clocks = {"wall_s": wall, "steady_s": steady}
    store = await disk(**clocks)
    first = message("room:a", "x", id=7, flags=RETRY)
    await store.append(first)
    await store.put_cursors([Cursor("ann", "phone", "room:a", 0)])
    for jump_s in (3_600, 10 * 365 * 86_400, -20 * 365 * 86_400):
        await store.close()
        wall.now_s += jump_s
        steady.now_s = abs(jump_s) / 7  # that of another boot
        store = await disk(**clocks)
        steady.now_s += 190
        assert (await store.append(first)).repeated == (0,)
        assert await store.retain("room:a", max_age_ms=600_000) == 0
        assert await store.expire_cursors(600_000) == 0
    steady.now_s += 40
    store = await disk(**clocks)
    assert (await store.append(first)).repeated == ()
    assert await store.retain("room:a", max_age_ms=600_000) == 1
    assert await store.expire_cursors(600_000) == 1


async def test_after_a_crash_the_time_of_the_store_is_that_of_the_newest_blob(
    disk: Any, tmp_path: Path
) -> None:
    """Or that of the last note, an hour before at most; never a time that a flipped bit has made."""
    wall, steady = Turned(), Turned()
    store = await disk(wall_s=wall, steady_s=steady)
    steady.now_s += 300
    await store.append(message("room:a"))
    for name, blob_ms in (("crash", None), ("flip", 1 << 50)):
        copy = tmp_path / name
        shutil.copytree(tmp_path / "data", copy)
        if blob_ms:
            connection = apsw.Connection(str(copy / timeline_sqlite_schema.FILE))
            connection.execute("UPDATE blob SET time_ms = ?", (blob_ms,))
            connection.close()
        opened = timeline_sqlite_schema.Store(copy)
        assert opened.time_ms == (1_700_000_000 + (3_600 if blob_ms else 300)) * 1000
        opened.close()
    steady.now_s += 4_000
    await store.append(message("room:b"))
    noted = "SELECT value FROM meta WHERE name = 'time_ms'"
    noted_ms = await store._reader.run(lambda db: db.execute(noted).get)
    assert noted_ms == (1_700_000_000 + 4_300) * 1000


async def test_a_blob_goes_with_its_last_part(disk: Any, tmp_path: Path) -> None:
    store = await disk()
    await store.append(message("room:a") + message("room:b"))
    await store.trim("room:a", 2)
    assert bodies((await store.read("room:b")).frames) == [""]
    count = "SELECT (SELECT count(*) FROM blob), (SELECT count(*) FROM live)"
    assert await store._reader.run(lambda db: db.execute(count).get) == (1, 1)
    await store.trim("room:b", 2)
    assert await store._reader.run(lambda db: db.execute(count).get) == (0, 0)


async def test_a_long_trim_lets_other_commits_in_between(
    disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imserver.timeline_sqlite_tables.TRIM_PARTS", 3)
    store = await disk()
    await fill(store, "room:a", 10)
    trimming = asyncio.ensure_future(store.trim("room:a", 9))
    await asyncio.sleep(0)
    assert seqs((await store.append(message("room:a"))).frames) == [11]
    assert await trimming == 8
    assert await store.extent("room:a") == Extent("room:a", 9, 11)
    assert await store.retain("room:a", max_count=1) == 2


async def test_only_one_process_opens_a_directory(disk: Any, tmp_path: Path) -> None:
    await disk()
    code = (
        "import asyncio, pathlib, sys; from imserver.timeline_sqlite import SqliteTimeline\n"
        "asyncio.run(SqliteTimeline.open(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "data")]
    other = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert other.returncode != 0
    assert f"the data directory {tmp_path / 'data'} is in use by process" in other.stderr
    with pytest.raises(StoreError, match="stop that server, or choose another directory"):
        await SqliteTimeline.open(tmp_path / "data")


async def test_what_is_newer_or_no_store_is_refused(disk: Any, tmp_path: Path) -> None:
    store = await disk()
    await store.close()
    path = tmp_path / "data" / timeline_sqlite_schema.FILE
    for pragma, said in [
        (f"user_version = {timeline_sqlite_schema.VERSION + 1}", "written by a newer imserver"),
        ("application_id = 5", "is no store of imserver"),
    ]:
        connection = apsw.Connection(str(path))
        connection.execute(f"PRAGMA {pragma}")
        connection.close()
        with pytest.raises(StoreError, match=said):
            await SqliteTimeline.open(tmp_path / "data")
    path.write_bytes(b"something else " * 1000)
    with pytest.raises(StoreError, match="cannot be opened"):
        await SqliteTimeline.open(tmp_path / "data")
    assert path.read_bytes() == b"something else " * 1000
    with pytest.raises(StoreError, match="there is no store in"):
        await SqliteTimeline.open(tmp_path / "elsewhere", must_exist=True)


async def old_store(disk: Any, monkeypatch: pytest.MonkeyPatch, version: int) -> int:
    """A store as an imserver of that version left it: a message, a cursor. Its epoch."""
    steps = timeline_sqlite_schema.STEPS[:version]
    with monkeypatch.context() as patch:
        patch.setattr(timeline_sqlite_schema, "STEPS", steps)
        patch.setattr(timeline_sqlite_schema, "VERSION", version)
        store = await disk()
        await store.append(message("room:a", "old"))
        await store.close()
    vfs = timeline_sqlite_schema.checksum_vfs()
    connection = apsw.Connection(str(store._store.path), vfs=vfs)
    add = "INSERT INTO cursor (user, device, topic, seq) SELECT 'ann', 'phone', id, 1 FROM topic"
    connection.execute(add)
    connection.close()
    return int(store.epoch)


@pytest.mark.parametrize("version", range(1, timeline_sqlite_schema.VERSION))
async def test_a_store_of_an_older_version_is_brought_up_and_then_like_a_new_one(
    disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    epoch = await old_store(disk, monkeypatch, version)
    store = await disk()
    assert store.epoch == epoch
    assert bodies((await store.read("room:a")).frames) == ["old"]
    assert await store.cursors_of("room:a") == [Cursor("ann", "phone", "room:a", 1)]
    assert await store.join("room:a", ["ann"]) == ["ann"]
    sql = "SELECT type, name, sql FROM sqlite_schema ORDER BY name"
    new = await SqliteTimeline.open(tmp_path / "new")
    assert list(store._store.connection.execute(sql)) == list(new._store.connection.execute(sql))
    assert store._store.connection.pragma("user_version") == timeline_sqlite_schema.VERSION
    await new.close()


async def test_a_step_that_fails_leaves_the_old_store_as_it_was(
    disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await old_store(disk, monkeypatch, 1)
    with monkeypatch.context() as patch:
        broken = (
            *timeline_sqlite_schema.STEPS[:2],
            "CREATE TABLE more (n); CREATE TABLE topic (n)",
        )
        patch.setattr(timeline_sqlite_schema, "STEPS", broken)
        patch.setattr(timeline_sqlite_schema, "VERSION", len(broken))
        with pytest.raises(StoreError, match="table topic already exists"):
            await SqliteTimeline.open(tmp_path / "data")
    connection = apsw.Connection(str(tmp_path / "data" / timeline_sqlite_schema.FILE))
    assert connection.pragma("user_version") == 1
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    assert not tables & {"member", "mark", "more"}
    connection.close()
    store = await disk()
    assert bodies((await store.read("room:a")).frames) == ["old"]


async def test_checking_an_old_store_leaves_it_old(
    disk: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await old_store(disk, monkeypatch, 1)
    assert check(tmp_path / "data").problems == []
    connection = apsw.Connection(str(tmp_path / "data" / timeline_sqlite_schema.FILE))
    assert connection.pragma("user_version") == 1
    connection.close()


async def test_the_file_is_flushed_checked_and_private(disk: Any, tmp_path: Path) -> None:
    store = await disk()
    connection = store._store.connection
    assert connection.pragma("synchronous") == 2
    assert connection.pragma("journal_mode") == "wal"
    assert connection.pragma("wal_autocheckpoint") == 0
    assert connection.reserve_bytes() == 8, "pages carry no checksums"
    for path in (tmp_path / "data").iterdir():
        assert path.stat().st_mode & 0o077 == 0, path
    with pytest.raises(apsw.ReadOnlyError):
        await store._reader.run(lambda db: db.execute("DELETE FROM topic"))


async def test_the_log_is_brought_in_when_it_is_long(
    disk: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("imserver.timeline_sqlite_writer.CHECKPOINT_PAGES", 50)
    store = await disk()
    for _ in range(40):
        await store.append(message("room:a", "x" * 50_000))
    wal = tmp_path / "data" / "store.db-wal"
    assert wal.stat().st_size < 40 * 50_000 / 2
    await store.close()
    assert wal.stat().st_size == 0


async def test_after_a_failed_commit_the_store_has_stopped_for_good(
    disk: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The real failures of a disk are in test_timeline_faults."""
    store = await disk()
    await fill(store, "room:a", 2)

    def fail() -> None:
        raise apsw.FullError("database or disk is full")

    store._writer._flush = fail
    with caplog.at_level(logging.CRITICAL):
        for _ in range(3):
            with pytest.raises(ImError, match="507") as refused:
                await store.append(message("room:a"))
            assert refused.value.code == ErrorCode.NOT_DURABLE
    assert "has stopped" in caplog.text
    assert "disk is full" in store.failure
    for attempt in (store.put_cursors([]), store.room()):
        with pytest.raises(ImError, match="507"):
            await attempt
    assert seqs((await store.read("room:a")).frames) == [1, 2], "reading goes on"
    store = await disk()
    assert not store.failure
    assert await store.extent("room:a") == Extent("room:a", 1, 2)
