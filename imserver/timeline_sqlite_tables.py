"""What changes in the store, statement by statement, inside a transaction of the writer's.

Everything here runs on the writer thread. An exception out of SQLite means that the store stops,
so nothing here catches one.
"""

from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Any, Final

import apsw

from imserver._core import Batch, checksum
from imserver.timeline import Cursor, DeadLetter
from imserver.timeline_sqlite_schema import Store, rows, value

#: Topics whose id and head are remembered, at about 300 bytes each.
TOPICS_MAX: Final = 100_000
#: Index rows that one commit forgets; a long retention run lets others in between.
TRIM_PARTS: Final = 4_096
#: Blobs to each side that may share the three pages which a deletion rearranges.
BESIDE: Final = 64

DEAD: Final = """
SELECT user, device, name, seq, reason, attempts, time_ms, frame, dead.id, taken
FROM dead JOIN topic ON topic.id = dead.topic"""


class Topic:
    """A row of `topic`, the last seq given, and how many members it has once they were counted:
    in a topic of 100,000 that takes milliseconds."""

    __slots__ = ("first", "head", "id", "members")

    def __init__(self, id: int, first: int, head: int) -> None:
        self.id, self.first, self.head = id, first, head
        self.members = -1


def find_topic(connection: apsw.Connection, name: bytes) -> Topic | None:
    """The head is what the index says, or what trimming left behind."""
    found = rows(
        connection,
        "SELECT id, first, max(head, coalesce((SELECT first_seq + count - 1 FROM part"
        " WHERE topic = topic.id ORDER BY first_seq DESC LIMIT 1), 0))"
        " FROM topic WHERE name = ?",
        (name,),
    )
    return next((Topic(*row) for row in found), None)


def letter(row: tuple[Any, ...]) -> DeadLetter:
    """A row of DEAD."""
    user, device, topic, *rest = row
    found = DeadLetter(user, device, topic.decode(errors="replace"), *rest)
    return found._replace(is_taken=bool(found.is_taken))


class Tables:
    """The tables, for the one thread that changes them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._connection = store.connection
        self._probe = store.reader()
        self._topics: dict[bytes, Topic] = {}
        last = value(self._connection, "SELECT max(blob) FROM live") or 0
        with suppress(apsw.Error):  # a page that cannot be read is not written, either
            # A bit that flipped in an id can make it a later one.
            last = max(last, value(self._probe, "SELECT max(id) FROM blob") or 0)
        self._next_blob = last + 1

    def close(self) -> None:
        self._probe.close()

    @property
    def connection(self) -> apsw.Connection:
        """For the tables that are changed elsewhere: timeline_sqlite_members."""
        return self._connection

    def find(self, name: bytes) -> Topic | None:
        return self._topics.get(name) or find_topic(self._connection, name)

    def topic(self, name: bytes) -> Topic:
        """A topic, made if there is none."""
        topic = self.find(name)
        if topic is None:
            self._connection.execute("INSERT INTO topic (name) VALUES (?)", (name,))
            topic = Topic(self._connection.last_insert_rowid(), 1, 0)
        if name not in self._topics:
            if len(self._topics) >= TOPICS_MAX:
                del self._topics[next(iter(self._topics))]
            self._topics[name] = topic
        return topic

    def note_time(self, store_ms: int) -> None:
        self._connection.execute("UPDATE meta SET value = ? WHERE name = 'time_ms'", (store_ms,))

    def append(self, batch: Batch, time_ms: int, store_ms: int) -> None:
        """The frames of a batch: T1. They have the time of day, the blob that of the store."""
        topics = [self.topic(name) for name in batch.topics()]
        batch.seal([topic.head for topic in topics], time_ms, store_ms)
        first_blob = self._next_blob
        self._connection.executemany(
            "INSERT INTO blob (id, time_ms, checksum, devices, frames) VALUES (?, ?, ?, ?, ?)",
            (
                (first_blob + number, store_ms, sum, devices, frames)
                for number, (frames, devices, sum) in enumerate(batch.blobs())
            ),
        )
        parts: Counter[int] = Counter()
        index = []
        for number, first_seq, count, blob, offset, length, sum in batch.parts():
            topic = topics[number]
            topic.head = first_seq + count - 1
            index.append((topic.id, first_seq, count, first_blob + blob, offset, length, sum))
            parts[first_blob + blob] += 1
        self._connection.executemany("INSERT INTO part VALUES (?, ?, ?, ?, ?, ?, ?)", index)
        self._connection.executemany("INSERT INTO live VALUES (?, ?)", parts.items())
        self._next_blob += len(parts)

    def trim(self, name: bytes, before: int) -> tuple[int, bool]:
        """Messages forgotten, and whether that is all; the rest is for the next commit."""
        topic = self.find(name)
        if topic is None:
            return 0, True
        before = min(before, topic.head + 1)
        whole = list(
            rows(
                self._connection,
                "SELECT first_seq, count, blob FROM part WHERE topic = ? AND first_seq < ?"
                " AND first_seq + count <= ? ORDER BY first_seq LIMIT ?",
                (topic.id, before, before, TRIM_PARTS),
            )
        )
        is_done = len(whole) < TRIM_PARTS
        if not is_done:
            before = whole[-1][0] + whole[-1][1]
        if before <= topic.first:
            return 0, True
        self._connection.execute(
            "DELETE FROM part WHERE topic = ? AND first_seq < ? AND first_seq + count <= ?",
            (topic.id, before, before),
        )
        for blob, parts in Counter(blob for *_, blob in whole).items():
            self._release(blob, parts)
        forgotten = before - topic.first
        topic.first = before
        self._connection.execute(
            "UPDATE topic SET first = ?, head = ? WHERE id = ?", (before, topic.head, topic.id)
        )
        return forgotten, is_done

    def _release(self, blob: int, parts: int) -> None:
        """One that is damaged stays: nobody knows what it had. So do those beside it, since
        deleting them would rearrange its pages, and fail."""
        self._connection.execute("UPDATE live SET parts = parts - ? WHERE blob = ?", (parts, blob))
        left = value(self._connection, "SELECT parts FROM live WHERE blob = ?", (blob,))
        if left == 0 and self._is_sound(blob):
            self._connection.execute("DELETE FROM blob WHERE id = ?", (blob,))
            self._connection.execute("DELETE FROM live WHERE blob = ?", (blob,))

    def _is_sound(self, blob: int) -> bool:
        """Asked over another connection: a read that fails ends the transaction it is in."""
        row = "SELECT checksum, frames FROM blob WHERE id = ?"
        beside = "SELECT sum(time_ms) FROM blob WHERE id BETWEEN ? AND ?"
        try:
            ((sum, frames),) = rows(self._probe, row, (blob,))
            why = "" if checksum(frames) == sum else "wrong checksum"
            value(self._probe, beside, (blob - BESIDE, blob + BESIDE))
        except (apsw.Error, TypeError, ValueError) as error:
            why = str(error)
        if why:
            self._store.report(f"blob {blob} is kept for damage to it or beside it ({why})")
        return not why

    def retain(self, name: bytes, oldest_ms: int, max_count: int) -> tuple[int, bool]:
        """Like trim(), to the first commit that is young enough, or to a number of messages."""
        topic = self.find(name)
        if topic is None:
            return 0, True
        before = topic.head - max_count + 1 if max_count else 0
        commits = rows(
            self._connection,
            "SELECT time_ms, first_seq + count FROM part JOIN blob ON blob.id = part.blob"
            " WHERE topic = ? ORDER BY first_seq LIMIT ?",
            (topic.id, TRIM_PARTS),
        )
        for time_ms, end in commits if oldest_ms else ():
            if time_ms >= oldest_ms:
                break
            before = max(before, end)
        return self.trim(name, before)

    def put_cursors(self, cursors: Collection[Cursor], back: bool, now_ms: int) -> None:
        keep = "excluded.seq" if back else "max(seq, excluded.seq)"
        self._connection.executemany(
            "INSERT INTO cursor VALUES (?, ?, ?, ?, ?) ON CONFLICT (user, device, topic)"
            f" DO UPDATE SET seq = {keep}, time_ms = excluded.time_ms",
            [(c.user, c.device, self.topic(c.topic.encode()).id, c.seq, now_ms) for c in cursors],
        )

    def expire_cursors(self, oldest_ms: int) -> int:
        self._connection.execute(
            "DELETE FROM cursor WHERE time_ms > 0 AND time_ms < ?", (oldest_ms,)
        )
        count = self._connection.changes()
        self._connection.execute(
            "UPDATE dead SET taken = 0 WHERE taken = 1 AND NOT EXISTS (SELECT 1 FROM cursor"
            " WHERE cursor.user = dead.user AND cursor.device = dead.device"
            " AND cursor.topic = dead.topic)"
        )
        return count

    def put_dead(
        self, letters: Collection[DeadLetter], cursors: Collection[Cursor], now_ms: int
    ) -> list[int]:
        sql = (
            "INSERT INTO dead (user, device, topic, seq, reason, attempts, time_ms, frame, taken,"
            " put_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (user, device, topic, seq) DO UPDATE SET reason = excluded.reason,"
            " attempts = excluded.attempts, frame = excluded.frame, time_ms = excluded.time_ms,"
            " taken = excluded.taken, put_ms = excluded.put_ms RETURNING id"
        )
        ids = []
        for d in letters:
            topic = self.topic(d.topic.encode()).id
            row = (d.user, d.device, topic, *d[3:8], d.is_taken, now_ms)
            ((id,),) = rows(self._connection, sql, row)
            ids.append(int(id))
        self.put_cursors(cursors, False, now_ms)
        return ids

    def take_dead(self, ids: Iterable[int]) -> list[DeadLetter]:
        taken: list[DeadLetter] = []
        for id in sorted(set(ids)):
            self._connection.execute(
                "UPDATE dead SET taken = 1, attempts = 0 WHERE id = ? AND taken = 0", (id,)
            )
            if self._connection.changes():
                taken += map(letter, rows(self._connection, f"{DEAD} WHERE dead.id = ?", (id,)))
        return taken

    def drop_dead(self, ids: Iterable[int]) -> int:
        before = self._connection.total_changes()
        self._connection.executemany("DELETE FROM dead WHERE id = ?", ((id,) for id in set(ids)))
        return self._connection.total_changes() - before

    def expire_dead(self, oldest_ms: int) -> int:
        self._connection.execute(
            "DELETE FROM dead WHERE put_ms BETWEEN 1 AND ? AND taken = 0", (oldest_ms,)
        )
        return self._connection.changes()
