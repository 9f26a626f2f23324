"""The receive ring beside a bytearray (ring.h: R1, R2)."""

import pytest
from door import MACHINE, address, ffi, lib, text
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule


class RingModel:
    """What is unread, and how much there may be of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.unread = bytearray()

    def can_take(self, wanted: int) -> bool:
        return self.size - len(self.unread) >= wanted

    def write(self, data: bytes) -> None:
        self.unread += data

    def consume(self, length: int) -> None:
        del self.unread[:length]


class RingMachine(RuleBasedStateMachine):
    Model = RingModel

    @initialize(size=st.integers(1, 48))
    def start(self, size: int) -> None:
        self.ring = ffi.new("struct im_ring *")
        assert lib.im_ring_init(self.ring, size) == lib.IM_OK
        self.model = self.Model(size)
        self.written = 0

    @rule(wanted=st.integers(0, 50), share=st.floats(0, 1))
    def write(self, wanted: int, share: float) -> None:
        room = ffi.new("uint32_t *")
        space = lib.im_ring_space(self.ring, wanted, room)
        assert (space != ffi.NULL) == self.model.can_take(wanted)
        if space == ffi.NULL:
            return
        assert wanted <= room[0] <= self.model.size - len(self.model.unread)
        # All of the room may be scribbled on; only what is committed counts.
        data = bytes((self.written + i) % 251 for i in range(room[0]))
        ffi.memmove(space, data, len(data))
        length = int(room[0] * share)
        lib.im_ring_commit(self.ring, length)
        self.model.write(data[:length])
        self.written += length

    @rule(share=st.floats(0, 1))
    def consume(self, share: float) -> None:
        length = int(len(self.model.unread) * share)
        before = lib.im_ring_peek(self.ring)
        lib.im_ring_consume(self.ring, length)
        after = lib.im_ring_peek(self.ring)
        assert address(after.at) == address(before.at) + length  # R2: nothing has moved
        self.model.consume(length)

    @invariant()
    def what_is_unread_is_what_was_written(self) -> None:
        if hasattr(self, "ring"):
            assert text(lib.im_ring_peek(self.ring)) == bytes(self.model.unread)
            assert self.ring.head <= self.ring.tail <= self.ring.size  # R1

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            lib.im_ring_free(self.ring)


TestRing = RingMachine.TestCase
TestRing.settings = MACHINE


@pytest.fixture
def ring():
    ring = ffi.new("struct im_ring *")
    assert lib.im_ring_init(ring, 16) == lib.IM_OK
    yield ring
    lib.im_ring_free(ring)


def put(ring, data: bytes):
    room = ffi.new("uint32_t *")
    space = lib.im_ring_space(ring, len(data), room)
    ffi.memmove(space, data, len(data))
    lib.im_ring_commit(ring, len(data))
    return address(space)


def test_an_empty_ring_starts_over_at_its_first_byte(ring) -> None:
    first = put(ring, b"abcdefgh")
    lib.im_ring_consume(ring, 8)
    assert put(ring, b"x") == first


def test_unread_bytes_move_only_when_that_makes_room(ring) -> None:
    first = put(ring, b"abcdefgh")
    lib.im_ring_consume(ring, 4)
    assert put(ring, b"ijkl") == first + 8
    assert put(ring, b"mnopqr") == first + 8  # behind the 8 unread, which moved to the front
    assert text(lib.im_ring_peek(ring)) == b"efghijklmnopqr"


def test_a_ring_gives_no_room_it_does_not_have(ring) -> None:
    put(ring, b"abcdefgh")
    room = ffi.new("uint32_t *")
    assert lib.im_ring_space(ring, 9, room) == ffi.NULL
    assert lib.im_ring_space(ring, 8, room) != ffi.NULL
