"""Reliable delivery: windows, acknowledgements, redelivery, dead letters.

The core moves cursors (`acked`, `sent`) and asks for more; what needs time, the store or a
decision is here. All of it is orders to a `Courier` and answers to its events: there is no core
in this module, no clock but the one it is given, and nothing that sleeps. The gateway calls
`tick` every 250 ms.

    V1  a committed message is acknowledged, or a dead letter, or reported as gone, or still to
        come; whatever ends, restarts or fails.
    V2  a follower is served by one worker at a time, so what is done for it has an order.
    V3  memory: a few numbers for each follower, nothing for each message, and bounded tables.

Parts: delivery_follower (state), delivery_feed (catching up), delivery_redelivery (timeouts),
delivery_asides (NACK and redrive), delivery_cursors (into the store).
"""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from random import Random
from typing import Final, NamedTuple

from imserver.config import Delivery as Settings
from imserver.delivery_asides import Asides
from imserver.delivery_cursors import Cursors, Key
from imserver.delivery_feed import feed
from imserver.delivery_follower import Follower, FollowerState, Want
from imserver.delivery_means import Courier, Means, Report
from imserver.delivery_redelivery import Redelivery
from imserver.delivery_schedule import Schedule
from imserver.errors import ErrorCode, ImError
from imserver.timeline import Cursor, Timeline

__all__ = ["Courier", "Delivery", "FollowerState", "Position", "Report", "Settings"]

#: Followers served at a time: what the store's readers do well, twice.
WORKERS: Final = 4
#: The longest pause after the store has failed for a follower.
RETRY_MAX_S: Final = 60.0
#: How often old dead letters and cursors are deleted. Days are kept, so hours do not matter.
EXPIRE_S: Final = 3_600.0
DAY_MS: Final = 86_400_000
#: Stands for no follower: the cursors' way into the store.
KEEPER: Final = -1
#: The pause after it has failed.
KEEP_AGAIN_S: Final = 5.0

_log = logging.getLogger("imserver.delivery")


class Position(NamedTuple):
    """Where a subscription starts: behind `cursor`. The topic keeps `first` to `head`; `missed`
    messages behind the cursor are gone by retention. `reset`: what the client or the store
    remembered means nothing in this history, so it starts with all that there is."""

    cursor: int
    head: int
    first: int
    missed: int
    reset: bool


class Delivery:
    """The followers of one server. `attempts_of` gives a topic's own number of attempts, or 0."""

    def __init__(
        self,
        timeline: Timeline,
        courier: Courier,
        settings: Settings,
        *,
        now_s: Callable[[], float],
        random: Random,
        attempts_of: Callable[[str], int],
        report: Report,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._means = Means(timeline, courier, settings, now_s, wall_ms, random, report)
        self._attempts_of = attempts_of
        self._cursors = Cursors(timeline)
        self._redelivery = Redelivery(self._means, self._cursors)
        self._asides = Asides(self._means)
        self._followers: dict[int, Follower] = {}
        self._by_conn: dict[int, list[int]] = {}
        self._by_key: dict[Key, Follower] = {}  # with acknowledgements; the latest of a device
        self._queue: deque[int] = deque()  # each follower at most once
        self._workers: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._expire_s = now_s() + EXPIRE_S  # who was here before the start may come back first
        self._retries: Schedule[int] = Schedule()
        self._failing: set[int] = set()
        self._is_stopped = False

    @property
    def counts(self) -> Counter[str]:
        """feeds, redeliveries and refusals (messages), nacks, gone, dead.<reason>."""
        return self._means.counts

    @property
    def is_busy(self) -> bool:
        """Whether anything is being done that the next tick need not wait for."""
        return bool(self._workers or self._keeper)

    def __len__(self) -> int:
        return len(self._followers)

    # Beginnings and ends

    async def position(
        self,
        user: str,
        device: str,
        topic: str,
        after: int | None,
        epoch: int | None,
        *,
        is_durable: bool = True,
    ) -> Position:
        """Where a subscription starts: at `after`, at the stored cursor, or at the head. A
        durable one is remembered from now on, so that what comes next cannot miss it."""
        timeline, key = self._means.timeline, (user, device, topic)
        _, first, head = await timeline.extent(topic)
        stored = await self._cursors.get(key) if is_durable else None
        is_reset = epoch not in (None, timeline.epoch) or max(after or 0, stored or 0) > head
        if after is not None and not is_reset:
            cursor = after
        elif stored is not None and stored <= head:
            cursor = stored
        else:
            cursor = first - 1 if is_reset else head
        if is_durable and cursor == stored:
            self._cursors.note(key, cursor)  # the device is in use
        elif is_durable:
            if key in self._by_key:
                self.unsubscribe(self._by_key[key].number)
            self._cursors.forget(key)
            await timeline.put_cursors([Cursor(*key, cursor)], back=True)
        return Position(cursor, head, first, max(0, first - 1 - cursor), is_reset)

    def open(
        self,
        number: int,
        conn: int,
        user: str,
        device: str,
        topic: str,
        *,
        cursor: int,
        is_acked: bool,
        tags: str = "*",
    ) -> None:
        """A subscription that the core has been told to follow. One of the same device to the
        topic ends here; its connection is about to."""
        names = (user, device, topic)
        attempts = self._attempts_of(topic) or self._means.settings.attempts
        follower = Follower(
            number, conn, names, cursor=cursor, is_acked=is_acked, tags=tags, attempts=attempts
        )
        if is_acked:
            if names in self._by_key:
                self.unsubscribe(self._by_key[names].number)
            self._by_key[names] = follower
        self._followers[number] = follower
        self._by_conn.setdefault(conn, []).append(number)

    def close(self, conn: int) -> None:
        """A connection has ended; what it had acknowledged has been reported before."""
        for number in list(self._by_conn.get(conn, ())):
            self.unsubscribe(number)

    def unsubscribe(self, number: int) -> None:
        """Forget a follower. Its cursor and what is set aside for it stay in the store."""
        follower = self._followers.pop(number, None)
        if follower is None:
            return
        follower.is_open = False
        self._redelivery.deadlines.drop(number)
        self._means.flights.drop(number)
        self._retries.drop(number)
        self._failing.discard(number)
        self._asides.forget(follower)
        if self._by_key.get(follower.key) is follower:
            del self._by_key[follower.key]
        numbers = self._by_conn[follower.conn]
        numbers.remove(number)
        if not numbers:
            del self._by_conn[follower.conn]

    # What the core says

    def on_want(self, number: int, acked: int, sent: int, room: int) -> None:
        if follower := self._followers.get(number):
            self._moved(follower, acked, sent)
            follower.want = Want(sent, room)
            self._enqueue(follower)

    def on_cursors(self, moved: Iterable[tuple[int, int, int]]) -> None:
        for number, acked, sent in moved:
            if follower := self._followers.get(number):
                self._moved(follower, acked, sent)

    def _moved(self, follower: Follower, acked: int, sent: int) -> None:
        if follower.is_acked:
            self._redelivery.moved(follower, acked, sent)
        else:
            follower.move(acked, sent)

    def on_redelivered(self, number: int, sent: bool) -> None:
        follower = self._followers.get(number)
        if follower is None or follower.flight is None:
            return
        flight, follower.flight = follower.flight, None
        self._means.flights.drop(number)
        self._means.counts["redeliveries" if sent else "refusals"] += flight.messages
        self._asides.answered(follower, flight, sent)
        if not flight.asides:
            self._redelivery.answered(follower, flight, sent)
        self._enqueue(follower)

    async def on_nack(self, number: int, seq: int) -> None:
        """Returns when the message is set aside for good. ImError 404 when it waits for no
        answer, 503 when too many are, 507 when the store has stopped."""
        follower = self._acked(number)
        try:
            await self._asides.nack(follower, seq)
            if follower.is_open:
                self._redelivery.moved(follower, follower.acked, seq)
        finally:
            self._enqueue(follower)

    async def on_ack(self, number: int, seq: int) -> None:
        """An acknowledgement at or behind the cursor: of a message set aside, or no news."""
        follower = self._acked(number)
        await self._asides.ack(follower, seq)
        self._enqueue(follower)

    def _acked(self, number: int) -> Follower:
        follower = self._followers.get(number)
        if follower is None or not follower.is_acked:
            raise ImError(ErrorCode.NOT_FOUND, "no durable subscription")
        return follower

    # Time

    def tick(self) -> None:
        """What is due by now. Nothing of it is done here but handed to the workers."""
        now_s = self._means.now_s()
        for number in self._means.flights.due(now_s):
            self.on_redelivered(number, False)
        for number in self._redelivery.deadlines.due(now_s):
            follower = self._followers[number]
            follower.is_due = True
            self._enqueue(follower)
        for number, seq in self._asides.schedule.due(now_s):
            follower = self._followers[number]
            if self._asides.is_ready(follower, seq):
                follower.due_asides.add(seq)
                self._enqueue(follower)
        for number in self._retries.due(now_s):
            if (retried := self._followers.get(number)) and not retried.has_work:
                self._heal(number)  # an acknowledgement has settled what could not be done
            elif retried:
                self._enqueue(retried)
        is_free = self._keeper is None and KEEPER not in self._retries and not self._is_stopped
        if is_free and (self._cursors or now_s >= self._expire_s or KEEPER in self._failing):
            self._keeper = asyncio.get_running_loop().create_task(self._keep(now_s))

    async def _keep(self, now_s: float) -> None:
        """Cursors into the store; out of it old dead letters, and the cursors of devices that have
        not been here for long."""
        try:
            if now_s < self._expire_s:
                await self._cursors.flush()
            else:
                self._expire_s = now_s + EXPIRE_S
                for follower in self._by_key.values():  # who is here is not old
                    self._cursors.note(follower.key, follower.acked)
                await self._cursors.flush()
                settings, timeline = self._means.settings, self._means.timeline
                await timeline.expire_cursors(settings.cursor_days * DAY_MS)
                await timeline.expire_dead(settings.dead_days * DAY_MS)
            self._heal(KEEPER)
        except Exception as error:
            self._retries.set(KEEPER, now_s + KEEP_AGAIN_S)
            self._note_failure(KEEPER, error)
        finally:
            self._keeper = None

    async def flush(self) -> None:
        """All cursors into the store. ImError when it refuses."""
        await self._cursors.flush()

    async def redrive(self, ids: Iterable[int]) -> int:
        """Send dead letters once more, all attempts anew; to those who are not here, when they
        subscribe again. How many there were."""
        letters = await self._means.timeline.take_dead(ids)
        for letter in letters:
            if follower := self._by_key.get((letter.user, letter.device, letter.topic)):
                self._asides.redrive(follower, letter)
                self._enqueue(follower)
        return len(letters)

    def followers(self, topic: str) -> list[FollowerState]:
        """Who reads a topic through a cursor, and how far they are."""
        return [self._state(one) for one in self._followers.values() if one.topic == topic]

    def _state(self, follower: Follower) -> FollowerState:
        due_s = self._redelivery.deadlines.when(follower.number)
        is_open = follower.is_acked and follower.sent > follower.acked
        return FollowerState(
            follower.number,
            follower.conn,
            follower.user,
            follower.device,
            follower.is_acked,
            follower.acked,
            follower.sent,
            follower.times_sent(follower.acked + 1) if is_open else 0,
            None if due_s is None else due_s - self._means.now_s(),
            tuple(sorted(follower.asides)),
            follower.began,
            follower.last_dead,
            follower.tags,
        )

    async def stop(self) -> None:
        """End what is being done. What was not done is found in the store the next time."""
        self._is_stopped = True
        tasks = [*self._workers, *([self._keeper] if self._keeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # Work

    def _enqueue(self, follower: Follower) -> None:
        if (
            not follower.has_work
            or follower.is_queued
            or follower.is_busy
            or follower.number in self._retries
            or self._is_stopped
        ):
            return
        follower.is_queued = True
        self._queue.append(follower.number)
        if len(self._workers) < WORKERS:
            task = asyncio.get_running_loop().create_task(self._work())
            self._workers.add(task)
            task.add_done_callback(self._workers.discard)

    async def _work(self) -> None:
        while self._queue:
            follower = self._followers.get(self._queue.popleft())
            if follower is None:
                continue
            follower.is_queued, follower.is_busy = False, True
            try:
                await self._serve(follower)
                self._heal(follower.number)
                follower.failures = 0
            except Exception as error:
                self._postpone(follower, error)
            finally:
                follower.is_busy = False
            self._enqueue(follower)

    async def _serve(self, follower: Follower) -> None:
        """Everything that can be done for it now, once."""
        if follower.needs_load:
            await self._asides.load(follower)
        if follower.want is not None:
            await feed(self._means, follower)
        if follower.is_due and follower.flight is None:
            await self._redelivery.go_on(follower)
        if follower.due_asides and follower.flight is None:
            await self._asides.go_on(follower)

    def _postpone(self, follower: Follower, error: Exception) -> None:
        """The store has failed: everything stays as it is, and is tried again."""
        if not follower.is_open:
            return
        follower.failures += 1
        most_s = min(RETRY_MAX_S, 0.5 * 2.0 ** min(follower.failures, 16))
        wait_s = self._means.random.uniform(most_s / 2, most_s)
        self._retries.set(follower.number, self._means.now_s() + wait_s)
        self._note_failure(follower.number, error)

    def _note_failure(self, number: int, error: Exception) -> None:
        """Said once, until everybody is served again."""
        if not self._failing or not isinstance(error, ImError):
            text = "the store fails, and delivery waits for it: %s"
            _log.error(text, error, exc_info=not isinstance(error, ImError))
        self._failing.add(number)

    def _heal(self, number: int) -> None:
        if number in self._failing:
            self._failing.discard(number)
            if not self._failing:
                _log.info("the store works again, and delivery goes on")
