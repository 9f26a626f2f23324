"""Delivery on a stage: a clock that is turned, a store that fails when told to, a fake core.

Nothing waits for real time. Whoever uses a `Stage` decides how far things go on between two
steps, so that events, orders and work of the store meet each other in every order.
"""

import asyncio
from collections.abc import Collection
from random import Random
from typing import Any

from fake_core import FakeCore, Subscription, split

from imserver.config import Delivery as Settings
from imserver.delivery import Delivery
from imserver.errors import ErrorCode, ImError
from imserver.protocol import encode_message
from imserver.timeline import PAGE_BYTES, PAGE_FRAMES, Clock, Cursor, DeadLetter, Gap, Page
from imserver.timeline_memory import MemoryTimeline

TOPIC = "room:a"


class FaultyTimeline(MemoryTimeline):
    """The memory adapter, as slow as a disk (in turns of the loop), that fails and has damage
    when told to: after `fail_in` more calls, `failures` of them fail. `days`: its steady clock."""

    def __init__(self, rng: Random) -> None:
        self.days = 0.0
        super().__init__(
            Clock(wall_s=lambda: 1_700_000_000.0, steady_s=lambda: 86_400.0 * self.days)
        )
        self.fail_in = self.failures = 0
        self.damaged: set[int] = set()
        self.reads = 0
        self.died_twice: list[DeadLetter] = []
        self._rng = rng

    async def _pass(self) -> None:
        for _ in range(self._rng.randrange(3)):
            await asyncio.sleep(0)
        if self.failures and self.fail_in <= 0:
            self.failures -= 1
            raise ImError(ErrorCode.OVERLOADED, "the disk is slower than the traffic", 100)
        self.fail_in -= 1

    async def read(
        self, topic: str, after: int = 0, limit: int = PAGE_FRAMES, max_bytes: int = PAGE_BYTES
    ) -> Page:
        await self._pass()
        self.reads += 1
        page = await super().read(topic, after, limit, max_bytes)
        whole, gaps = [], []
        for seq, frame in enumerate(split(page.frames), page.first):
            if seq in self.damaged:
                gaps.append(Gap(seq, seq, "damaged"))
            else:
                whole.append(frame)
        return page._replace(frames=b"".join(whole), messages=len(whole), gaps=tuple(gaps))

    async def cursor(self, user: str, device: str, topic: str) -> int | None:
        await self._pass()
        return await super().cursor(user, device, topic)

    async def put_cursors(self, cursors: Collection[Cursor], *, back: bool = False) -> None:
        if cursors:
            await self._pass()
        await super().put_cursors(cursors, back=back)

    async def put_dead(
        self, letters: Collection[DeadLetter], cursors: Collection[Cursor] = ()
    ) -> list[int]:
        await self._pass()
        before = {letter[:4]: letter for letter in self._dead.values()}
        for letter in letters:
            old = before.get(letter[:4])
            if old is not None and not old.is_taken:
                self.died_twice.append(letter)
        # The cursors apart, since put_cursors() of this class could fail in between.
        ids = await super().put_dead(letters)
        await MemoryTimeline.put_cursors(self, cursors)
        return ids

    async def aside(
        self, user: str, device: str, topic: str, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        await self._pass()
        return await super().aside(user, device, topic, after, limit)

    async def take_dead(self, ids: Any) -> list[DeadLetter]:
        await self._pass()
        return await super().take_dead(ids)

    async def drop_dead(self, ids: Any) -> int:
        await self._pass()
        return await super().drop_dead(ids)

    # What the stage looks at, without a turn of the loop

    def stored(self, user: str, device: str) -> int:
        return self._cursors.get((user, device, TOPIC), 0)

    def letters(self, user: str, device: str, *, is_taken: bool) -> dict[int, DeadLetter]:
        return {
            letter.seq: letter
            for letter in self._dead.values()
            if letter[:2] == (user, device) and letter.is_taken == is_taken
        }


class WatchedDelivery(Delivery):
    """Delivery, which says what it logs: anything but a store's refusal is a mistake of its."""

    def __init__(self, *given: Any, **settings: Any) -> None:
        super().__init__(*given, **settings)
        self.mistakes: list[Exception] = []

    def _note_failure(self, number: int, error: Exception) -> None:
        super()._note_failure(number, error)
        if not isinstance(error, ImError):
            self.mistakes.append(error)


class Stage:
    """Everything around one Delivery."""

    def __init__(self, settings: Settings, seed: int = 0, timeline: Any = None) -> None:
        self.rng = Random(seed)
        self.now_s = 1_000.0
        self.core = FakeCore()
        self.timeline = FaultyTimeline(self.rng) if timeline is None else timeline
        self.settings = settings
        self.gone: list[tuple[int, str, int, int, str]] = []
        self.answers: set[asyncio.Task[None]] = set()
        #: What became of ACKs and NACKs that the core asked about: kind, number, seq, error.
        self.answered: list[tuple[str, int, int, ImError | None]] = []
        self._last_conn = 0
        self.start()

    def start(self) -> None:
        """A process with nothing in its memory."""
        self.delivery = WatchedDelivery(
            self.timeline,
            self.core,
            self.settings,
            now_s=lambda: self.now_s,
            random=self.rng,
            attempts_of=lambda topic: 0,
            report=lambda *gone: self.gone.append(gone),
            wall_ms=lambda: 1_700_000_000_000,
        )

    async def crash(self) -> None:
        """The process ends as it is; the store has what it has."""
        await self.delivery.stop()
        for task in self.answers:
            task.cancel()
        await asyncio.gather(*self.answers, return_exceptions=True)
        self.answers.clear()
        self.core = FakeCore()
        self.start()

    async def publish(self, count: int = 1, tag: str = "", body: bytes = b"") -> bytes:
        frames = encode_message(TOPIC, "bob", body, tag=tag) * count
        return (await self.timeline.append(frames)).frames

    def commit(self, frames: bytes) -> None:
        """The core hears of what the store has."""
        for frame in split(frames):
            self.core.commit(frame)

    async def subscribe(
        self,
        user: str = "ann",
        device: str = "phone",
        *,
        window: int = 256,
        tags: str = "*",
        after: int | None = None,
    ) -> Subscription:
        self._last_conn += 1
        conn = number = self._last_conn
        position = await self.delivery.position(
            user, device, TOPIC, after, None, is_durable=window > 0
        )
        cursor = position.cursor
        sub = self.core.follow(conn, number, TOPIC, cursor=cursor, window=window, tags=tags)
        names = (user, device, TOPIC)
        is_acked = window > 0
        self.delivery.open(number, conn, *names, cursor=cursor, is_acked=is_acked, tags=tags)
        return sub

    async def step(self) -> None:
        """One turn of each: the core's thread, the gateway, the event loop."""
        self.core.turn()
        while self.core.events:
            self._dispatch(*self.core.events.popleft())
        await asyncio.sleep(0)

    async def settle(self) -> None:
        """On until nothing happens any more without the clock."""
        for _ in range(10_000):
            await self.step()
            waiting = self.core.orders or self.core.events or self.answers
            if not waiting and not self.delivery.is_busy:
                return
        raise AssertionError("it does not come to rest")

    def _dispatch(self, kind: Any, *values: Any) -> None:
        """What the gateway does with an event."""
        match kind:
            case "want":
                self.delivery.on_want(*values)
            case "cursors":
                self.delivery.on_cursors(*values)
            case "redelivered":
                self.delivery.on_redelivered(*values)
            case "closed":
                self.delivery.close(*values)
            case "ack" | "nack":
                task = asyncio.create_task(self._answer(kind, *values))
                self.answers.add(task)
                task.add_done_callback(self.answers.discard)

    async def _answer(self, kind: str, number: int, seq: int) -> None:
        refusal = None
        try:
            hear = self.delivery.on_ack if kind == "ack" else self.delivery.on_nack
            await hear(number, seq)
        except ImError as error:
            refusal = error
        self.answered.append((kind, number, seq, refusal))
        self.core.paused.discard(number)

    async def tick(self, seconds: float) -> None:
        """Let time pass at once, and the gateway notice."""
        self.now_s += seconds
        self.core.report()
        await self.step()
        self.delivery.tick()

    async def turn(self, seconds: float) -> None:
        """Let time pass, in the gateway's ticks where there are few."""
        end_s = self.now_s + seconds
        step_s = max(0.25, seconds / 40)
        while self.now_s < end_s:
            await self.tick(min(step_s, end_s - self.now_s))
            await self.settle()
