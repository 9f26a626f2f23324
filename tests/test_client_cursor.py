"""The decisions of an application over many connections, against a model of the server.

The model keeps what a server promises: messages in order from its stored cursor on, at most a
window ahead of the acknowledged one, what was set aside by itself. Connections are lost between any
two steps, with whatever is under way in both directions, and the stored cursor may be an old one.
"""

import asyncio
from collections import deque
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from imserver.client_cursor import Cursor
from imserver.model import Message
from imserver.protocol import (
    HISTORY,
    REDELIVERED,
    FrameReader,
    FrameType,
    Subscribed,
    decode_position,
)

TOPIC = "room:1"
WINDOW = 3


class Deliveries(RuleBasedStateMachine):
    """`committed` messages; the server's `acked` and `sent` on this connection, `stored` in its
    store, and what is `aside`. `decided` is what the application said, by its seq."""

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.cursor = Cursor(TOPIC)
        self.committed = self.stored = self.acked = self.sent = 0
        self.aside: set[int] = set()
        self.to_client: deque[Message] = deque()
        self.to_server: deque[bytes] = deque()
        self.queue: deque[Message] = deque()
        self.hands: list[Message] = []
        self.decided: dict[int, str] = {}
        self.handed: list[tuple[int, bool]] = []
        self.is_connected = False

    def run(self, verb: object, *arguments: object) -> object:
        """In the loop, with everything that it plans for this turn."""

        async def call() -> object:
            answer = verb(*arguments)  # type: ignore[operator]
            await asyncio.sleep(0)
            return answer

        return self.loop.run_until_complete(call())

    def message(self, seq: int, flags: int = 0) -> Message:
        return Message(TOPIC, "", "bob", b"", seq=seq, flags=flags)

    def set_aside(self, seq: int) -> Message:
        return self.message(seq, REDELIVERED | (HISTORY if seq <= self.acked else 0))

    # The server

    @rule(count=st.integers(1, 3))
    def commit(self, count: int) -> None:
        self.committed += count

    @precondition(lambda self: not self.is_connected)
    @rule(back=st.integers(0, 3))
    def connect(self, back: int) -> None:
        self.stored = max(self.stored, self.acked - back)
        # What a NACK took out of the way is on the disk, and so is a cursor that passed it.
        self.acked = self.sent = self.stored
        self.to_client.clear()
        self.to_server.clear()
        said = Subscribed(TOPIC, self.committed, self.stored, "e1", durable=True)
        self.run(self.cursor.begin, said, WINDOW, self.to_server.append)
        self.is_connected = True

    @precondition(lambda self: self.is_connected)
    @rule()
    def lose(self) -> None:
        self.run(self.cursor.pause)
        self.is_connected = False

    @precondition(lambda self: not self.is_connected)
    @rule()
    def restart(self) -> None:
        """Another process of the same device: what only the old one knew is decided anew."""
        self.cursor = Cursor(TOPIC)
        self.queue.clear()
        self.hands.clear()
        self.to_server.clear()
        known = {*range(1, self.stored + 1), *self.aside}
        self.decided = {seq: said for seq, said in self.decided.items() if seq in known}
        self.handed = [(seq, True) for seq, _ in self.handed]

    @precondition(lambda self: self.is_connected and self.sent < self.committed)
    @rule(count=st.integers(1, 4))
    def send(self, count: int) -> None:
        for _ in range(count):
            if self.sent < min(self.committed, self.acked + WINDOW):
                self.sent += 1
                if self.sent not in self.aside:
                    self.to_client.append(self.message(self.sent))

    @precondition(lambda self: self.is_connected)
    @rule()
    def time_out(self) -> None:
        for seq in range(self.acked + 1, self.sent + 1):
            if seq not in self.aside:
                self.to_client.append(self.message(seq, REDELIVERED))

    @precondition(lambda self: self.is_connected and self.aside)
    @rule(chance=st.randoms(use_true_random=False))
    def send_aside(self, chance: object) -> None:
        seq = chance.choice(sorted(self.aside))  # type: ignore[attr-defined]
        self.to_client.append(self.set_aside(seq))

    @precondition(lambda self: self.to_server)  # what is under way may come after the loss
    @rule(count=st.integers(1, 9))
    def hear(self, count: int) -> None:
        for frame in self.frames(count):
            self.take(*frame)

    def frames(self, count: int) -> Iterator[tuple[int, int]]:
        reader = FrameReader(1 << 16)
        for _ in range(min(count, len(self.to_server))):
            for frame in reader.feed(self.to_server.popleft()):
                yield frame.type, decode_position(frame.body).seq

    def take(self, type: int, seq: int) -> None:
        assert seq <= self.sent, "beyond what was sent on this connection"
        if type == FrameType.NACK:
            if seq not in self.aside:
                assert seq > self.acked, "an ACK has overtaken a NACK"
                self.aside.add(seq)
        elif seq <= self.acked:
            self.settle(seq)
        else:
            for passed in range(self.acked + 1, seq + 1):
                verdict = self.decided.get(passed)
                assert verdict, f"{passed} was never decided about"
                assert verdict == "ack" or passed in self.aside, f"the NACK of {passed} is lost"
            self.acked = seq
        while self.acked + 1 in self.aside and self.acked < self.sent:
            self.acked += 1

    def settle(self, seq: int) -> None:
        if seq in self.aside:
            assert self.decided[seq] == "ack", "taken for done"
            self.aside.discard(seq)

    # The client

    @precondition(lambda self: self.to_client)
    @rule(count=st.integers(1, 9))
    def receive(self, count: int) -> None:
        for _ in range(min(count, len(self.to_client))):
            message = self.to_client.popleft()
            if self.run(self.cursor.take, message):
                assert message.seq not in [waiting.seq for waiting in self.queue]
                self.queue.append(message)

    @precondition(lambda self: self.queue)
    @rule()
    def hand_out(self) -> None:
        message = self.queue.popleft()
        if self.run(self.cursor.hand, message):
            is_again = bool(message.flags & REDELIVERED)
            assert is_again or (message.seq, False) not in self.handed, "handed out twice"
            self.handed.append((message.seq, is_again))
            # Of two copies it works on the younger.
            self.hands = [other for other in self.hands if other.seq != message.seq]
            self.hands.append(message)

    @precondition(lambda self: self.hands)
    @rule(is_good=st.booleans())
    def decide(self, is_good: bool) -> None:
        """In order, as a loop over the subscription does."""
        message = self.hands.pop(0)
        self.decided[message.seq] = "ack" if is_good else "nack"
        self.run(self.cursor.ack if is_good else self.cursor.nack, message.seq)

    @precondition(lambda self: len(self.hands) > 1)
    @rule()
    def nack_another(self) -> None:
        """Out of order, as when several are worked on at a time."""
        message = self.hands.pop(1)
        self.decided[message.seq] = "nack"
        self.run(self.cursor.nack, message.seq)

    @invariant()
    def what_is_remembered_is_bounded(self) -> None:
        if hasattr(self, "cursor"):
            assert len(self.cursor._nacked) <= 4 * WINDOW
            assert len(self.cursor._waiting) <= len(self.queue)

    def teardown(self) -> None:
        """All connections hold from now on: everything is settled."""
        for round in range(3 * self.committed + 9):
            if (self.acked, self.aside) == (self.committed, set()):
                break
            if not self.is_connected:
                self.connect(0)
            self.send(WINDOW) if self.sent < self.committed else None
            if round % 3 == 2:
                self.time_out()
                self.to_client.extend(self.set_aside(seq) for seq in self.aside)
            self.receive(99)
            while self.queue:
                self.hand_out()
            while self.hands:
                self.decide(True)
            self.hear(999)
        assert (self.acked, self.aside) == (self.committed, set())
        assert {seq for seq, _ in self.handed} == set(range(1, self.committed + 1))
        self.loop.close()


Deliveries.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestDeliveries = pytest.mark.timeout(120)(Deliveries.TestCase)
