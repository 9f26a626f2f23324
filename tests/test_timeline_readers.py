"""One suite for every adapter of the port `timeline`: members, marks, cursors, dead letters."""

import pytest
from stores import dead, fill, message

from imserver.errors import ErrorCode, ImError
from imserver.timeline import (
    Cursor,
    Mark,
    Member,
    Timeline,
)

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
