"""Messages set aside: they take a course of their own, and the cursor passes them.

A NACK, or an operator's redrive, makes a row of the dead letters that is marked as taken. It has
the frame and the number of attempts, so the cursor may pass it, a restart knows it, and the
message is sent again even when retention has taken it out of the timeline.

    A1  the row is committed before the NACK is answered, with the cursor if that passes it.
    A2  an attempt is counted in the row before the message leaves: a crash makes no attempt
        too many.
    A3  the last attempt makes the row a dead letter, and not before the cursor is past it.
    A4  at most ASIDES_MAX of a follower are known here; further rows wait in the store.

Not here: when who is served (delivery), everything between cursor and `sent` (redelivery).
"""

import asyncio
from collections.abc import Collection, Iterable
from typing import Final

from imserver.delivery_follower import ASIDES_MAX, Aside, Flight, Follower
from imserver.delivery_frames import as_redelivered, tag_of
from imserver.delivery_means import PAGE_BYTES, Means
from imserver.delivery_schedule import Schedule
from imserver.errors import ErrorCode, ImError
from imserver.timeline import DeadLetter

#: NACKs that read at a time; the others wait, each with its connection.
NACK_READS: Final = 4
#: Rows read at a time: with the largest frames 4 MB.
ROWS: Final = 64


class Asides:
    """What is set aside of all followers, and when each is due."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._reads = asyncio.Semaphore(NACK_READS)
        self.schedule: Schedule[tuple[int, int]] = Schedule()

    async def load(self, follower: Follower) -> None:
        """Learn what the store has for it, as much as fits. Nothing is fed before that."""
        while follower.has_more_asides and follower.is_open:
            rows = await self._rows(follower, follower.loaded_id)
            for row in rows:
                if len(follower.asides) >= ASIDES_MAX:
                    return
                follower.loaded_id = row.id
                if row.seq not in follower.asides:
                    self._add(follower, row.seq, Aside(row.id, row.attempts, row.reason))
            follower.has_more_asides = len(rows) == ROWS

    def _add(self, follower: Follower, seq: int, aside: Aside) -> None:
        follower.asides[seq] = aside
        self._plan(follower, seq, self._means.wait_s(aside.sent) if aside.sent else 0.0)

    def _plan(self, follower: Follower, seq: int, wait_s: float) -> None:
        if follower.is_open:
            self.schedule.set((follower.number, seq), self._means.now_s() + wait_s)

    async def nack(self, follower: Follower, seq: int) -> None:
        """Set a message aside, or count the NACK of one that is."""
        if aside := follower.asides.get(seq):
            aside.reason = "nack"
            if aside.sent >= follower.attempts:
                self._plan(follower, seq, 0.0)
            return
        if seq <= follower.acked:
            raise ImError(ErrorCode.NOT_FOUND, f"message {seq} waits for no answer")
        if len(follower.asides) >= ASIDES_MAX or follower.has_more_asides:
            text = f"{ASIDES_MAX} messages are set aside; acknowledge some"
            raise ImError(ErrorCode.OVERLOADED, text, self._means.settings.ack_wait_ms)
        async with self._reads:
            page = await self._means.timeline.read(follower.topic, seq - 1, 1, PAGE_BYTES)
        if page.first != seq or not page.messages:
            raise ImError(ErrorCode.NOT_FOUND, f"message {seq} cannot be read any more")
        if not follower.passes(tag_of(page.frames)):
            raise ImError(ErrorCode.NOT_FOUND, f"message {seq} is not for the tags asked for")
        if seq in follower.asides or seq <= max(follower.acked, follower.dead_upto):
            return  # settled meanwhile, or about to be
        await self._set_aside(follower, seq, page.frames)

    async def _set_aside(self, follower: Follower, seq: int, frame: bytes) -> None:
        aside = Aside(0, follower.times_sent(seq), "nack")
        flight = follower.flight
        is_flying = flight is not None and flight.after < seq <= flight.upto
        if flight and is_flying:
            aside.sent += 1
            follower.flight = flight._replace(late=(*flight.late, seq))
        follower.sent = max(follower.sent, seq)
        follower.asides[seq] = aside  # from here on no round has it
        acked = follower.beyond_asides(follower.acked, seq)
        is_dead = aside.sent >= follower.attempts and seq <= acked and not is_flying
        letter = self._letter(follower, seq, aside, frame)._replace(is_taken=not is_dead)
        cursors = [follower.cursor(acked)] if acked > follower.acked else []
        follower.nacks += 1
        try:
            (aside.id,) = await self._means.timeline.put_dead([letter], cursors)
        except BaseException:
            del follower.asides[seq]
            raise
        finally:
            follower.nacks -= 1
        self._means.counts["nacks"] += 1
        if is_dead:
            del follower.asides[seq]
            self._means.counts["dead.nack"] += 1
            follower.died([seq])
        else:
            self._plan(follower, seq, self._means.wait_s(aside.sent))
        if acked > follower.acked:
            follower.move(acked, acked)
            self._means.courier.advance(follower.conn, follower.number, acked)

    def _letter(self, follower: Follower, seq: int, aside: Aside, frame: bytes) -> DeadLetter:
        time_ms = self._means.wall_ms()
        return DeadLetter(*follower.key, seq, aside.reason, aside.sent, time_ms, frame)

    async def ack(self, follower: Follower, seq: int) -> None:
        """It has arrived. An old acknowledgement of anything else is no news."""
        aside = follower.asides.pop(seq, None)
        if aside is None:
            return
        try:
            await self._means.timeline.drop_dead([aside.id])
        except BaseException:
            follower.asides[seq] = aside
            raise
        self.schedule.drop((follower.number, seq))

    def is_ready(self, follower: Follower, seq: int) -> bool:
        """Whether something can be done for one that is due. What is used up waits until the
        cursor has passed it (A3)."""
        aside = follower.asides.get(seq)
        if aside is None:
            return False
        if aside.sent < follower.attempts or seq <= follower.acked:
            return True
        self._plan(follower, seq, self._means.ack_wait_s)
        return False

    async def go_on(self, follower: Follower) -> None:
        """Send what is due once more, a page of it, or bury what is used up."""
        due = [seq for seq in sorted(follower.due_asides) if seq in follower.asides]
        used_up = [seq for seq in due if follower.asides[seq].sent >= follower.attempts]
        chosen = (used_up or due)[:ROWS]
        rows = await self._read(follower, chosen)
        if used_up:
            await self._bury(follower, rows)
        elif rows:
            await self._send(follower, rows)
        follower.due_asides -= follower.asides.keys() & {row.seq for row in rows}
        follower.due_asides &= follower.asides.keys()

    async def _read(self, follower: Follower, seqs: Collection[int]) -> list[DeadLetter]:
        """The rows of these, a page at most. One whose row was purged is set aside no more."""
        wanted = {follower.asides[seq].id: seq for seq in seqs}
        found: list[DeadLetter] = []
        size = 0
        while wanted and size < PAGE_BYTES:
            rows = await self._rows(follower, min(wanted) - 1)
            for row in rows:
                if wanted.pop(row.id, None) and (not found or size + len(row.frame) <= PAGE_BYTES):
                    found.append(row)
                    size += len(row.frame)
            for id in [id for id in wanted if not rows or len(rows) < ROWS or id <= rows[-1].id]:
                self._drop(follower, wanted.pop(id))
        return [row for row in found if row.seq in follower.asides]

    def _drop(self, follower: Follower, seq: int) -> None:
        follower.asides.pop(seq, None)
        follower.died([seq])
        self.schedule.drop((follower.number, seq))

    async def _rows(self, follower: Follower, after: int) -> list[DeadLetter]:
        return await self._means.timeline.aside(*follower.key, after, ROWS)

    async def _bury(self, follower: Follower, rows: Iterable[DeadLetter]) -> None:
        taken = {row.seq: follower.asides.pop(row.seq) for row in rows}
        letters = [self._letter(follower, row.seq, taken[row.seq], row.frame) for row in rows]
        try:
            await self._means.timeline.put_dead(letters)
        except BaseException:
            follower.asides.update(taken)
            raise
        follower.died(taken)
        for letter in letters:
            self._means.counts[f"dead.{letter.reason}"] += 1

    async def _send(self, follower: Follower, rows: list[DeadLetter]) -> None:
        asides = {row.seq: follower.asides[row.seq] for row in rows}
        counted = [
            row._replace(attempts=asides[row.seq].sent + 1, reason=asides[row.seq].reason)
            for row in rows
        ]
        await self._means.timeline.put_dead(counted)  # A2
        still = [(row.seq, row.frame) for row in rows if row.seq in follower.asides]
        if still and follower.is_open:
            seqs = tuple(seq for seq, _ in still)
            frames = as_redelivered(still, lambda seq: asides[seq].sent, follower.acked)
            self._means.redeliver(follower, Flight(len(seqs), asides=seqs), frames)

    def answered(self, follower: Follower, flight: Flight, sent: bool) -> None:
        """The core has sent what was on its way, or has refused to."""
        for seq in flight.late:
            if not sent and (aside := follower.asides.get(seq)):
                aside.sent -= 1
        for seq in flight.asides:
            if aside := follower.asides.get(seq):
                aside.sent += sent
                wait_s = self._means.wait_s(aside.sent) if sent else self._means.again_s
                self._plan(follower, seq, wait_s)

    def forget(self, follower: Follower) -> None:
        for seq in follower.asides:
            self.schedule.drop((follower.number, seq))

    def redrive(self, follower: Follower, letter: DeadLetter) -> None:
        """A row that has just been taken, of somebody who is here."""
        if len(follower.asides) >= ASIDES_MAX or follower.has_more_asides:
            follower.loaded_id, follower.has_more_asides = 0, True
        elif letter.seq not in follower.asides:
            self._add(follower, letter.seq, Aside(letter.id, 0, letter.reason))
