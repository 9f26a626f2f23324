"""The store on a disk: the port of `timeline` over SQLite.

Changes go through the one writer, reads through a few readers; this is where they meet. DESIGN:
a commit is a row (timeline_sqlite_schema). Opening takes the directory's lock and keeps it.
"""

import asyncio
import time
from asyncio import Future
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Self

import apsw

from imserver._core import Core
from imserver.measures import Histogram
from imserver.timeline import (
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
)
from imserver.timeline_sqlite_members import (
    find_marks,
    find_members,
    find_memberships,
    join,
    leave,
    mark_read,
)
from imserver.timeline_sqlite_reader import Reader
from imserver.timeline_sqlite_schema import Store, rows, unusable, value
from imserver.timeline_sqlite_tables import DEAD, find_topic, letter
from imserver.timeline_sqlite_writer import Change, Writer


class SqliteTimeline:
    """The store of one server, in one directory. Made by `open`."""

    def __init__(self, store: Store, writer: Writer, clock: Clock) -> None:
        self.epoch = store.epoch
        self._store = store
        self._writer = writer
        self._clock = clock
        self._reader = Reader(store)
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        directory: Path,
        *,
        must_exist: bool = False,
        wall_s: Callable[[], float] = time.time,
        steady_s: Callable[[], float] = time.monotonic,
    ) -> Self:
        """Open the store in a directory, and make it unless it `must_exist`. StoreError when it
        is in use, damaged, of a newer version or not to be written."""
        loop = asyncio.get_running_loop()
        store = await asyncio.to_thread(Store, directory, must_exist=must_exist)
        clock = Clock(store.time_ms, wall_s=wall_s, steady_s=steady_s)
        try:
            writer = await asyncio.to_thread(Writer, store, clock, loop)
        except BaseException as error:
            store.close()
            if isinstance(error, apsw.Error):
                raise unusable(directory, error) from error
            raise
        return cls(store, writer, clock)

    @property
    def failure(self) -> str:
        return self._writer.failure

    @property
    def commits(self) -> Histogram:
        """How long each took, from BEGIN to flushed."""
        return self._writer.commits

    @property
    def damage(self) -> list[str]:
        """What could not be read since the store was opened."""
        return list(self._store.damage)

    def attach(self, core: Core) -> None:
        """Keep from now on what the clients of this core publish. Once; `close` before the core
        stops."""
        self._writer.attach(core)

    def append(self, frames: bytes, device: str = "") -> "Future[Appended]":
        return self._writer.put(frames, device.encode())

    async def room(self) -> None:
        await self._writer.room()

    async def extent(self, topic: str) -> Extent:
        return await self._reader.extent(topic)

    async def topics(self, after: str = "", limit: int = 100) -> list[Extent]:
        return await self._reader.topics(after, limit)

    async def read(
        self, topic: str, after: int = 0, limit: int = PAGE_FRAMES, max_bytes: int = PAGE_BYTES
    ) -> Page:
        return await self._reader.read(topic, after, limit, max_bytes)

    async def read_back(
        self, topic: str, before: int, limit: int = PAGE_FRAMES, max_bytes: int = PAGE_BYTES
    ) -> Page:
        return await self._reader.read_back(topic, before, limit, max_bytes)

    async def trim(self, topic: str, before: int) -> int:
        return await self._forget(lambda tables: tables.trim(topic.encode(), before))

    async def retain(self, topic: str, *, max_age_ms: int = 0, max_count: int = 0) -> int:
        oldest_ms = max(1, self._clock.store_ms() - max_age_ms) if max_age_ms else 0
        return await self._forget(
            lambda tables: tables.retain(topic.encode(), oldest_ms, max_count)
        )

    async def _forget(self, change: Change) -> int:
        forgotten, is_done = 0, False
        while not is_done:
            count, is_done = await self._change(change)
            forgotten += count
        return forgotten

    async def join(
        self, topic: str, users: Collection[str], *, since_seq: int | None = None
    ) -> list[str]:
        joined: list[str] = await self._change(
            lambda tables: join(tables, topic.encode(), users, since_seq)
        )
        return joined

    async def leave(self, topic: str, users: Collection[str]) -> list[str]:
        left: list[str] = await self._change(lambda tables: leave(tables, topic.encode(), users))
        return left

    async def members(self, topic: str, after: str = "", limit: int = 1_000) -> list[Member]:
        return await self._reader.run(
            lambda connection: find_members(connection, topic.encode(), after, limit)
        )

    async def memberships(self, user: str) -> list[str]:
        return await self._reader.run(lambda connection: find_memberships(connection, user))

    async def mark_read(self, user: str, topic: str, seq: int) -> int:
        return int(await self._change(lambda tables: mark_read(tables, user, topic.encode(), seq)))

    async def marks(self, user: str, topics: Collection[str]) -> dict[str, Mark]:
        return await self._reader.run(lambda connection: find_marks(connection, user, topics))

    async def cursor(self, user: str, device: str, topic: str) -> int | None:
        def get(connection: apsw.Connection) -> int | None:
            found = find_topic(connection, topic.encode())
            seq: int | None = value(
                connection,
                "SELECT seq FROM cursor WHERE user = ? AND device = ? AND topic = ?",
                (user, device, found.id if found else 0),
            )
            return seq

        return await self._reader.run(get)

    async def cursors(self, user: str) -> list[Cursor]:
        sql = (
            "SELECT user, device, name, seq FROM cursor JOIN topic ON topic.id = cursor.topic"
            " WHERE user = ? ORDER BY device, name"
        )
        found = await self._reader.run(lambda connection: list(rows(connection, sql, (user,))))
        return [Cursor(row[0], row[1], row[2].decode(errors="replace"), row[3]) for row in found]

    async def cursors_of(
        self, topic: str, after: tuple[str, str] = ("", ""), limit: int = 1_000
    ) -> list[Cursor]:
        sql = (
            "SELECT user, device, seq FROM cursor JOIN topic ON topic.id = cursor.topic"
            " WHERE name = ? AND (user, device) > (?, ?) ORDER BY user, device LIMIT ?"
        )
        values = (topic.encode(), *after, limit)
        found = await self._reader.run(lambda connection: list(rows(connection, sql, values)))
        return [Cursor(user, device, topic, seq) for user, device, seq in found]

    async def put_cursors(self, cursors: Collection[Cursor], *, back: bool = False) -> None:
        now_ms = self._clock.store_ms()
        await self._change(lambda tables: tables.put_cursors(cursors, back, now_ms))

    async def expire_cursors(self, max_age_ms: int) -> int:
        oldest_ms = self._clock.store_ms() - max_age_ms
        return int(await self._change(lambda tables: tables.expire_cursors(oldest_ms)))

    async def put_dead(
        self, letters: Collection[DeadLetter], cursors: Collection[Cursor] = ()
    ) -> list[int]:
        now_ms = self._clock.store_ms()
        ids: list[int] = await self._change(
            lambda tables: tables.put_dead(letters, cursors, now_ms)
        )
        return ids

    async def dead(
        self, *, topic: str = "", user: str = "", after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        sql = (
            f"{DEAD} WHERE dead.id > ? AND (? = x'' OR name = ?) AND (? = '' OR user = ?)"
            " ORDER BY dead.id LIMIT ?"
        )
        values = (after, topic.encode(), topic.encode(), user, user, limit)
        return await self._reader.run(
            lambda connection: [letter(row) for row in rows(connection, sql, values)]
        )

    async def dead_of(
        self, topic: str, seq: int, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        sql = f"{DEAD} WHERE name = ? AND seq = ? AND dead.id > ? ORDER BY dead.id LIMIT ?"
        values = (topic.encode(), seq, after, limit)
        return await self._reader.run(
            lambda connection: [letter(row) for row in rows(connection, sql, values)]
        )

    async def take_dead(self, ids: Iterable[int]) -> list[DeadLetter]:
        taken: list[DeadLetter] = await self._change(lambda tables: tables.take_dead(ids))
        return taken

    async def aside(
        self, user: str, device: str, topic: str, after: int = 0, limit: int = 100
    ) -> list[DeadLetter]:
        sql = (
            f"{DEAD} WHERE user = ? AND device = ? AND name = ? AND taken = 1 AND dead.id > ?"
            " ORDER BY dead.id LIMIT ?"
        )
        values = (user, device, topic.encode(), after, limit)
        return await self._reader.run(
            lambda connection: [letter(row) for row in rows(connection, sql, values)]
        )

    async def drop_dead(self, ids: Iterable[int]) -> int:
        return int(await self._change(lambda tables: tables.drop_dead(ids)))

    async def expire_dead(self, max_age_ms: int) -> int:
        oldest_ms = self._clock.store_ms() - max_age_ms
        return int(await self._change(lambda tables: tables.expire_dead(oldest_ms)))

    async def dead_counts(self, *, taken: bool = False) -> dict[str, int]:
        sql = "SELECT reason, count(*) FROM dead WHERE taken <= ? GROUP BY reason"
        return await self._reader.run(lambda connection: dict(rows(connection, sql, (taken,))))

    async def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            await self._reader.close()
            await self._writer.close()
            self._store.close()

    async def _change(self, change: Change) -> Any:
        return await self._writer.put(change=change)
