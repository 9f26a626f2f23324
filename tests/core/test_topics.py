"""Topics and their members beside dictionaries (topics.h: S1 to S3)."""

import pytest
from door import MACHINE, NONE, Span, ffi, lib
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

CONNS = 5
INTEREST_LEN = 1 << 16
NAMES = st.one_of(
    st.sampled_from([b"room:1", b"room:2", b"r", b"x" * 255, b"\x00", b"room:1\x00"]),
    st.integers(0, 300).map(lambda number: b"topic:%d" % number),
)
CONN = st.integers(0, CONNS - 1)


class Topics:
    """The structure, with a list of subscriptions for each connection."""

    def __init__(self, seed: int = 0) -> None:
        self.it = ffi.new("struct im_topics *")
        assert lib.im_topics_init(self.it, seed) == lib.IM_OK
        self.firsts = ffi.new("uint32_t[]", [NONE] * CONNS)

    def hash(self, name: bytes) -> int:
        span = Span(name)
        return lib.im_topic_hash(self.it, span.value)

    def find(self, name: bytes):
        span = Span(name)
        topic = lib.im_topic_find(self.it, span.value, self.hash(name))
        return topic if topic != ffi.NULL else None

    def hold(self, name: bytes):
        span = Span(name)
        return lib.im_topic_hold(self.it, span.value)

    def drop(self, topic) -> None:
        lib.im_topic_drop(self.it, topic)

    def join(self, name: bytes, conn: int, filter: int) -> None:
        span = Span(name)
        first = self.firsts + conn
        assert lib.im_topic_join(self.it, span.value, conn, filter, first) == lib.IM_OK

    def member(self, name: bytes, conn: int) -> int:
        span = Span(name)
        return lib.im_topic_member(self.it, span.value, self.firsts[conn])

    def leave(self, sub: int, conn: int) -> None:
        lib.im_topic_leave(self.it, sub, self.firsts + conn)

    def free(self) -> None:
        lib.im_topics_free(self.it)


class TopicsModel:
    """Who is subscribed to what with which filter, and what is held how often."""

    def __init__(self) -> None:
        self.members: dict[bytes, dict[int, int]] = {}
        self.holds: dict[bytes, int] = {}

    def join(self, name: bytes, conn: int, filter: int) -> None:
        self.members.setdefault(name, {})[conn] = filter

    def leave(self, name: bytes, conn: int) -> None:
        del self.members[name][conn]
        if not self.members[name]:
            del self.members[name]

    def hold(self, name: bytes, change: int) -> None:
        self.holds[name] = self.holds.get(name, 0) + change
        if not self.holds[name]:
            del self.holds[name]

    @property
    def alive(self) -> set[bytes]:
        return self.members.keys() | self.holds.keys()


class TopicsMachine(RuleBasedStateMachine):
    Model = TopicsModel

    @initialize(seed=st.sampled_from([0, 1, 0xDEADBEEFCAFEF00D]))
    def start(self, seed: int) -> None:
        self.topics = Topics(seed)
        self.model = self.Model()
        self.places: dict[bytes, object] = {}
        self.names: set[bytes] = set()

    @rule(name=NAMES, conn=CONN, filter=st.integers(0, 9))
    def join(self, name: bytes, conn: int, filter: int) -> None:
        self.names.add(name)
        sub = self.topics.member(name, conn)
        assert (sub == NONE) == (conn not in self.model.members.get(name, {}))
        if sub == NONE:
            self.topics.join(name, conn, filter)
        else:  # subscribing again changes the filter
            lib.im_sub_member(self.topics.it, sub).filter = filter
        self.model.join(name, conn, filter)

    @rule(names=st.lists(NAMES, min_size=20, max_size=60), conn=CONN)
    def join_many(self, names: list[bytes], conn: int) -> None:
        for name in names:
            self.join(name, conn, 1)

    @rule(number=st.integers(0), conn=CONN)
    def leave(self, number: int, conn: int) -> None:
        joined = sorted(name for name, who in self.model.members.items() if conn in who)
        if joined:
            name = joined[number % len(joined)]
            self.topics.leave(self.topics.member(name, conn), conn)
            self.model.leave(name, conn)

    @rule(conn=CONN)
    def leave_all(self, conn: int) -> None:
        while self.topics.firsts[conn] != NONE:
            self.topics.leave(self.topics.firsts[conn], conn)
        for name in [name for name, who in self.model.members.items() if conn in who]:
            self.model.leave(name, conn)

    @rule(name=NAMES)
    def hold(self, name: bytes) -> None:
        self.names.add(name)
        topic = self.topics.hold(name)
        assert text_of(topic) == name
        self.model.hold(name, 1)

    @rule(number=st.integers(0))
    def drop(self, number: int) -> None:
        held = sorted(self.model.holds)
        if held:
            name = held[number % len(held)]
            self.topics.drop(self.topics.find(name))
            self.model.hold(name, -1)

    @rule(name=NAMES)
    def find(self, name: bytes) -> None:
        assert (self.topics.find(name) is not None) == (name in self.model.alive)

    @invariant()
    def topics_are_where_the_model_has_them(self) -> None:
        if not hasattr(self, "topics"):
            return
        alive = self.model.alive
        assert self.topics.it.topic_count == len(alive)
        places = {name: self.topics.find(name) for name in self.names}
        for name, topic in places.items():
            assert (topic is not None) == (name in alive)  # S2: alive while it is needed
            if topic is not None and self.places.get(name) is not None:
                assert topic == self.places[name]  # S2: and does not move
        self.places = places

    @invariant()
    def members_are_the_models(self) -> None:
        if not hasattr(self, "topics"):
            return
        for name in self.model.alive:
            topic = self.topics.find(name)
            members = [topic.members[i] for i in range(topic.member_count)]
            expected = self.model.members.get(name, {})
            assert len(members) == len(expected)
            assert {member.conn: member.filter for member in members} == expected
            assert topic.holds == self.model.holds.get(name, 0)
            for i, member in enumerate(members):  # S1
                assert lib.im_sub_member(self.topics.it, member.sub) == topic.members + i
                assert self.topics.member(name, member.conn) == member.sub

    @invariant()
    def interest_is_shown_where_there_are_members(self) -> None:
        if not hasattr(self, "topics"):
            return
        wanted = {self.topics.hash(name) % INTEREST_LEN for name in self.model.members}
        for name in self.names:  # S3
            hash = self.topics.hash(name)
            assert lib.im_topics_wants(self.topics.it, hash) == (hash % INTEREST_LEN in wanted)

    def teardown(self) -> None:
        if not hasattr(self, "topics"):
            return
        try:
            for conn in range(CONNS):
                self.leave_all(conn)
            for name, count in list(self.model.holds.items()):
                for _ in range(count):
                    self.topics.drop(self.topics.find(name))
            assert self.topics.it.topic_count == 0
            assert not any(
                lib.im_topics_wants(self.topics.it, hash) for hash in range(INTEREST_LEN)
            )
        finally:
            self.topics.free()


def text_of(topic) -> bytes:
    return bytes(ffi.buffer(ffi.cast("uint8_t *", topic.name), topic.name_len))


TestTopics = TopicsMachine.TestCase
TestTopics.settings = settings(MACHINE, max_examples=25)


@pytest.fixture
def topics():
    topics = Topics(seed=7)
    yield topics
    topics.free()


def test_thousands_of_topics_are_told_apart_while_half_of_them_go(topics) -> None:
    names = [b"room:%d" % number for number in range(5000)]
    for i, name in enumerate(names):
        topics.join(name, i % CONNS, i % 3)
    for i, name in enumerate(names):
        if i % 2:
            topics.leave(topics.member(name, i % CONNS), i % CONNS)
    assert topics.it.topic_count == 2500
    for i, name in enumerate(names):
        topic = topics.find(name)
        assert (topic is None) == bool(i % 2)
        if topic is not None:
            assert (topic.member_count, topic.members[0].filter) == (1, i % 3)


def test_names_match_exactly(topics) -> None:
    topics.join(b"room:1", 0, 0)
    for name in (b"room:", b"room:11", b"Room:1", b"room:1\x00", b"\x00room:1"):
        assert topics.find(name) is None


def test_the_hash_depends_on_the_seed_and_on_every_byte(topics) -> None:
    other = Topics(seed=8)
    for length in (1, 7, 8, 9, 15, 16, 17, 255):
        name = bytes(range(1, length + 1))
        assert topics.hash(name) != other.hash(name)
        for at in range(length):
            changed = bytearray(name)
            changed[at] ^= 1
            assert topics.hash(bytes(changed)) != topics.hash(name)
    other.free()


def test_a_topic_that_is_only_held_interests_nobody(topics) -> None:
    topic = topics.hold(b"quiet")
    assert topic.member_count == 0
    assert not lib.im_topics_wants(topics.it, topics.hash(b"quiet"))
    topics.drop(topic)
    assert topics.find(b"quiet") is None
