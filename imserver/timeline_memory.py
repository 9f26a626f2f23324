"""A store that forgets everything at its end: the second adapter of the port, for tests.

It does in the plainest way what `timeline_sqlite` does on a disk, so that what is tested above
the port can be told where it stops and fails, and so that the suite of the port has something to
agree with. Everything takes effect at once, each append one turn of the loop later.
"""

import asyncio
import secrets
from asyncio import Future
from bisect import bisect_right
from collections.abc import Collection, Iterable

from imserver import protocol
from imserver.errors import ImError
from imserver.protocol import DURABLE, RETRY
from imserver.timeline import (
    DEDUPE_MS,
    MEMBERS_MAX,
    MEMBERSHIPS_MAX,
    PAGE_BYTES,
    PAGE_FRAMES,
    Appended,
    Clock,
    Cursor,
    DeadLetter,
    Extent,
    Mark,
    Member,
    Page,
    frame_starts,
    full,
    is_full,
    stopped,
    too_many,
)


class _Topic:
    """Frames by seq: `frames[0]` is number `first`."""

    def __init__(self) -> None:
        self.first = 1
        self.frames: list[bytes] = []
        self.times_ms: list[int] = []

    @property
    def head(self) -> int:
        return self.first + len(self.frames) - 1

    def drop_before(self, before: int) -> int:
        count = max(0, min(before, self.head + 1) - self.first)
        del self.frames[:count], self.times_ms[:count]
        self.first += count
        return count


class MemoryTimeline:
    """The store of one process, in its memory."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.epoch = secrets.randbits(62) + 1
        self.failure = ""
        self._clock = clock or Clock()
        self._topics: dict[str, _Topic] = {}
        self._receipts: dict[tuple[str, str, int], tuple[object, int, int, int]] = {}
        self._cursors: dict[tuple[str, str, str], int] = {}
        self._put_ms: dict[tuple[str, str, str], int] = {}
        self._members: dict[str, dict[str, int]] = {}
        self._marks: dict[tuple[str, str], int] = {}
        self._dead: dict[int, DeadLetter] = {}
        self._dead_ms: dict[int, float] = {}
        self._last_dead = 0
        self._waiting_bytes = 0

    def fail(self, why: str) -> None:
        """What a failed write does to a store on a disk."""
        self.failure = why

    # Timelines

    def append(self, frames: bytes, device: str = "") -> "Future[Appended]":
        self._check()
        if is_full(self._waiting_bytes):
            raise full()
        self._waiting_bytes += len(frames)
        loop = asyncio.get_running_loop()
        future: Future[Appended] = loop.create_future()
        loop.call_soon(self._commit, frames, device, future)
        return future

    def _commit(self, frames: bytes, device: str, future: "Future[Appended]") -> None:
        self._waiting_bytes -= len(frames)
        try:
            self._check()
            appended = self._keep(frames, device)
        except ImError as error:
            if not future.cancelled():
                future.set_exception(error)
            return
        if not future.cancelled():
            future.set_result(appended)

    def _keep(self, frames: bytes, device: str) -> Appended:
        kept: list[bytes] = []
        repeated: list[int] = []
        refused: list[int] = []
        messages = []
        for at in frame_starts(frames):
            frame = frames[at : at + 4 + int.from_bytes(frames[at : at + 4])]
            messages.append((frame, protocol.decode_message(frame)))
        for number, (frame, message) in enumerate(messages):
            topic = self._topics.setdefault(message.topic, _Topic())
            key = (message.sender, device, message.id)
            content = (message.topic, message.tag, message.body, message.codec)
            now_ms = self._clock.store_ms()
            seq, time_ms = topic.head + 1, self._clock.wall_ms()
            known = self._receipts.get(key) if message.flags & RETRY and message.id else None
            if known and now_ms - known[3] <= DEDUPE_MS:
                same = known[0] == content
                (repeated if same else refused).append(number)
                seq, time_ms = known[1:3] if same else (0, 0)
            flags = (frame[5] & ~RETRY) | DURABLE
            place = seq.to_bytes(8) + time_ms.to_bytes(8)
            frame = frame[:5] + bytes([flags]) + frame[6:8] + place + frame[24:]
            kept.append(frame)
            if number not in repeated and number not in refused:
                topic.frames.append(frame)
                topic.times_ms.append(now_ms)
                self._receipts[key] = (content, seq, time_ms, now_ms)
        return Appended(b"".join(kept), len(kept), tuple(repeated), tuple(refused))

    async def room(self) -> None:
        while True:
            self._check()
            if not is_full(self._waiting_bytes):
                return
            await asyncio.sleep(0)

    async def extent(self, topic: str) -> Extent:
        kept = self._topics.get(topic) or _Topic()
        return Extent(topic, kept.first, kept.head)

    async def topics(self, after: str = "", limit: int = 100) -> list[Extent]:
        names = sorted(self._topics, key=str.encode)
        start = bisect_right(names, after.encode(), key=str.encode)
        return [await self.extent(name) for name in names[start : start + limit]]

    async def read(
        self, topic: str, after: int = 0, limit: int = PAGE_FRAMES, max_bytes: int = PAGE_BYTES
    ) -> Page:
        kept = self._topics.get(topic) or _Topic()
        first = min(max(after + 1, kept.first), max(after, kept.head) + 1)
        page: list[bytes] = []
        for frame in kept.frames[max(0, first - kept.first) :]:
            if len(page) == limit or (page and sum(map(len, page)) + len(frame) > max_bytes):
                break
            page.append(frame)
        return Page(first, first + len(page) - 1, b"".join(page), len(page))

    async def read_back(
        self, topic: str, before: int, limit: int = PAGE_FRAMES, max_bytes: int = PAGE_BYTES
    ) -> Page:
        kept = self._topics.get(topic) or _Topic()
        last = max(0, min(before - 1, kept.head))
        page: list[bytes] = []
        for frame in reversed(kept.frames[: max(0, last + 1 - kept.first)]):
            if len(page) == limit or (page and sum(map(len, page)) + len(frame) > max_bytes):
                break
            page.append(frame)
        return Page(last + 1 - len(page), last, b"".join(reversed(page)), len(page))

    async def trim(self, topic: str, before: int) -> int:
        self._check()
        kept = self._topics.get(topic)
        return kept.drop_before(before) if kept else 0

    async def retain(self, topic: str, *, max_age_ms: int = 0, max_count: int = 0) -> int:
        self._check()
        kept = self._topics.get(topic)
        if kept is None:
            return 0
        before = kept.head - max_count + 1 if max_count else 0
        if max_age_ms:
            oldest_ms = self._clock.store_ms() - max_age_ms
            young = (n for n, time_ms in enumerate(kept.times_ms) if time_ms >= oldest_ms)
            before = max(before, kept.first + next(young, len(kept.frames)))
        return kept.drop_before(before)

    # Members and read marks

    async def join(
        self, topic: str, users: Collection[str], *, since_seq: int | None = None
    ) -> list[str]:
        self._check()
        members = self._members.get(topic, {})
        new = sorted(set(users) - set(members))
        if len(members) + len(new) > MEMBERS_MAX:
            raise too_many(())
        busy = [user for user in new if len(await self.memberships(user)) >= MEMBERSHIPS_MAX]
        if busy:
            raise too_many(busy)
        since = (await self.extent(topic)).head if since_seq is None else since_seq
        self._members[topic] = members | dict.fromkeys(new, since)
        return new

    async def leave(self, topic: str, users: Collection[str]) -> list[str]:
        self._check()
        members = self._members.get(topic, {})
        return sorted(user for user in set(users) if members.pop(user, None) is not None)

    async def members(self, topic: str, after: str = "", limit: int = 1_000) -> list[Member]:
        members = sorted(self._members.get(topic, {}).items())
        return [Member(*member) for member in members if member[0] > after][:limit]

    async def memberships(self, user: str) -> list[str]:
        found = (topic for topic, members in self._members.items() if user in members)
        return sorted(found, key=str.encode)

    async def mark_read(self, user: str, topic: str, seq: int) -> int:
        self._check()
        stands = self._marks.get((user, topic), 0)
        stands = max(stands, min(seq, (await self.extent(topic)).head))
        self._marks[user, topic] = stands
        return stands

    async def marks(self, user: str, topics: Collection[str]) -> dict[str, Mark]:
        def mark(extent: Extent) -> Mark:
            since = self._members.get(extent.topic, {}).get(user, 0)
            return Mark(self._marks.get((user, extent.topic), 0), since, *extent[1:])

        return {topic: mark(await self.extent(topic)) for topic in topics}

    # Cursors

    async def cursor(self, user: str, device: str, topic: str) -> int | None:
        return self._cursors.get((user, device, topic))

    async def cursors(self, user: str) -> list[Cursor]:
        return sorted(Cursor(*key, seq) for key, seq in self._cursors.items() if key[0] == user)

    async def cursors_of(
        self, topic: str, after: tuple[str, str] = ("", ""), limit: int = 1_000
    ) -> list[Cursor]:
        found = sorted(Cursor(*key, seq) for key, seq in self._cursors.items() if key[2] == topic)
        return [cursor for cursor in found if cursor[:2] > after][:limit]

    async def put_cursors(self, cursors: Collection[Cursor], *, back: bool = False) -> None:
        self._check()
        for *names, seq in cursors:
            key = (str(names[0]), str(names[1]), str(names[2]))
            self._cursors[key] = seq if back else max(seq, self._cursors.get(key, 0))
            self._put_ms[key] = self._clock.store_ms()

    async def expire_cursors(self, max_age_ms: int) -> int:
        self._check()
        oldest_ms = self._clock.store_ms() - max_age_ms
        old = [key for key in self._cursors if self._put_ms[key] < oldest_ms]
        for key in old:
            del self._cursors[key], self._put_ms[key]
        for id, letter in self._dead.items():
            if letter.is_taken and letter[:3] not in self._cursors:
                self._dead[id] = letter._replace(is_taken=False)
        return len(old)

    # Dead letters

    async def put_dead(
        self, letters: Collection[DeadLetter], cursors: Collection[Cursor] = ()
    ) -> list[int]:
        self._check()
        ids = []
        for letter in letters:
            same = [n for n, other in self._dead.items() if other[:4] == letter[:4]]
            self._last_dead += not same
            id = same[0] if same else self._last_dead
            self._dead[id] = letter._replace(id=id)
            self._dead_ms[id] = self._clock.store_ms()
            ids.append(id)
        await self.put_cursors(cursors)
        return ids

    async def dead(
        self, *, topic: str = "", user: str = "", after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        found = [
            letter
            for id, letter in sorted(self._dead.items())
            if id > after and topic in ("", letter.topic) and user in ("", letter.user)
        ]
        return found[:limit]

    async def dead_of(
        self, topic: str, seq: int, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        found = await self.dead(topic=topic, after=after, limit=len(self._dead))
        return [letter for letter in found if letter.seq == seq][:limit]

    async def take_dead(self, ids: Iterable[int]) -> list[DeadLetter]:
        self._check()
        taken = []
        for id in sorted(set(ids)):
            letter = self._dead.get(id)
            if letter and not letter.is_taken:
                self._dead[id] = letter._replace(is_taken=True, attempts=0)
                taken.append(self._dead[id])
        return taken

    async def aside(
        self, user: str, device: str, topic: str, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        found = [
            letter
            for id, letter in sorted(self._dead.items())
            if letter[:3] == (user, device, topic) and letter.is_taken and id > after
        ]
        return found[:limit]

    async def drop_dead(self, ids: Iterable[int]) -> int:
        self._check()
        return sum(self._dead.pop(id, None) is not None for id in set(ids))

    async def expire_dead(self, max_age_ms: int) -> int:
        oldest_ms = self._clock.store_ms() - max_age_ms
        letters = self._dead.values()
        old = [one.id for one in letters if not one.is_taken and self._dead_ms[one.id] < oldest_ms]
        return await self.drop_dead(old)

    async def dead_counts(self, *, taken: bool = False) -> dict[str, int]:
        counts: dict[str, int] = {}
        for letter in self._dead.values():
            if letter.is_taken and not taken:
                continue
            counts[letter.reason] = counts.get(letter.reason, 0) + 1
        return counts

    async def close(self) -> None:
        self.failure = self.failure or "it was closed"

    def _check(self) -> None:
        if self.failure:
            raise stopped(self.failure)
