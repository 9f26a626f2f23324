"""The message pool beside a list of live messages (pool.h: M1 to M4; pool.c: P1, P2)."""

from itertools import pairwise

import pytest
from door import MACHINE, NONE, Pool, address, content, ffi, lib, new_aligned
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

HEAD = 24  # bytes of a message before its content
LEN_MAX = 100_000
PURPOSES = st.sampled_from([lib.IM_FOR_MESSAGE, lib.IM_FOR_CONTROL])
LENGTHS = st.one_of(
    st.sampled_from([0, 1, 40, 41, 56, 57, 232, 2048, 16360, 16361, 65536, LEN_MAX]),
    st.integers(0, 300),
    st.integers(0, LEN_MAX),
)


class PoolModel:
    """Messages that are out: how many references each has, and what was written into it."""

    def __init__(self) -> None:
        self.live: list[list] = []  # [message, references, content, a loan's references]

    def take(self, msg, data: bytes) -> None:
        self.live.append([msg, 1, data, 0])

    def pick(self, number: int) -> list:
        return self.live[number % len(self.live)]

    def drop(self, entry: list) -> None:
        entry[1] -= 1
        if entry[1] == 0:
            self.live.remove(entry)


class PoolMachine(RuleBasedStateMachine):
    Model = PoolModel

    @initialize()
    def start(self) -> None:
        self.pool, self.other = Pool(owner=1), Pool(owner=2)
        self.model = self.Model()
        self.serial = 0

    @rule(length=LENGTHS, purpose=PURPOSES)
    def take(self, length: int, purpose: int) -> None:
        msg = self.pool.take(length, purpose)
        if msg is None:
            reserve = self.pool.it.reserve if purpose == lib.IM_FOR_MESSAGE else 0
            assert self.pool.it.spare <= reserve  # M4: refused only when it is dry
            return
        assert msg.len == length
        assert msg.refs == 1
        assert address(msg) % 16 == 0
        room = lib.im_msg_room(self.pool.it, msg)
        assert length <= room
        # At most a fifth of a slot is lost, beyond its smallest size.
        assert (room + HEAD) * 4 <= max(64 * 4, (length + HEAD) * 5) + 64
        self.serial += 1
        data = (self.serial.to_bytes(4) * (length // 4 + 1))[:length]
        ffi.memmove(msg.bytes, data, length)
        self.model.take(msg, data)

    @rule(length=LENGTHS, count=st.integers(1, 40))
    def take_many(self, length: int, count: int) -> None:
        for _ in range(count):
            self.take(length, lib.IM_FOR_MESSAGE)

    @rule(number=st.integers(0), count=st.integers(1, 5))
    def share(self, number: int, count: int) -> None:
        if self.model.live:
            entry = self.model.pick(number)
            lib.im_msg_share(self.pool.it, entry[0], count)
            entry[1] += count

    @rule(number=st.integers(0), repeat=st.integers(1, 30))
    def drop(self, number: int, repeat: int) -> None:
        for _ in range(repeat):
            if not self.model.live:
                return
            entry = self.model.pick(number)
            if entry[1] == 1 and entry[3]:
                return  # this one is the loan's
            assert content(entry[0]) == entry[2]
            self.pool.drop(entry[0])
            self.model.drop(entry)

    @rule(number=st.integers(0), threads=st.integers(1, 4))
    def lend(self, number: int, threads: int) -> None:
        """M3: once in the life of a message."""
        if self.model.live and self.model.pick(number)[3] == 0:
            entry = self.model.pick(number)
            lib.im_msg_lend(entry[0], threads)
            entry[1] += 1
            entry[3] = threads

    @rule(number=st.integers(0), count=st.integers(0, 3))
    def share_a_loan(self, number: int, count: int) -> None:
        lent = [entry for entry in self.model.live if entry[3]]
        if lent:
            entry = lent[number % len(lent)]
            lib.im_msg_share(self.other.it, entry[0], count)
            entry[3] += count

    @rule(number=st.integers(0))
    def return_a_loan(self, number: int) -> None:
        lent = [entry for entry in self.model.live if entry[3]]
        if lent:
            self.give_back(lent[number % len(lent)])

    def give_back(self, entry: list) -> None:
        assert content(entry[0]) == entry[2]
        while entry[3]:
            self.other.drop(entry[0])
            entry[3] -= 1
        assert self.pool.it.taken == len(self.model.live)  # not before the owner collects
        lib.im_pool_collect(self.pool.it)
        self.model.drop(entry)

    @invariant()
    def live_messages_do_not_overlap(self) -> None:
        if not hasattr(self, "pool"):
            return
        assert self.pool.it.taken == len(self.model.live)
        places = sorted(
            (address(entry[0]), lib.im_msg_room(self.pool.it, entry[0]))
            for entry in self.model.live
        )
        for (at, room), (following, _) in pairwise(places):
            assert at + HEAD + room <= following

    @invariant()
    def references_are_counted(self) -> None:
        if hasattr(self, "pool"):
            assert all(entry[0].refs == entry[1] for entry in self.model.live)

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        try:
            for entry in list(self.model.live):
                if entry[3]:
                    self.give_back(entry)
            for msg, references, data, _ in self.model.live:
                assert content(msg) == data
                for _ in range(references):
                    self.pool.drop(msg)
            assert self.pool.it.taken == 0
            assert_everything_is_back(self.pool)
        finally:
            self.pool.free()
            self.other.free()


def assert_everything_is_back(pool: Pool) -> None:
    """All pages can serve any size again, whatever they served before."""
    for length in (LEN_MAX, 1, 5000):
        taken = exhaust(pool, length, lib.IM_FOR_CONTROL)
        assert pool.it.spare == 0
        for msg in taken:
            pool.drop(msg)
        assert pool.it.spare == pool.it.page_count - 1  # its class keeps one
    assert pool.it.taken == 0


def exhaust(pool: Pool, length: int, purpose: int = lib.IM_FOR_MESSAGE) -> list:
    taken = []
    while (msg := pool.take(length, purpose)) is not None:
        taken.append(msg)
    return taken


TestPool = PoolMachine.TestCase
TestPool.settings = settings(MACHINE, max_examples=40)


@pytest.fixture
def pool():
    pool = Pool(owner=1)
    yield pool
    pool.free()


def test_a_dry_pool_refuses_and_serves_again_once_something_is_back(pool) -> None:
    taken = exhaust(pool, LEN_MAX)
    assert pool.take(LEN_MAX) is None
    pool.drop(taken.pop())
    assert pool.take(LEN_MAX) is not None


def test_control_frames_still_find_room_in_a_pool_that_is_dry_for_messages(pool) -> None:
    exhaust(pool, LEN_MAX)
    assert pool.it.spare == pool.it.reserve == 1
    assert pool.take(200) is None
    answers = exhaust(pool, 200, lib.IM_FOR_CONTROL)
    assert len(answers) > 500
    assert pool.it.spare == 0


def test_a_burst_of_one_size_does_not_starve_the_others(pool) -> None:
    sizes = (1, 60, 300, 1500, 7000, 30_000, LEN_MAX)
    counts = []
    for size in sizes * 2:
        taken = exhaust(pool, size)
        counts.append(len(taken))
        for msg in taken:
            pool.drop(msg)
    # What was there for a size at first is there again after all the others.
    assert counts[: len(sizes)] == counts[len(sizes) :]


def test_one_message_back_and_forth_moves_no_page(pool) -> None:
    first = pool.take(100)
    spare, at = pool.it.spare, address(first)
    pool.drop(first)
    for _ in range(10):
        msg = pool.take(100)
        assert (address(msg), pool.it.spare) == (at, spare)
        pool.drop(msg)


def test_every_length_finds_a_slot_that_fits(pool) -> None:
    for length in [*range(2000), *range(2000, LEN_MAX, 997), LEN_MAX]:
        msg = pool.take(length)
        assert lib.im_msg_room(pool.it, msg) >= length
        pool.drop(msg)


def test_a_message_larger_than_a_page_is_refused(pool) -> None:
    most = pool.it.page_len - 64 - HEAD
    msg = pool.take(most)
    assert lib.im_msg_room(pool.it, msg) == most
    assert pool.take(most + 1) is None


def test_the_longest_message_sets_the_size_of_pages() -> None:
    for len_max in (1, 256 << 10, (1 << 24) + (64 << 10)):
        pool = new_aligned("struct im_pool")
        assert lib.im_pool_init(pool, 0, 1 << 20, len_max) == lib.IM_OK
        msg = lib.im_pool_take(pool, len_max, lib.IM_FOR_MESSAGE)
        assert msg != ffi.NULL
        assert lib.im_msg_room(pool, msg) >= len_max
        lib.im_pool_free(pool)


def test_no_length_is_so_large_that_it_looks_small(pool) -> None:
    for length in (NONE, NONE - HEAD, NONE - HEAD + 1, 1 << 31):
        assert pool.take(length) is None
