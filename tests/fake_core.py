"""A fake of the core, as far as delivery deals with it: `FakeCore`.

It keeps to what _core/cursors.h promises: live or behind, windows, one unanswered question a
subscription, filters, no message twice or out of order. Like the real one it is another thread:
orders wait until it takes a `turn`, and what it has to say waits in `events`.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from imserver.model import Message
from imserver.protocol import decode_message
from imserver.timeline import frame_starts

#: Room without a window.
PLENTY = 2**32 - 1


def split(frames: bytes) -> Iterator[bytes]:
    for at in frame_starts(frames):
        yield frames[at : at + 4 + int.from_bytes(frames[at : at + 4])]


@dataclass
class Subscription:
    """What the core keeps of one, and `inbox`: what the client was sent."""

    number: int
    conn: int
    topic: str
    tags: frozenset[str] | None
    window: int
    acked: int
    sent: int
    last: int
    seen: int = 0
    is_live: bool = False
    is_asked: bool = False
    is_forward: bool = False
    has_changed: bool = False
    inbox: list[Message] = field(default_factory=list)

    @property
    def room(self) -> int:
        return max(0, self.window - (self.sent - self.acked)) if self.window else PLENTY

    def passes(self, message: Message) -> bool:
        return self.tags is None or message.tag in self.tags

    def move(self, seq: int, passed: bool) -> None:
        if seq <= self.sent:
            return
        is_idle = self.acked == self.sent
        self.sent = seq
        self.last = seq if passed else self.last
        if not self.window or (is_idle and not passed):
            self.acked = seq
        self.has_changed = True


class FakeCore:
    """Courier and connections in one. `silent` are connections that are sent nothing again,
    `paused` subscriptions whose client is not read from before it was answered."""

    def __init__(self) -> None:
        self.subscriptions: dict[int, Subscription] = {}
        self.silent: set[int] = set()
        self.paused: set[int] = set()
        self.orders: deque[Callable[[], None]] = deque()
        self.events: deque[tuple[object, ...]] = deque()

    # From the gateway

    def follow(
        self, conn: int, number: int, topic: str, *, cursor: int, window: int, tags: str = "*"
    ) -> Subscription:
        kept = None if tags == "*" else frozenset(tags.split("||"))
        sub = Subscription(number, conn, topic, kept, window, cursor, cursor, cursor)
        self.subscriptions[number] = sub
        self._ask(sub)
        return sub

    def feed(self, conn: int, number: int, frames: bytes, last: int, head: int) -> None:
        self.orders.append(lambda: self._feed(number, frames, last, head))

    def redeliver(self, conn: int, number: int, frames: bytes) -> None:
        self.orders.append(lambda: self._redeliver(number, frames))

    def advance(self, conn: int, number: int, seq: int) -> None:
        self.orders.append(lambda: self._advance(number, seq))

    def turn(self) -> None:
        """Do what was ordered."""
        while self.orders:
            self.orders.popleft()()

    # From the store and from clients

    def commit(self, frame: bytes) -> None:
        message = decode_message(frame)
        for sub in self.subscriptions.values():
            if sub.topic == message.topic:
                self._offer(sub, message)

    def ack(self, number: int, seq: int) -> None:
        sub = self.subscriptions[number]
        assert seq <= sub.sent
        if seq <= sub.acked and sub.is_forward:
            self._upcall("ack", number, seq)
            return
        self._acked(sub, seq)

    def nack(self, number: int, seq: int) -> None:
        self.subscriptions[number].is_forward = True
        self._upcall("nack", number, seq)

    def end(self, conn: int) -> None:
        """A connection has gone. How far it was is said before that it has."""
        self.report()
        for number in [sub.number for sub in self.subscriptions.values() if sub.conn == conn]:
            del self.subscriptions[number]
        self.silent.discard(conn)
        self.events.append(("closed", conn))

    def report(self) -> None:
        """What it says twice a second."""
        moved = []
        for sub in self.subscriptions.values():
            if sub.has_changed:
                sub.has_changed = False
                moved.append((sub.number, sub.acked, sub.sent))
        if moved:
            self.events.append(("cursors", moved))

    # Inside

    def _upcall(self, kind: str, number: int, seq: int) -> None:
        self.paused.add(number)
        self.events.append((kind, number, seq))

    def _ask(self, sub: Subscription) -> None:
        is_full = sub.window and sub.sent - sub.acked > sub.window // 2
        if not (sub.is_live or sub.is_asked or is_full):
            sub.is_asked = True
            self.events.append(("want", sub.number, sub.acked, sub.sent, sub.room))

    def _offer(self, sub: Subscription, message: Message) -> None:
        if message.seq <= sub.sent:
            return
        sub.seen = max(sub.seen, message.seq)
        if sub.is_live and message.seq == sub.sent + 1 and sub.room:
            passes = sub.passes(message)
            if passes:
                sub.inbox.append(message)
            sub.move(message.seq, passes)
            return
        sub.is_live = False
        self._ask(sub)

    def _feed(self, number: int, frames: bytes, last: int, head: int) -> None:
        sub = self.subscriptions.get(number)
        if sub is None:
            return
        assert sub.is_asked
        sub.is_asked = False
        for message in map(decode_message, split(frames)):
            if message.seq <= sub.sent:
                continue
            if sub.window and message.seq - sub.acked > sub.window:
                break
            passes = sub.passes(message)
            if passes:
                sub.inbox.append(message)
            sub.move(message.seq, passes)
        else:
            sub.move(last, False)
            sub.seen = max(sub.seen, head)
            sub.is_live = sub.sent >= sub.seen
        self._ask(sub)

    def _redeliver(self, number: int, frames: bytes) -> None:
        sub = self.subscriptions.get(number)
        if sub is None:
            return
        is_sent = sub.conn not in self.silent
        if is_sent:
            sub.is_forward = True
            sub.inbox += filter(sub.passes, map(decode_message, split(frames)))
        self.events.append(("redelivered", number, is_sent))

    def _advance(self, number: int, seq: int) -> None:
        if sub := self.subscriptions.get(number):
            self._acked(sub, min(seq, sub.sent))

    def _acked(self, sub: Subscription, seq: int) -> None:
        sub.acked = max(sub.acked, sub.sent if seq >= sub.last else seq)
        sub.has_changed = True
        self._ask(sub)
