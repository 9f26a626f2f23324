"""Whether a stopped store is whole, and giving back the space that retention has freed.

Every page, every blob, every part against its blob, every number against its neighbours. Checking
repairs nothing and deletes nothing: it says what cannot be read, and everything else still can.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import apsw

from imserver._core import checksum, count_frames
from imserver.timeline import StoreError
from imserver.timeline_sqlite_reader import Part, read_part
from imserver.timeline_sqlite_schema import Store, rows
from imserver.timeline_sqlite_tables import find_topic

#: Lines of one kind; a disk that is gone says the same a million times.
PROBLEMS_MAX = 100


class Report(NamedTuple):
    """What is in the store, and what is wrong with it."""

    topics: int
    messages: int
    blobs: int
    bytes: int
    problems: list[str]


def check(directory: Path) -> Report:
    """StoreError when the store is in use or cannot even be opened."""
    store = Store(directory, must_exist=True, mend=False)
    try:
        trusting = store.reader(trusting=True)
        problems = list(store.damage)
        looks = {
            "pages": _pages(store.connection),
            "blobs": _blobs(trusting),
            "topics": _topics(store.connection, trusting),
            "index": _live(trusting),
        }
        for kind, look in looks.items():
            _collect(kind, look, problems)
        trusting.close()
        topics, messages, blobs = _figures(store.connection)
        return Report(topics, messages, blobs, store.path.stat().st_size, problems)
    finally:
        store.close()


def compact(directory: Path) -> tuple[int, int]:
    """Rewrite the file without its free pages; its bytes before and after. Needs as much free
    space again while it runs. StoreError when that is missing."""
    store = Store(directory, must_exist=True)
    try:
        store.settle()
        before = store.path.stat().st_size
        store.connection.execute("VACUUM")
        store.settle()
        return before, store.path.stat().st_size
    except apsw.Error as error:
        raise StoreError(
            f"the store in {directory} could not be compacted: {error}. It is as it was; it needs"
            " as much free space as it is large, here and in the directory for temporary files"
        ) from error
    finally:
        store.close()


def _collect(kind: str, look: Iterator[str], problems: list[str]) -> None:
    found = 0
    try:
        for problem in look:
            found += 1
            if found > PROBLEMS_MAX:
                problems.append("... and more of this kind")
                return
            problems.append(problem)
    except (apsw.IOError, apsw.CorruptError) as error:
        problems.append(f"looking at the {kind} ended early: {error}")


def _pages(connection: apsw.Connection) -> Iterator[str]:
    for (said,) in rows(connection, "PRAGMA integrity_check"):
        if said != "ok":
            yield f"SQLite: {said}"


def _blobs(connection: apsw.Connection) -> Iterator[str]:
    for (id,) in rows(connection, "SELECT id FROM blob ORDER BY id"):
        try:
            sql = "SELECT checksum, frames FROM blob WHERE id = ?"
            ((sum, frames),) = rows(connection, sql, (id,))
            why = "" if checksum(frames) == sum else "its checksum is wrong"
        except (apsw.IOError, apsw.CorruptError, TypeError, ValueError) as error:
            why = str(error)
        if why:
            yield f"blob {id} is damaged: {why}"


def _topics(connection: apsw.Connection, trusting: apsw.Connection) -> Iterator[str]:
    for (name,) in rows(connection, "SELECT name FROM topic ORDER BY id"):
        yield from _timeline(connection, trusting, name)


def _timeline(connection: apsw.Connection, trusting: apsw.Connection, name: bytes) -> Iterator[str]:
    """Blobs are read as a server reads them, past pages whose checksum is wrong."""
    topic, text = find_topic(connection, name), name.decode(errors="replace")
    if topic is None:
        yield f"topic {text} is not found by its name"
        return
    seq = topic.first
    for row in rows(
        connection,
        "SELECT first_seq, count, blob, offset, len, checksum FROM part WHERE topic = ?"
        " ORDER BY first_seq",
        (topic.id,),
    ):
        part = Part(*row)
        if part.first_seq > seq:
            yield f"topic {text} lacks {seq} to {part.first_seq - 1}"
        elif part.last_seq < seq or (part.first_seq < seq and seq > topic.first):
            yield f"topic {text} has {part.first_seq} twice"
        seq = part.last_seq + 1
        try:
            frames = read_part(trusting, part)
            is_good = (
                checksum(frames) == part.checksum
                and count_frames(frames, name, part.first_seq) == part.messages
            )
        except (apsw.Error, ValueError):
            is_good = False
        if not is_good:
            where = f"blob {part.blob}, byte {part.offset}"
            yield f"topic {text}: {part.first_seq} to {part.last_seq} cannot be read ({where})"
    if seq <= topic.head:
        yield f"topic {text} lacks {seq} to {topic.head}"


def _live(connection: apsw.Connection) -> Iterator[str]:
    """Blobs against the index, in both directions."""
    for id, counted, found in rows(
        connection,
        "SELECT blob.id, live.parts, count(part.blob) FROM blob"
        " LEFT JOIN live ON live.blob = blob.id LEFT JOIN part ON part.blob = blob.id"
        " GROUP BY blob.id HAVING live.parts IS NOT count(part.blob)",
    ):
        yield f"blob {id} has {found} parts in the index instead of {counted}; it is kept"


def _figures(connection: apsw.Connection) -> tuple[int, int, int]:
    sql = (
        "SELECT (SELECT count(*) FROM topic), (SELECT coalesce(sum(count), 0) FROM part),"
        " (SELECT count(*) FROM blob)"
    )
    try:
        topics, messages, blobs = next(rows(connection, sql))
    except (apsw.IOError, apsw.CorruptError):
        return 0, 0, 0
    return topics, messages, blobs
