"""What all parts of delivery work with: the store, the core, the clock, chance, and the counts.

Nothing here sleeps or knows asyncio's clock, so a test turns the time itself.
"""

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final, Protocol

from imserver.config import Delivery as Settings
from imserver.delivery_follower import Flight, Follower
from imserver.delivery_schedule import Schedule
from imserver.timeline import Timeline

#: Bytes of one order to the core; a single frame may be larger. A quarter of what may wait for
#: a reader before it counts as slow, and of 4 workers together half a megabyte.
PAGE_BYTES: Final = 131_072

#: report(conn, topic, first, last, reason): these are gone for this subscriber.
Report = Callable[[int, str, int, int, str], None]


class Courier(Protocol):
    """The core, as far as delivery gives it orders."""

    def feed(self, conn: int, number: int, frames: bytes, last: int, head: int) -> None:
        """The answer to a WANT: these, in order, which cover everything up to `last`."""

    def redeliver(self, conn: int, number: int, frames: bytes) -> None:
        """These once more; answered by `on_redelivered`."""

    def advance(self, conn: int, number: int, seq: int) -> None:
        """Everything up to `seq` is settled."""


class Means:
    """`now_s` is a steady clock, `wall_ms` the time of day for people."""

    def __init__(
        self,
        timeline: Timeline,
        courier: Courier,
        settings: Settings,
        now_s: Callable[[], float],
        wall_ms: Callable[[], int],
        random: Random,
        report: Report,
    ) -> None:
        self.timeline, self.courier, self.settings = timeline, courier, settings
        self.now_s, self.wall_ms, self.random, self.report = now_s, wall_ms, random, report
        #: "feeds", "redeliveries", "refusals", "nacks", "gone", and "dead.<reason>".
        self.counts: Counter[str] = Counter()
        #: When an order that the core does not answer counts as refused.
        self.flights: Schedule[int] = Schedule()

    @property
    def ack_wait_s(self) -> float:
        return self.settings.ack_wait_ms / 1000

    @property
    def again_s(self) -> float:
        """The pause after a refused redelivery. The core has asked the peer for a sign of life;
        while that is fresh, the next one is taken."""
        return self.ack_wait_s / 4

    def wait_s(self, rounds: int) -> float:
        """How long an acknowledgement is waited for after so many rounds: the upper end doubles
        with each, and chance decides between it and ack_wait (full jitter)."""
        least_s, most_s = self.ack_wait_s, self.settings.backoff_max_ms / 1000
        upper_s = min(most_s, least_s * 2.0 ** min(rounds, 32))
        return self.random.uniform(least_s, max(least_s, upper_s))

    def redeliver(self, follower: Follower, flight: Flight, frames: bytes) -> None:
        follower.flight = flight
        self.flights.set(follower.number, self.now_s() + self.ack_wait_s)
        self.courier.redeliver(follower.conn, follower.number, frames)
