"""Kept verdicts beside a dictionary a connection (rights.h: V1, V2)."""

from door import MACHINE, NONE, Span, ffi, lib
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from test_topics import CONN, CONNS, Topics

NAMES = st.integers(0, 120).map(lambda number: b"topic:%d" % number)
ALLOW, HOOK, DENY = 1, 2, 3
VERDICTS = st.tuples(st.sampled_from([ALLOW, HOOK, DENY]), st.integers(0, 65535))


class Rights:
    def __init__(self) -> None:
        self.topics = Topics(seed=3)
        self.it = ffi.new("struct im_rights *")
        lib.im_rights_init(self.it)
        self.firsts = ffi.new("uint32_t[]", [NONE] * CONNS)
        self.counts = ffi.new("uint16_t[]", CONNS)

    def set(self, conn: int, name: bytes, verdict: int, code: int) -> None:
        span, first, count = Span(name), self.firsts + conn, self.counts + conn
        status = lib.im_right_set(
            self.it, self.topics.it, conn, span.value, verdict, code, first, count
        )
        assert status == lib.IM_OK

    def find(self, conn: int, name: bytes) -> tuple[int, int] | None:
        topic = self.topics.find(name)
        right = lib.im_right_find(self.it, conn, topic) if topic is not None else ffi.NULL
        return (right.verdict, right.code) if right != ffi.NULL else None

    def drop(self, conn: int, name: bytes) -> None:
        span = Span(name)
        lib.im_right_drop(
            self.it, self.topics.it, span.value, self.firsts + conn, self.counts + conn
        )

    def drop_oldest(self, conn: int) -> None:
        lib.im_right_drop_oldest(self.it, self.topics.it, self.firsts + conn, self.counts + conn)

    def drop_all(self, conn: int) -> None:
        lib.im_right_drop_all(self.it, self.topics.it, self.firsts + conn, self.counts + conn)

    def free(self) -> None:
        lib.im_rights_free(self.it)
        self.topics.free()


class RightsModel:
    """By connection, oldest first."""

    def __init__(self) -> None:
        self.kept: list[dict[bytes, tuple[int, int]]] = [{} for _ in range(CONNS)]

    def set(self, conn: int, name: bytes, verdict: tuple[int, int]) -> None:
        self.kept[conn][name] = verdict  # one that is changed keeps its age

    def drop(self, conn: int, name: bytes) -> None:
        self.kept[conn].pop(name, None)

    def drop_oldest(self, conn: int) -> None:
        if self.kept[conn]:
            del self.kept[conn][next(iter(self.kept[conn]))]


class RightsMachine(RuleBasedStateMachine):
    Model = RightsModel

    @initialize()
    def start(self) -> None:
        self.rights = Rights()
        self.model = self.Model()
        self.names: set[bytes] = set()

    @rule(conn=CONN, name=NAMES, verdict=VERDICTS)
    def set(self, conn: int, name: bytes, verdict: tuple[int, int]) -> None:
        self.names.add(name)
        self.rights.set(conn, name, *verdict)
        self.model.set(conn, name, verdict)

    @rule(conn=CONN, names=st.lists(NAMES, min_size=30, max_size=100), verdict=VERDICTS)
    def set_many(self, conn: int, names: list[bytes], verdict: tuple[int, int]) -> None:
        for name in names:
            self.set(conn, name, verdict)

    @rule(conn=CONN, name=NAMES)
    def drop(self, conn: int, name: bytes) -> None:
        self.rights.drop(conn, name)
        self.model.drop(conn, name)

    @rule(conn=CONN, times=st.integers(1, 20))
    def drop_oldest(self, conn: int, times: int) -> None:
        for _ in range(times):
            self.rights.drop_oldest(conn)
            self.model.drop_oldest(conn)

    @rule(conn=CONN)
    def drop_all(self, conn: int) -> None:
        self.rights.drop_all(conn)
        self.model.kept[conn].clear()

    @invariant()
    def every_verdict_is_the_one_that_was_kept(self) -> None:
        if not hasattr(self, "rights"):
            return
        for conn in range(CONNS):
            kept = self.model.kept[conn]
            assert self.rights.counts[conn] == len(kept)
            assert (self.rights.firsts[conn] == NONE) == (not kept)
            for name in self.names:
                assert self.rights.find(conn, name) == kept.get(name)
        assert self.rights.it.live == sum(map(len, self.model.kept))

    @invariant()
    def a_topic_is_held_once_for_each_right(self) -> None:
        if not hasattr(self, "rights"):
            return
        for name in self.names:  # V1
            holders = sum(name in kept for kept in self.model.kept)
            topic = self.rights.topics.find(name)
            assert (topic.holds if topic is not None else 0) == holders
        held = set().union(*self.model.kept)
        assert self.rights.topics.it.topic_count == len(held)

    def teardown(self) -> None:
        if not hasattr(self, "rights"):
            return
        try:
            for conn in range(CONNS):
                self.rights.drop_all(conn)
            assert self.rights.it.live == 0
            assert self.rights.topics.it.topic_count == 0
        finally:
            self.rights.free()


TestRights = RightsMachine.TestCase
TestRights.settings = settings(MACHINE, max_examples=25)


def test_a_right_is_of_one_connection_and_one_topic() -> None:
    rights = Rights()
    rights.set(1, b"room:1", DENY, 403)
    assert rights.find(1, b"room:1") == (DENY, 403)
    assert rights.find(2, b"room:1") is None
    assert rights.find(1, b"room:2") is None
    rights.drop_all(1)
    assert rights.find(1, b"room:1") is None
    rights.free()


def test_a_topic_outlives_its_members_while_a_right_holds_it() -> None:
    rights = Rights()
    rights.topics.join(b"room:1", 0, 0)
    rights.set(1, b"room:1", ALLOW, 0)
    rights.topics.leave(rights.topics.member(b"room:1", 0), 0)
    assert rights.find(1, b"room:1") == (ALLOW, 0)
    rights.drop(1, b"room:1")
    assert rights.topics.find(b"room:1") is None
    rights.free()


def test_thousands_of_rights_are_told_apart() -> None:
    rights = Rights()
    for number in range(4000):
        rights.set(number % CONNS, b"t%d" % number, ALLOW + number % 3, number % 1000)
    for number in range(4000):
        expected = (ALLOW + number % 3, number % 1000)
        assert rights.find(number % CONNS, b"t%d" % number) == expected
        assert rights.find((number + 1) % CONNS, b"t%d" % number) is None
    for conn in range(CONNS):
        rights.drop_all(conn)
    assert rights.topics.it.topic_count == 0
    rights.free()
