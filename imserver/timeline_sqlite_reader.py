"""Reading timelines, and telling what cannot be read.

A part of a blob is believed when its checksum is right and when its frames are what the index
says: this topic, these numbers. Anything else is a gap with a reason, and so is a number that no
part has. One damaged part hides its own messages and nothing else.

    E1  a page is complete between its first and its last but for the gaps it names.
    E2  head, first and parts of one page are of one moment.

Reads run on a few threads with a connection each, so that a slow page does not hold up others.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

import apsw

from imserver._core import checksum, count_frames
from imserver.errors import ErrorCode, ImError
from imserver.timeline import Extent, Gap, Page, cut, cut_back, frame_starts
from imserver.timeline_sqlite_schema import Store, rows, value
from imserver.timeline_sqlite_tables import find_topic

#: As many reads at a time as a disk does well.
READERS: Final = 2

T = TypeVar("T")


class Part(NamedTuple):
    """Where a topic's next messages are."""

    first_seq: int
    messages: int
    blob: int
    offset: int
    len: int
    checksum: int

    @property
    def last_seq(self) -> int:
        return self.first_seq + self.messages - 1


class Reader:
    """A few threads that read."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._local = threading.local()
        self._connections: list[apsw.Connection] = []
        self._pool = ThreadPoolExecutor(READERS, "imserver-read")

    async def run(self, work: Callable[[apsw.Connection], T]) -> T:
        """Do something with a connection, inside one read transaction. ImError 500 when the
        store is damaged where this has to read."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._do, work)

    def _do(self, work: Callable[[apsw.Connection], T]) -> T:
        connection: apsw.Connection | None = getattr(self._local, "connection", None)
        try:
            if connection is None:
                connection = self._local.connection = self._store.reader()
                self._connections.append(connection)
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                # Not COMMIT, which would repeat the error of a blob that was found damaged.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except (apsw.IOError, apsw.CorruptError) as error:
            self._store.report(f"an index cannot be read: {error}")
            raise ImError(ErrorCode.INTERNAL, f"the store is damaged: {error}") from error

    async def close(self) -> None:
        await asyncio.to_thread(self._pool.shutdown)
        for connection in self._connections:
            connection.close(True)

    async def extent(self, topic: str) -> Extent:
        return await self.run(lambda connection: _extent(connection, topic))

    async def topics(self, after: str, limit: int) -> list[Extent]:
        def list_them(connection: apsw.Connection) -> list[Extent]:
            sql = "SELECT name FROM topic WHERE name > ? ORDER BY name LIMIT ?"
            names = [name for (name,) in rows(connection, sql, (after.encode(), limit))]
            return [_extent(connection, name.decode(errors="replace")) for name in names]

        return await self.run(list_them)

    async def read(self, topic: str, after: int, limit: int, max_bytes: int) -> Page:
        def page(connection: apsw.Connection) -> Page:
            name = topic.encode()
            found = find_topic(connection, name)
            first, head = (found.first, found.head) if found else (1, 0)
            first = min(max(after + 1, first), max(after, head) + 1)
            builder = _Forward(first, limit, max_bytes)
            if found and first <= head:
                for part in _parts_from(connection, found.id, first):
                    if not builder.add(part, self._frames(connection, name, part)):
                        return builder.page()
                builder.end(head)
            return builder.page()

        return await self.run(page)

    async def read_back(self, topic: str, before: int, limit: int, max_bytes: int) -> Page:
        def page(connection: apsw.Connection) -> Page:
            name = topic.encode()
            found = find_topic(connection, name)
            first, head = (found.first, found.head) if found else (1, 0)
            builder = _Backward(first, max(0, min(before - 1, head)), limit, max_bytes)
            if found and first <= builder.last:
                for part in _parts_before(connection, found.id, builder.last):
                    if not builder.add(part, self._frames(connection, name, part)):
                        return builder.page()
                builder.end()
            return builder.page()

        return await self.run(page)

    def _frames(self, connection: apsw.Connection, topic: bytes, part: Part) -> bytes | None:
        """The frames of a part; None when they are not to be believed."""
        why = "wrong checksum"
        try:
            frames = self._read(connection, part)
            if checksum(frames) == part.checksum:
                if count_frames(frames, topic, part.first_seq) == part.messages:
                    return frames
                why = "not what the index says"
        except (apsw.Error, ValueError) as error:
            why = str(error)
        self._store.report(f"blob {part.blob} is damaged at byte {part.offset}: {why}")
        return None

    def _read(self, connection: apsw.Connection, part: Part) -> bytes:
        """Once more without the checksums of pages where one is wrong: the part has its own, and
        its neighbours on the page need not suffer."""
        try:
            return read_part(connection, part)
        except apsw.IOError:
            trusting = self._store.reader(trusting=True)
            try:
                return read_part(trusting, part)
            finally:
                trusting.close()


def read_part(connection: apsw.Connection, part: Part) -> bytes:
    """The bytes of a part, unjudged. apsw.Error or ValueError when there are none."""
    blob = connection.blob_open("main", "blob", "frames", part.blob, False)
    try:
        blob.seek(part.offset)
        return blob.read(part.len)
    finally:
        blob.close()


class _Forward:
    """A page that grows at its end."""

    def __init__(self, first: int, limit: int, max_bytes: int) -> None:
        self.first, self.next = first, first
        self._limit, self._max_bytes = limit, max_bytes
        self._frames: list[bytes] = []
        self._gaps: list[Gap] = []
        self._count = 0

    def add(self, part: Part, frames: bytes | None) -> bool:
        """False when the page is full."""
        if part.last_seq < self.next:
            return True
        if part.first_seq > self.next:
            self.end(part.first_seq - 1)
        if frames is None:
            self._gaps.append(Gap(self.next, part.last_seq, "damaged"))
            self.next = part.last_seq + 1
            return len(self._gaps) < self._limit
        if part.first_seq < self.next:
            frames = frames[cut(frames, self.next - part.first_seq, len(frames))[1] :]
        if self._count and _size(frames) > self._max_bytes:
            return False
        count, size = cut(frames, self._limit - self._count, self._max_bytes)
        self._frames.append(frames[:size])
        self._count += count
        self._max_bytes -= size
        self.next += count
        return size == len(frames) and self._count < self._limit

    def end(self, last: int) -> None:
        if self.next <= last:
            self._gaps.append(Gap(self.next, last, "missing"))
            self.next = last + 1

    def page(self) -> Page:
        frames = b"".join(self._frames)
        return Page(self.first, self.next - 1, frames, self._count, tuple(self._gaps))


class _Backward:
    """A page that grows at its start."""

    def __init__(self, least: int, last: int, limit: int, max_bytes: int) -> None:
        self.last, self.next = last, last
        self._least = least
        self._limit, self._max_bytes = limit, max_bytes
        self._frames: list[bytes] = []
        self._gaps: list[Gap] = []
        self._count = 0

    def add(self, part: Part, frames: bytes | None) -> bool:
        """False when the page is full."""
        if part.last_seq < self.next:
            self._gaps.append(Gap(max(self._least, part.last_seq + 1), self.next, "missing"))
            self.next = max(self._least - 1, part.last_seq)
        first = max(self._least, part.first_seq)
        if first > self.next:
            return first > self._least
        if frames is None:
            self._gaps.append(Gap(first, self.next, "damaged"))
            self.next = first - 1
            return first > self._least and len(self._gaps) < self._limit
        starts = [*frame_starts(frames), len(frames)]
        frames = frames[starts[first - part.first_seq] : starts[self.next + 1 - part.first_seq]]
        count, start = cut_back(frames, self._limit - self._count, self._max_bytes)
        if self._count and len(frames) - start > self._max_bytes:
            return False
        self._frames.append(frames[start:])
        self._count += count
        self._max_bytes -= len(frames) - start
        self.next -= count
        return start == 0 and self._count < self._limit and self.next >= self._least

    def end(self) -> None:
        if self.next >= self._least:
            self._gaps.append(Gap(self._least, self.next, "missing"))
            self.next = self._least - 1

    def page(self) -> Page:
        frames = b"".join(reversed(self._frames))
        return Page(self.next + 1, self.last, frames, self._count, tuple(reversed(self._gaps)))


def _size(frames: bytes) -> int:
    """Of the first of them."""
    return 4 + int.from_bytes(frames[:4])


def _extent(connection: apsw.Connection, topic: str) -> Extent:
    found = find_topic(connection, topic.encode())
    return Extent(topic, found.first, found.head) if found else Extent(topic, 1, 0)


_PARTS = "SELECT first_seq, count, blob, offset, len, checksum FROM part WHERE topic = ?"


def _parts_from(connection: apsw.Connection, topic: int, seq: int) -> Iterator[Part]:
    """Parts in their order, the one that should hold `seq` first."""
    start = value(
        connection,
        "SELECT max(first_seq) FROM part WHERE topic = ? AND first_seq <= ?",
        (topic, seq),
    )
    sql = f"{_PARTS} AND first_seq >= ? ORDER BY first_seq"
    return (Part(*row) for row in rows(connection, sql, (topic, start or 0)))


def _parts_before(connection: apsw.Connection, topic: int, seq: int) -> Iterator[Part]:
    sql = f"{_PARTS} AND first_seq <= ? ORDER BY first_seq DESC"
    return (Part(*row) for row in rows(connection, sql, (topic, seq)))
