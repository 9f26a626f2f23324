"""The queue of records beside a deque and two cursors (queue.h: Q2, Q3)."""

from collections import deque

import pytest
from door import MACHINE, Span, address, ffi, lib, new_aligned
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

HEAD = 24
SIZE = 4096  # the least a queue has
START_OVER = 32 << 10  # from there on an empty queue goes on at its first byte
PARTS = st.lists(st.binary(max_size=60), max_size=3)


def record_size(length: int) -> int:
    return (HEAD + length + 7) & ~7


class QueueModel:
    """Records in order, and where the two cursors must be."""

    def __init__(self, queue_size: int) -> None:
        self.queue_size = queue_size
        self.records: deque[tuple] = deque()
        self.head = self.tail = 0

    def push(self, record: tuple, length: int) -> int:
        size = record_size(length)
        if size > self.queue_size // 2:
            return lib.IM_BAD
        at = self.tail % self.queue_size
        to_end = self.queue_size - at
        looks = at >= max(START_OVER, size) and at % 512 < size
        starts_over = looks and self.head == self.tail
        filler = to_end if size > to_end or starts_over else 0
        if self.tail + filler + size - self.head > self.queue_size:
            return lib.IM_FULL
        self.tail += filler + size
        self.records.append((record, size, filler))
        return lib.IM_OK

    def peek(self) -> tuple | None:
        if not self.records:
            return None
        record, size, filler = self.records[0]
        self.head += filler  # whoever looks steps over the filler
        self.records[0] = record, size, 0
        return record

    def consume(self) -> None:
        self.head += self.records.popleft()[1]


class QueueMachine(RuleBasedStateMachine):
    Model = QueueModel

    @initialize(size=st.sampled_from([SIZE, 2 * START_OVER]))
    def start(self, size: int = SIZE) -> None:
        self.queue = new_aligned("struct im_queue")
        assert lib.im_queue_init(self.queue, size - SIZE + 1) == lib.IM_OK
        assert self.queue.size == size
        self.model = self.Model(size)

    def push(self, record: tuple, parts: list[bytes]) -> None:
        spans = [Span(part) for part in parts]
        array = ffi.new("struct im_span[]", [span.value for span in spans])
        kind, a, b, conn, data = record
        head = ffi.new("struct im_record *", {"kind": kind, "a": a, "b": b, "conn": conn})
        status = lib.im_queue_push(self.queue, head[0], array, len(parts))
        assert status == self.model.push(record, len(data))

    @rule(
        kind=st.integers(1, 65535),
        a=st.integers(0, 65535),
        b=st.integers(0, 2**32 - 1),
        conn=st.integers(0, 2**64 - 1),
        parts=PARTS,
    )
    def push_small(self, kind, a, b, conn, parts) -> None:
        self.push((kind, a, b, conn, b"".join(parts)), parts)

    @rule(length=st.one_of(st.integers(0, SIZE), st.integers(0, START_OVER)))
    def push_any(self, length: int) -> None:
        data = bytes(length % 250 + i % 5 for i in range(length))
        self.push((7, 1, length, 2, data), [data])

    @rule(length=st.sampled_from([40, 500, 1000, 2000]))
    def push_until_full(self, length: int) -> None:
        while self.model.tail - self.model.head <= self.model.queue_size - record_size(length):
            before = self.model.tail
            self.push((9, 9, 9, 9, b"x" * length), [b"x" * length])
            if self.model.tail == before:
                break

    @rule(count=st.integers(1, 60))
    def take(self, count: int) -> None:
        for _ in range(count):
            record = lib.im_queue_peek(self.queue)
            expected = self.model.peek()
            assert (record != ffi.NULL) == (expected is not None)
            if expected is None:
                return
            data = bytes(ffi.buffer(lib.im_record_bytes(record), record.len))
            assert (record.kind, record.a, record.b, record.conn, data) == expected
            assert record.size == record_size(record.len)
            lib.im_queue_consume(self.queue, record)
            self.model.consume()

    @rule()
    def peek_twice(self) -> None:
        assert lib.im_queue_peek(self.queue) == lib.im_queue_peek(self.queue)
        self.model.peek()

    @invariant()
    def it_knows_when_it_is_empty(self) -> None:
        if hasattr(self, "queue"):
            assert lib.im_queue_is_empty(self.queue) == (not self.model.records)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.take(10_000)
            lib.im_queue_free(self.queue)


TestQueue = QueueMachine.TestCase
TestQueue.settings = MACHINE


@pytest.fixture
def machine():
    machine = QueueMachine()
    machine.start()
    yield machine
    machine.teardown()


def test_half_the_queue_fits_wherever_the_cursor_stands() -> None:
    half = bytes(range(256)) * 8
    for before in (0, *range(HEAD, SIZE, 8)):
        machine = QueueMachine()
        machine.start()
        for step in (before // 2 & ~7, before - (before // 2 & ~7)) if before > 64 else (before,):
            if step:
                machine.push((1, 0, 0, 0, b"." * (step - HEAD)), [b"." * (step - HEAD)])
                machine.take(1)
        assert machine.model.head == before
        machine.push((2, 0, 0, 0, half[HEAD:]), [half[HEAD:]])
        assert len(machine.model.records) == 1
        machine.teardown()


def test_a_queue_that_is_emptied_again_and_again_stays_in_its_first_pages() -> None:
    machine = QueueMachine()
    machine.start(4 * START_OVER)
    places = set()
    for _ in range(1000):
        machine.push((1, 0, 0, 0, b"x" * 1000), [b"x" * 1000])
        places.add(address(lib.im_queue_peek(machine.queue)))
        machine.take(1)
    assert max(places) - min(places) < START_OVER + 512 + 1024
    machine.teardown()


def test_more_than_half_the_queue_never_fits(machine) -> None:
    too_much = bytes(SIZE // 2 - HEAD + 1)
    assert machine.model.push((1, 0, 0, 0, too_much), len(too_much)) == lib.IM_BAD
    machine.push((1, 0, 0, 0, too_much), [too_much])


def test_a_full_queue_refuses_until_something_is_consumed(machine) -> None:
    for _ in range(SIZE // 32):
        machine.push((1, 0, 0, 0, b"12345678"), [b"12345678"])
    assert len(machine.model.records) == SIZE // 32
    machine.push((2, 0, 0, 0, b""), [])
    assert len(machine.model.records) == SIZE // 32
    machine.take(1)
    machine.push((2, 0, 0, 0, b""), [])
    assert len(machine.model.records) == SIZE // 32
