"""One durable subscription: how far it has got, and how often each message was sent.

A follower keeps no message and nothing for each message. `rounds` are the places up to which
everything unacknowledged was sent once more, so a message was sent once and then once for each
round at or behind it: numbers, at most as many as there are attempts, tell the exact attempt of
each of 65,535 messages.

    F1  acked <= every round <= armed <= sent, and the rounds are sorted.
    F2  a round covers only what was sent when its wait began (`armed`): nothing is sent again
        before it has had the whole time to be acknowledged.
    F3  what is set aside is between the cursor and `sent`, or its row in the store lets the
        cursor pass it.

Not here: reading, sending, time (delivery and its other parts).
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from typing import Final, NamedTuple

from imserver.timeline import Cursor

#: Messages set aside of one follower. Who refuses more than that is refused.
ASIDES_MAX: Final = 1_024


class Aside:
    """A message that takes its own course: it was refused (NACK), or is tried once more
    (redrive). `id` is its row in the store, `sent` how often it was sent, the first included."""

    __slots__ = ("id", "reason", "sent")

    def __init__(self, id: int, sent: int, reason: str) -> None:
        self.id, self.sent, self.reason = id, sent, reason


class Flight(NamedTuple):
    """A redelivery that the core has not answered: everything open of a round between `after`
    and `upto`, or these messages set aside. `late` were set aside while it was on its way."""

    messages: int
    after: int = 0
    upto: int = 0
    asides: tuple[int, ...] = ()
    late: tuple[int, ...] = ()


class Want(NamedTuple):
    """The core's question for more."""

    sent: int
    room: int


class FollowerState(NamedTuple):
    """A follower for people: `times_sent` of its first unacknowledged message, and when it is
    sent again unless it is acknowledged. On this connection it began behind `began`, and the last
    place that became a dead letter is `last_dead`. `tags` None: all."""

    number: int
    conn: int
    user: str
    device: str
    is_acked: bool
    acked: int
    sent: int
    times_sent: int
    due_in_s: float | None
    asides: tuple[int, ...]
    began: int
    last_dead: int
    tags: frozenset[str] | None


class Follower:
    """The state of one subscription of one connection."""

    __slots__ = (
        "acked", "armed", "asides", "attempts", "began", "conn", "dead_upto", "device",
        "due_asides", "failures", "flight", "has_more_asides", "is_acked", "is_busy", "is_due",
        "is_open", "is_queued", "last_dead", "loaded_id", "nacks", "number", "round_at",
        "round_from", "rounds", "sent", "tags", "topic", "user", "want",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        conn: int,
        names: tuple[str, str, str],
        *,
        cursor: int,
        is_acked: bool,
        tags: str,
        attempts: int,
    ) -> None:
        self.number, self.conn = number, conn
        self.user, self.device, self.topic = names
        self.tags = None if tags == "*" else frozenset(tags.split("||"))
        self.attempts = attempts
        self.is_acked = is_acked
        self.is_open = True
        self.began = cursor
        self.acked = self.sent = cursor  # as the core said last
        self.rounds: list[int] = []
        self.armed = cursor  # the wait that runs is for everything up to here
        self.round_at = self.round_from = 0  # the round that is being sent
        self.dead_upto = 0  # up to here dead letters are being written
        self.last_dead = 0  # the last place that became one here; it may be deleted since
        self.asides: dict[int, Aside] = {}
        self.loaded_id = 0  # rows set aside up to this one are known
        self.has_more_asides = is_acked
        self.nacks = 0  # rows being written, which may fail: no cursor may rely on them
        # Work that waits for its turn.
        self.want: Want | None = None
        self.is_due = False
        self.due_asides: set[int] = set()
        self.flight: Flight | None = None
        self.is_queued = self.is_busy = False
        self.failures = 0  # in a row

    @property
    def key(self) -> tuple[str, str, str]:
        return self.user, self.device, self.topic

    @property
    def has_work(self) -> bool:
        """Something that can be done now."""
        is_due = self.is_due and not self.nacks
        is_free = self.flight is None and (is_due or bool(self.due_asides))
        return self.is_open and (is_free or self.want is not None or self.needs_load)

    @property
    def needs_load(self) -> bool:
        """Rows set aside wait in the store, and there is room for many of them."""
        return self.has_more_asides and len(self.asides) <= ASIDES_MAX // 2

    def cursor(self, seq: int) -> Cursor:
        return Cursor(self.user, self.device, self.topic, seq)

    def passes(self, tag: str) -> bool:
        return self.tags is None or tag in self.tags

    def move(self, acked: int, sent: int) -> bool:
        """As the core reports. True when there was an acknowledgement."""
        self.sent = max(self.sent, sent)
        if acked <= self.acked:
            return False
        self.acked = acked
        self.sent = max(self.sent, acked)
        self.armed = max(self.armed, acked)
        del self.rounds[: bisect_left(self.rounds, acked + 1)]
        return True

    def died(self, seqs: Iterable[int]) -> None:
        """These are dead letters now, or were."""
        self.last_dead = max(self.last_dead, *seqs, 0)

    def beyond_asides(self, acked: int, about_to_be: int = 0) -> int:
        """Where the cursor may stand when everything up to `acked` is settled: past rows that
        are in the store, and one that is put there together with the cursor."""
        while acked < self.sent:
            aside = self.asides.get(acked + 1)
            if aside is None or not (aside.id or acked + 1 == about_to_be):
                break
            acked += 1
        return acked

    def times_sent(self, seq: int) -> int:
        """How often this message was sent by now, of those behind the cursor."""
        rounds = len(self.rounds) - bisect_left(self.rounds, seq)
        return 1 + rounds + (seq <= self.round_at)

    @property
    def used_up(self) -> int:
        """Everything up to here has been sent as often as it may be, and waited for."""
        most = self.attempts - 1
        if most == 0:
            return self.armed
        return self.rounds[-most] if len(self.rounds) >= most else 0

    def end_round(self) -> None:
        """What was sent of it counts, also when that was not all."""
        if self.round_at > self.acked:
            insort(self.rounds, self.round_at)
        self.round_at = 0
