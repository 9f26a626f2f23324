"""Who is online, against a model of plain dicts; and what an idle session costs."""

import gc
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imserver.model_session import (
    NEVER,
    NO_RIGHTS,
    Session,
    Terms,
    shared_expiry,
    shared_rights,
    shared_terms,
)
from imserver.sessions import MemorySessions, Sessions


def session(conn: int, user: str = "ann", device: str = "default", **fields: float) -> Session:
    return Session(conn, user, Terms(device, NO_RIGHTS, 1), **fields)


def names(sessions: Sessions, user: str) -> list[str]:
    return sorted(one.device for one in sessions.of(user))


def test_a_user_has_several_devices() -> None:
    sessions = MemorySessions()
    assert sessions.open(session(1, "ann", "phone")) is None
    assert sessions.open(session(2, "ann", "desk")) is None
    assert names(sessions, "ann") == ["desk", "phone"]
    assert (len(sessions), sessions.users) == (2, 1)
    sessions.close(1)
    assert names(sessions, "ann") == ["desk"]
    sessions.close(2)
    assert (len(sessions), sessions.users, names(sessions, "ann")) == (0, 0, [])


def test_the_same_device_replaces_its_older_session() -> None:
    sessions = MemorySessions()
    old, new = session(1, "ann", "phone"), session(2, "ann", "phone")
    sessions.open(old)
    assert sessions.open(new) is old
    assert list(sessions.of("ann")) == [new]
    assert sessions.get(1) is old, "until the core has closed it"
    assert sessions.close(1) is old
    assert list(sessions.of("ann")) == [new]
    assert sessions.open(session(3, "bob", "phone")) is None


def test_closing_forgets_everything_about_a_connection() -> None:
    sessions = MemorySessions()
    sessions.open(session(1))
    one = sessions.get(1)
    assert one is not None
    for topic in ("room:a", "room:b", "room:c"):
        sessions.subscribe(one, topic)
    assert sessions.close(1) is one
    assert sessions.close(1) is None
    assert sessions.get(1) is None
    assert not sessions.members("room:a")
    assert not sessions.topics(one)
    sessions.subscribe(one, "room:a")
    assert not sessions.members("room:a"), "a late answer brings nobody back"


def test_an_answer_stays_as_it_is_while_others_go() -> None:
    sessions = MemorySessions()
    ours = [session(conn, "ann", f"device{conn}") for conn in range(1, 6)]
    topics = ["room:a", "room:b", "room:c"]
    for one in ours:
        sessions.open(one)
        for topic in topics:
            sessions.subscribe(one, topic)
    first = ours[0]
    left = [topic for topic in sessions.topics(first) if sessions.unsubscribe(first, topic)]
    assert left == topics
    members = sessions.members("room:b")
    assert [one for one in sessions.of("ann") if sessions.close(one.conn)] == ours
    assert list(members) == ours[1:]
    assert (len(sessions), list(sessions), list(sessions.members("room:b"))) == (0, [], [])


def test_members_share_the_name_of_their_topic() -> None:
    sessions = MemorySessions()
    for conn in range(1, 4):
        sessions.open(session(conn, f"user{conn}"))
    for one in sessions:
        sessions.subscribe(one, "".join(["room:", "lobby"]))
    texts = {id(topic) for one in sessions for topic in sessions.topics(one)}
    assert len(texts) == 1


def number(thread: int, generation: int, slot: int) -> int:
    """The core's number of a connection: `_core/conn.h:im_conn_id`."""
    return thread << 56 | generation << 32 | slot


def test_who_comes_to_a_slot_that_is_free_again_is_somebody_else() -> None:
    sessions = MemorySessions(threads=2)
    old = session(number(1, 1, 5), "ann")
    sessions.open(old)
    sessions.subscribe(old, "room:a")
    sessions.close(old.conn)
    new = session(number(1, 2, 5), "bob")
    sessions.open(new)
    sessions.subscribe(new, "room:b")
    assert sessions.get(old.conn) is None
    assert sessions.close(old.conn) is None
    assert not sessions.topics(old)
    assert not sessions.unsubscribe(old, "room:b")
    assert sessions.get(new.conn) is new
    assert list(sessions.topics(new)) == ["room:b"]
    assert list(sessions.members("room:b")) == [new]


def test_the_same_slot_of_two_threads_is_two_connections() -> None:
    sessions = MemorySessions(threads=2)
    both = [session(number(thread, 1, 7), f"user{thread}") for thread in (1, 0)]
    for one in both:
        sessions.open(one)
        sessions.subscribe(one, "room:a")
    assert [sessions.get(one.conn) for one in both] == both
    assert set(sessions.members("room:a")) == set(both)
    assert sessions.get(number(0, 1, 8)) is None
    assert sessions.get(number(1, 1, 1 << 31)) is None


def test_expired_sessions_are_found_and_eternal_ones_are_not() -> None:
    sessions = MemorySessions()
    sessions.open(session(1, "ann", expires_s=100.0))
    sessions.open(session(2, "bob", expires_s=200.0))
    sessions.open(session(3, "eve", expires_s=NEVER))
    assert sessions.expired(99.9) == []
    assert [one.conn for one in sessions.expired(100.0)] == [1]
    assert [one.conn for one in sessions.expired(1e12)] == [1, 2]


def test_an_expiry_is_shared_and_never_early() -> None:
    assert shared_expiry(1_700_000_000.2) == 1_700_000_001.0
    assert shared_expiry(1_700_000_000.2) is shared_expiry(1_700_000_000.7)
    assert shared_expiry(NEVER) == NEVER


def test_a_session_is_named_after_its_connection() -> None:
    assert session(0x0100000200000003).id == "100000200000003"


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(1, 8), st.sampled_from("ab"), st.sampled_from("xy")),
        st.tuples(st.just("close"), st.integers(1, 8)),
        st.tuples(st.just("subscribe"), st.integers(1, 8), st.sampled_from("rst")),
        st.tuples(st.just("unsubscribe"), st.integers(1, 8), st.sampled_from("rst")),
    ),
    max_size=60,
)


class Model:
    """The same in four lines of dicts."""

    def __init__(self) -> None:
        self.generations = [1] * 9
        self.open: dict[int, tuple[str, str]] = {}
        self.listed: dict[tuple[str, str], int] = {}
        self.subscriptions: set[tuple[int, str]] = set()


@given(ACTIONS)
@settings(max_examples=300)
def test_the_table_agrees_with_a_simple_model(actions: list[tuple[str, ...]]) -> None:
    sessions, model = MemorySessions(threads=2), Model()
    for name, place, *about in actions:  # type: ignore[assignment]
        assert isinstance(place, int)
        conn = number(place & 1, model.generations[place], place >> 1)
        apply(sessions, model, name, conn, *about)
        if name == "close":
            model.generations[place] += 1
        compare(sessions, model)
    for conn in list(model.open):
        sessions.close(conn)
    assert not any(sessions._by_place)
    assert not any(sessions._topics)
    assert (sessions._by_user, sessions._by_topic, sessions._names) == ({}, {}, {})


def apply(sessions: MemorySessions, model: Model, name: str, conn: int, *about: str) -> None:
    one = sessions.get(conn)
    if name == "open" and one is None:
        user, device = about
        replaced = sessions.open(session(conn, user, device))
        assert (replaced and replaced.conn) == model.listed.get((user, device))
        model.open[conn] = (user, device)
        model.listed[user, device] = conn
    elif name == "close":
        assert (sessions.close(conn) is None) is (model.open.pop(conn, None) is None)
        model.listed = {key: other for key, other in model.listed.items() if other != conn}
        model.subscriptions = {pair for pair in model.subscriptions if pair[0] != conn}
    elif name == "subscribe" and one:
        sessions.subscribe(one, about[0])
        model.subscriptions.add((conn, about[0]))
    elif name == "unsubscribe" and one:
        assert sessions.unsubscribe(one, about[0]) is ((conn, about[0]) in model.subscriptions)
        model.subscriptions.discard((conn, about[0]))


def compare(sessions: MemorySessions, model: Model) -> None:
    assert {one.conn for one in sessions} == set(model.open)
    assert sessions.users == len({user for user, _ in model.listed})
    for user in "ab":
        expected = {conn for (owner, _), conn in model.listed.items() if owner == user}
        assert {one.conn for one in sessions.of(user)} == expected
    for topic in "rst":
        expected = {conn for conn, name in model.subscriptions if name == topic}
        assert {one.conn for one in sessions.members(topic)} == expected
    for one in sessions:
        expected_topics = {name for conn, name in model.subscriptions if conn == one.conn}
        assert set(sessions.topics(one)) == expected_topics


@pytest.mark.parametrize(("topic", "bound_bytes"), [("", 190), ("room:lobby", 197)])
def test_an_idle_session_costs_little(topic: str, bound_bytes: int) -> None:
    count, sessions = 10_000, MemorySessions()
    gc.collect()
    tracemalloc.start()
    for number in range(count):
        # All objects are new, as those out of the core and out of a token are.
        conn = 1 << 56 | 1 << 32 | number
        rights = shared_rights(("room:lobby",), ("room:*",))
        expires_s = shared_expiry(1.7e9 + number // 5_000)
        terms = shared_terms("".join(["def", "ault"]), rights, 1)
        sessions.open(Session(conn, f"user-{number:05}", terms, expires_s))
        if topic:
            one = sessions.get(conn)
            assert one is not None
            sessions.subscribe(one, "".join([topic[:4], topic[4:]]))
            del one
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / count <= bound_bytes
