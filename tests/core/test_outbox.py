"""The outbox beside the bytes it owes (outbox.h: O1, O2)."""

import pytest
from door import MACHINE, Pool, content, ffi, lib
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

SCRATCH = lib.IM_GATHER_SCRATCH
LENGTHS = st.one_of(
    st.integers(1, 60),
    st.sampled_from([2047, 2048, 2049, SCRATCH, SCRATCH + 1]),
    st.integers(1, 9000),
)


class OutboxModel:
    """Messages in order, and how much of the first one is gone."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.begun = 0

    @property
    def owed(self) -> bytes:
        return b"".join(self.messages)[self.begun :]

    def put(self, message: bytes) -> None:
        self.messages.append(message)

    def sent(self, length: int) -> None:
        self.begun += length
        while self.messages and self.begun >= len(self.messages[0]):
            self.begun -= len(self.messages.pop(0))

    def replace(self, count: int, message: bytes) -> None:
        self.messages[:count] = [message]

    def cut(self) -> None:
        self.messages = self.messages[:1] if self.begun else []

    def keep(self, count: int) -> int:
        """Only so many messages; how many bytes of them are owed."""
        self.messages = self.messages[:count]
        if not self.messages:
            self.begun = 0
        return len(self.owed)

    def clear(self) -> None:
        self.messages, self.begun = [], 0


class OutboxMachine(RuleBasedStateMachine):
    Model = OutboxModel

    @initialize()
    def start(self) -> None:
        self.pool = Pool(pages=128)  # a page for each size there is, and more
        self.outbox = ffi.new("struct im_outbox *")
        self.gather = ffi.new("struct im_gather *")
        self.scratch = ffi.new("uint8_t[]", SCRATCH)
        self.gather.scratch = self.scratch
        self.model = self.Model()
        self.serial = 0

    def put_message(self, msg, purpose: int = lib.IM_FOR_MESSAGE) -> None:
        assert lib.im_outbox_put(self.outbox, self.pool.it, msg, purpose) == lib.IM_OK
        self.model.put(content(msg))

    @rule(length=LENGTHS, times=st.integers(1, 3))
    def put(self, length: int, times: int) -> None:
        """The same message several times, as fan-out does."""
        if len(self.model.owed) > 1_000_000:
            return
        self.serial += 1
        data = ((self.serial % 255 + 1).to_bytes(1) + bytes(range(250))) * (length // 251 + 1)
        msg = self.pool.message(data[:length])
        lib.im_msg_share(self.pool.it, msg, times - 1)
        for _ in range(times):
            self.put_message(msg)

    @rule(count=st.integers(20, 70), length=st.integers(1, 40))
    def put_many(self, count: int, length: int) -> None:
        for _ in range(count):
            self.put(length, 1)

    def gathered(self) -> bytes:
        lib.im_outbox_gather(self.outbox, self.gather)
        parts = [self.gather.parts[i] for i in range(self.gather.count)]
        data = b"".join(bytes(ffi.buffer(part.iov_base, part.iov_len)) for part in parts)
        assert self.gather.bytes == len(data)
        assert all(part.iov_len for part in parts)
        return data

    @rule(share=st.floats(0, 1))
    def send(self, share: float) -> None:
        data = self.gathered()
        length = int(len(data) * share)
        lib.im_outbox_sent(self.outbox, self.pool.it, length)
        self.model.sent(length)

    @rule()
    def send_all_of_one_gathering(self) -> None:
        self.send(1.0)

    @precondition(lambda self: self.model.messages and not self.model.begun)
    @rule(count=st.integers(1, 80), length=st.integers(1, 500))
    def replace(self, count: int, length: int) -> None:
        """As what was gathered is, by itself compressed."""
        count = min(count, len(self.model.messages))
        msg = self.pool.message(b"r" * length)
        before = sum(map(len, self.model.messages[:count]))
        lib.im_outbox_replace(self.outbox, self.pool.it, before, msg)
        self.model.replace(count, content(msg))

    @rule()
    def cut(self) -> None:
        lib.im_outbox_cut(self.outbox, self.pool.it)
        self.model.cut()

    @rule(share=st.floats(0, 1))
    def keep(self, share: float) -> None:
        length = self.model.keep(int(len(self.model.messages) * share))
        lib.im_outbox_keep(self.outbox, self.pool.it, length)
        assert self.outbox.refs == len(self.model.messages)

    @rule()
    def clear(self) -> None:
        lib.im_outbox_clear(self.outbox, self.pool.it)
        self.model.clear()

    @invariant()
    def it_owes_what_was_put_and_not_sent(self) -> None:
        if hasattr(self, "outbox"):
            owed = self.model.owed
            assert self.outbox.bytes == len(owed)  # O1
            data = self.gathered()
            assert owed.startswith(data)
            assert bool(data) == bool(owed)  # a gathering always gets on

    def teardown(self) -> None:
        if hasattr(self, "outbox"):
            try:
                while self.model.messages:
                    self.send(1.0)
                assert self.outbox.bytes == 0
                assert self.pool.it.taken == 0  # blocks and messages, all given back
            finally:
                self.pool.free()


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = MACHINE


@pytest.fixture
def machine():
    machine = OutboxMachine()
    machine.start()
    yield machine
    machine.teardown()


def test_a_message_that_was_begun_is_finished_whatever_is_cut(machine) -> None:
    for data in (b"first message", b"second", b"third"):
        machine.put_message(machine.pool.message(data))
    lib.im_outbox_sent(machine.outbox, machine.pool.it, 6)
    machine.model.sent(6)
    machine.cut()
    assert machine.gathered() == b"message"
    machine.put_message(machine.pool.message(b"goodbye"))
    assert machine.gathered() == b"messagegoodbye"


def test_what_was_not_begun_is_cut(machine) -> None:
    machine.put_message(machine.pool.message(b"first"))
    machine.put_message(machine.pool.message(b"second"))
    lib.im_outbox_sent(machine.outbox, machine.pool.it, 5)
    machine.model.sent(5)
    machine.cut()
    assert machine.gathered() == b""
    assert machine.pool.it.taken == 0


def test_small_messages_leave_together_and_a_lone_one_from_where_it_is(machine) -> None:
    lone = machine.pool.message(b"x" * 100)
    machine.put_message(lone)
    machine.gathered()
    assert machine.gather.parts[0].iov_base == ffi.cast("void *", lone.bytes)
    for _ in range(100):
        machine.put_message(machine.pool.message(b"y" * 10))
    assert machine.gathered() == machine.model.owed
    assert machine.gather.count == 1


def test_large_messages_are_parts_of_their_own_between_small_ones(machine) -> None:
    for data in (b"a" * 10, b"B" * 5000, b"c" * 10, b"d" * 10, b"E" * 5000):
        machine.put_message(machine.pool.message(data))
    assert machine.gathered() == machine.model.owed
    lengths = [machine.gather.parts[i].iov_len for i in range(machine.gather.count)]
    assert lengths == [10, 5000, 20, 5000]


def test_one_message_alone_takes_no_block(machine) -> None:
    machine.put_message(machine.pool.message(b"alone"))
    assert machine.pool.it.taken == 1
    machine.put_message(machine.pool.message(b"no more"))
    assert machine.pool.it.taken == 3
    assert machine.gathered() == b"aloneno more"


def test_without_a_block_the_reference_stays_with_the_caller(machine) -> None:
    machine.put_message(machine.pool.message(b"first"))
    msg = machine.pool.message(b"x" * 5000)
    taken = []
    for length in (100_000, 232):
        while (filler := machine.pool.take(length)) is not None:
            taken.append(filler)
    status = lib.im_outbox_put(machine.outbox, machine.pool.it, msg, lib.IM_FOR_MESSAGE)
    assert status == lib.IM_FULL
    assert msg.refs == 1
    assert machine.gathered() == b"first"
    machine.put_message(msg, lib.IM_FOR_CONTROL)  # an answer may use the reserve
    for filler in taken:
        machine.pool.drop(filler)
