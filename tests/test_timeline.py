"""One suite for every adapter of the port `timeline`: appending, reading, retention, repeats.

Members, cursors and letters are in test_timeline_readers, what only a disk has in
test_timeline_disk.
"""

import asyncio
import random

import pytest
from stores import Turned, bodies, dead, fill, message, seqs, split

from imserver import timeline
from imserver.errors import ErrorCode, ImError
from imserver.protocol import DURABLE, RETRY, decode_message, encode_message
from imserver.timeline import (
    Cursor,
    Extent,
    Timeline,
)

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
