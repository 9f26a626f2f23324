"""What is unacknowledged for too long: sent again, and again, and then a dead letter.

A follower whose cursor stands still for ack_wait with something outstanding gets all of it again
(a round, in pages). Then the wait grows, by chance and up to a bound. A reader that makes
progress is never disturbed: every acknowledgement starts the wait anew.

    R1  a message is sent at most `attempts` times; a redelivery that the core refused (the peer
        is silent) counts for nothing.
    R2  a message becomes a dead letter together with the cursor's move past it, or not at all;
        the core hears of the move afterwards.
    R3  what is gone from the store before it was acknowledged is reported when the cursor
        passes it.

Not here: messages set aside (delivery_asides), which have a schedule of their own.
"""

from imserver.delivery_cursors import Cursors
from imserver.delivery_follower import Flight, Follower
from imserver.delivery_frames import as_redelivered, split, tag_of
from imserver.delivery_means import PAGE_BYTES, Means
from imserver.delivery_schedule import Schedule
from imserver.timeline import PAGE_FRAMES, DeadLetter, Gap, Page

#: Why a message that was never refused became a dead letter.
UNACKNOWLEDGED = "unacknowledged"


class Redelivery:
    """The waits of all followers, and what follows when one ends."""

    def __init__(self, means: Means, cursors: Cursors) -> None:
        self._means = means
        self._cursors = cursors
        self.deadlines: Schedule[int] = Schedule()

    # As the core reports

    def moved(self, follower: Follower, acked: int, sent: int) -> None:
        """The core, or a commit, has moved it."""
        if follower.move(acked, sent):
            self._settle(follower, follower.acked)
            if follower.flight is None and not follower.round_at:
                follower.is_due = False
                self._wait(follower)
        elif follower.number not in self.deadlines and not follower.is_due:
            self._wait(follower)

    def _settle(self, follower: Follower, seq: int) -> None:
        """Nothing up to `seq` is outstanding: the cursor goes there, and past what is set aside
        behind it. The core knows of what it said itself."""
        known = follower.acked
        follower.move(seq, seq)
        acked = follower.beyond_asides(follower.acked)
        if acked > known:
            follower.move(acked, acked)
            self._means.courier.advance(follower.conn, follower.number, acked)
        self._cursors.note(follower.key, acked)

    def _wait(self, follower: Follower, wait_s: float = 0.0) -> None:
        """For what has been sent by now; not at all when nothing is outstanding."""
        if not follower.is_open or follower.sent <= follower.acked:
            self.deadlines.drop(follower.number)
            return
        follower.armed = follower.sent
        wait_s = wait_s or self._means.wait_s(len(follower.rounds))
        self.deadlines.set(follower.number, self._means.now_s() + wait_s)

    # When a wait has ended

    async def go_on(self, follower: Follower) -> None:
        """Bury what is used up, then send a page of the rest. An acknowledgement that comes in
        between ends it (`is_due` is taken back), and a NACK that is being written stops it."""
        if not follower.round_at:
            used_up = follower.used_up
            while self._may_go_on(follower) and follower.acked < used_up:
                await self._bury(follower, used_up)
            follower.round_from = follower.acked
        while self._may_go_on(follower):
            at = max(follower.acked, follower.round_at)
            if follower.acked > follower.round_from or at >= follower.armed:
                self._end_round(follower)
            else:
                await self._send(follower, at)

    def _may_go_on(self, follower: Follower) -> bool:
        is_free = follower.flight is None and not follower.nacks
        return follower.is_open and follower.is_due and is_free

    async def _bury(self, follower: Follower, used_up: int) -> None:
        """A page of dead letters, and the cursor past them."""
        start = follower.acked
        page = await self._page(follower, start)
        if follower.nacks:
            return
        last = self._end(page, used_up)
        letters = [
            self._letter(follower, seq, frame) for seq, frame in self._open(follower, page, last)
        ]
        follower.dead_upto = last
        try:
            await self._means.timeline.put_dead(letters, [follower.cursor(last)])
        finally:
            follower.dead_upto = 0
        self._means.counts[f"dead.{UNACKNOWLEDGED}"] += len(letters)
        follower.died(letter.seq for letter in letters)
        self._report_gone(follower, start, page, last)
        self._settle(follower, last)

    async def _send(self, follower: Follower, start: int) -> None:
        """A page of a round. What turns out to be settled is passed."""
        page = await self._page(follower, start)
        if follower.acked > follower.round_from or follower.nacks:
            return
        last = self._end(page, follower.armed)
        found = list(self._open(follower, page, last))
        if start == follower.acked:
            passed = found[0][0] - 1 if found else last
            self._report_gone(follower, start, page, passed)
            if passed > start:
                self._settle(follower, passed)
                follower.round_from = follower.acked
        if not found:
            follower.round_at = last if last > follower.acked else 0
        elif follower.is_open:
            frames = as_redelivered(found, follower.times_sent)
            self._means.redeliver(follower, Flight(len(found), start, last), frames)

    async def _page(self, follower: Follower, after: int) -> Page:
        timeline = self._means.timeline
        return await timeline.read(follower.topic, after, PAGE_FRAMES, PAGE_BYTES)

    def _end(self, page: Page, upto: int) -> int:
        """How far a page goes, of what is outstanding up to `upto`."""
        return upto if page.last < page.first else min(page.last, upto)

    def _open(self, follower: Follower, page: Page, last: int) -> list[tuple[int, bytes]]:
        """What of a page waits for an acknowledgement."""
        return [
            (seq, frame)
            for seq, frame in split(page.frames)
            if follower.acked < seq <= last
            and seq not in follower.asides
            and follower.passes(tag_of(frame))
        ]

    def _letter(self, follower: Follower, seq: int, frame: bytes) -> DeadLetter:
        attempts, time_ms = follower.times_sent(seq), self._means.wall_ms()
        return DeadLetter(*follower.key, seq, UNACKNOWLEDGED, attempts, time_ms, frame)

    def _report_gone(self, follower: Follower, start: int, page: Page, passed: int) -> None:
        gone = Gap(start + 1, page.first - 1, "expired")
        for first, last, reason in (gone, *page.gaps):
            last = min(last, passed)
            if first <= last:
                self._means.counts["gone"] += last - first + 1
                self._means.report(follower.conn, follower.topic, first, last, reason)

    # When the core has answered

    def answered(self, follower: Follower, flight: Flight, sent: bool) -> None:
        """Whether a page of a round was sent."""
        if not sent:
            self._end_round(follower, self._means.again_s)
            return
        follower.round_at = flight.upto
        if follower.acked > follower.round_from or flight.upto >= follower.armed:
            self._end_round(follower)

    def _end_round(self, follower: Follower, wait_s: float = 0.0) -> None:
        follower.end_round()
        follower.is_due = False
        self._wait(follower, wait_s)

    def forget(self, follower: Follower) -> None:
        self.deadlines.drop(follower.number)
