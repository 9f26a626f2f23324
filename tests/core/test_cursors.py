"""Cursors beside a reader that remembers every message (cursors.h: K1 to K3, S1, S3).

The machine plays the store (commits, in runs), the thread that offers each commit to its cursors
some time after the store has it, Python that reads the timeline and feeds it, and readers that
acknowledge. Readers come and go.
"""

from typing import Any

from door import MACHINE, NONE, Span, ffi, lib
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_topics import CONNS, Topics

NAME = b"room:lobby"


class Reader:
    """What one reader has got, and what it may be sent: the model."""

    def __init__(self, start: int, window: int, wants: set[bool]) -> None:
        self.window, self.wants = window, wants
        self.got: list[int] = []
        self.start = start
        self.acked = start

    def open(self) -> int:
        """Messages sent to it that it has not acknowledged."""
        return len([seq for seq in self.got if seq > self.acked])

    def take(self, seqs: list[int]) -> None:
        self.got += seqs

    def ack(self, seq: int) -> None:
        self.acked = max(self.acked, seq)


class CursorsMachine(RuleBasedStateMachine):
    Model = Reader

    @initialize()
    def begin(self) -> None:
        self.topics = Topics(seed=5)
        self.it = ffi.new("struct im_cursors *")
        lib.im_cursors_init(self.it)
        self.firsts = ffi.new("uint32_t[]", [NONE] * CONNS)
        self.numbers = 0
        #: Whether each committed message has the tag that some filters want; the first is seq 1.
        self.tags: list[bool] = []
        self.on_their_way: list[tuple[int, int]] = []  # commits, not yet offered: seq, count
        self.readers: dict[int, tuple[int, Any]] = {}  # number -> connection, model

    def cursor(self, number: int) -> Any:
        conn, _ = self.readers[number]
        at = lib.im_cursor_find(self.it, self.topics.it, number, self.firsts[conn])
        assert at != NONE
        return self.it.slots + at

    @rule(
        conn=st.integers(0, CONNS - 1),
        window=st.sampled_from([0, 1, 2, 7]),
        wants=st.sampled_from([{True}, {True, False}]),
        back=st.integers(0, 5),
    )
    def subscribe(self, conn: int, window: int, wants: set[bool], back: int) -> None:
        start = max(0, len(self.tags) - back)
        self.numbers += 1
        begin = ffi.new("struct im_cursor *")
        begin.acked, begin.number, begin.conn, begin.window = start, self.numbers, conn, window
        name = Span(NAME)
        at = lib.im_cursor_open(self.it, self.topics.it, name.value, begin, self.firsts + conn)
        assert at != NONE
        self.readers[self.numbers] = (conn, self.Model(start, window, wants))

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.readers)))
        conn, _ = self.readers[number]
        at = lib.im_cursor_find(self.it, self.topics.it, number, self.firsts[conn])
        lib.im_cursor_close(self.it, self.topics.it, at, self.firsts + conn)
        del self.readers[number]

    @rule(count=st.integers(1, 4), tag=st.booleans())
    def commit(self, count: int, tag: bool) -> None:
        self.on_their_way.append((len(self.tags) + 1, count))
        self.tags += [tag] * count

    @precondition(lambda self: self.on_their_way)
    @rule()
    def offer(self) -> None:
        """A commit reaches the thread: what follow.c does with each cursor."""
        seq, count = self.on_their_way.pop(0)
        seqs = list(range(seq, seq + count))
        for number, (_, reader) in self.readers.items():
            cursor = self.cursor(number)
            if lib.im_cursor_offer(cursor, seq, count):
                passes = self.tags[seq - 1] in reader.wants
                if passes:
                    reader.take(seqs)
                lib.im_cursor_move(cursor, seqs[-1], passes)

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), page=st.integers(1, 6))
    def feed(self, data: Any, page: int) -> None:
        """Python answers with what the store has by now."""
        number = data.draw(st.sampled_from(sorted(self.readers)))
        _, reader = self.readers[number]
        cursor = self.cursor(number)
        if not lib.im_cursor_may_ask(cursor):
            return
        last = min(len(self.tags), cursor.sent + page)
        for seq in range(cursor.sent + 1, last + 1):
            passes = self.tags[seq - 1] in reader.wants
            if passes and not lib.im_cursor_room(cursor):
                return
            if passes:
                reader.take([seq])
            lib.im_cursor_move(cursor, seq, passes)
        lib.im_cursor_fed(cursor, len(self.tags))

    @precondition(lambda self: self.readers)
    @rule(data=st.data(), behind=st.integers(-1, 6))
    def acknowledge(self, data: Any, behind: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.readers)))
        _, reader = self.readers[number]
        cursor = self.cursor(number)
        sent = cursor.sent
        seq = max(0, sent - behind)
        assert lib.im_cursor_ack(cursor, seq) is (seq <= sent)
        if seq <= sent:
            reader.ack(seq)

    @invariant()
    def every_reader_has_all_that_passes_its_filter_once_and_in_order(self) -> None:
        for number, (_, reader) in self.readers.items():
            sent = self.cursor(number).sent
            passing = [
                seq for seq in range(reader.start + 1, sent + 1)
                if self.tags[seq - 1] in reader.wants
            ]  # fmt: skip
            assert reader.got == passing

    @invariant()
    def a_window_is_never_passed(self) -> None:
        for number, (_, reader) in self.readers.items():
            cursor = self.cursor(number)
            assert cursor.acked <= cursor.sent
            if reader.window:
                assert reader.open() == lib.im_cursor_open_count(cursor) <= reader.window
            else:
                assert cursor.acked == cursor.sent

    @invariant()
    def who_is_live_lacks_nothing_that_has_been_offered(self) -> None:
        offered = self.on_their_way[0][0] - 1 if self.on_their_way else len(self.tags)
        for number in self.readers:
            cursor = self.cursor(number)
            if cursor.marks & lib.IM_CURSOR_LIVE:
                assert cursor.sent >= offered

    @invariant()
    def who_has_acknowledged_everything_may_be_sent_more(self) -> None:
        for number, (_, reader) in self.readers.items():
            cursor = self.cursor(number)
            if reader.window and reader.got and reader.acked >= reader.got[-1]:
                assert cursor.acked == cursor.sent
                live = cursor.marks & lib.IM_CURSOR_LIVE
                assert live or lib.im_cursor_may_ask(cursor)

    @invariant()
    def the_topic_lives_while_it_is_read(self) -> None:
        topic = self.topics.find(NAME)
        assert (topic is not None) is bool(self.readers)
        assert self.it.live == len(self.readers)
        name = Span(NAME)
        hash = lib.im_topic_hash(self.topics.it, name.value)
        assert lib.im_topics_wants(self.topics.it, hash) is bool(self.readers)

    def teardown(self) -> None:
        if hasattr(self, "it"):
            lib.im_cursors_free(self.it)
            self.topics.free()


CursorsMachine.TestCase.settings = MACHINE
TestCursors = CursorsMachine.TestCase


def test_a_page_read_before_a_commit_does_not_make_the_cursor_live() -> None:
    """The commit came while Python was reading; nothing else comes, and still it is asked for."""
    cursor = ffi.new("struct im_cursor *")
    cursor.window = 8
    assert not lib.im_cursor_offer(cursor, 1, 1)
    lib.im_cursor_fed(cursor, 0)
    assert not cursor.marks & lib.IM_CURSOR_LIVE
    assert lib.im_cursor_may_ask(cursor)


def test_a_page_that_was_ahead_of_the_commit_is_not_sent_again() -> None:
    cursor = ffi.new("struct im_cursor *")
    cursor.window = 8
    lib.im_cursor_move(cursor, 3, True)
    lib.im_cursor_fed(cursor, 3)
    assert cursor.marks & lib.IM_CURSOR_LIVE
    assert not lib.im_cursor_offer(cursor, 2, 2)
    assert cursor.marks & lib.IM_CURSOR_LIVE
    assert lib.im_cursor_offer(cursor, 4, 1)
