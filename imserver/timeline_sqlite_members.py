"""Members of topics and read marks: what of them is in the tables, and how it changes.

Changes run on the writer thread, inside its transaction, and hand a refusal back as their result:
an exception there means that the store stops. Reads run on a reader's connection.
"""

from collections.abc import Collection

import apsw

from imserver.errors import ImError
from imserver.timeline import MEMBERS_MAX, MEMBERSHIPS_MAX, Mark, Member, too_many
from imserver.timeline_sqlite_schema import rows, value
from imserver.timeline_sqlite_tables import Tables, find_topic


def join(
    tables: Tables, name: bytes, users: Collection[str], since_seq: int | None
) -> list[str] | ImError:
    topic, connection = tables.topic(name), tables.connection
    if topic.members < 0:
        sql = "SELECT count(*) FROM member WHERE topic = ?"
        topic.members = int(value(connection, sql, (topic.id,)))
    is_one = "SELECT 1 FROM member WHERE topic = ? AND user = ?"
    new = [user for user in sorted(set(users)) if not value(connection, is_one, (topic.id, user))]
    if topic.members + len(new) > MEMBERS_MAX:
        return too_many(())
    has = "SELECT count(*) FROM member WHERE user = ?"
    busy = [user for user in new if value(connection, has, (user,)) >= MEMBERSHIPS_MAX]
    if busy:
        return too_many(busy)
    since = topic.head if since_seq is None else since_seq
    connection.executemany(
        "INSERT INTO member VALUES (?, ?, ?)", [(topic.id, user, since) for user in new]
    )
    topic.members += len(new)
    return new


def leave(tables: Tables, name: bytes, users: Collection[str]) -> list[str]:
    topic = tables.find(name)
    if topic is None:
        return []
    left: list[str] = []
    for user in sorted(set(users)):
        sql = "DELETE FROM member WHERE topic = ? AND user = ?"
        tables.connection.execute(sql, (topic.id, user))
        if tables.connection.changes():
            left.append(user)
    if topic.members >= 0:
        topic.members -= len(left)
    return left


def mark_read(tables: Tables, user: str, name: bytes, seq: int) -> int:
    """Nothing is kept for a topic that has had no message: its name may be anything."""
    topic = tables.find(name)
    if topic is None or not topic.head:
        return 0
    stands: int = value(
        tables.connection,
        "INSERT INTO mark VALUES (?, ?, ?)"
        " ON CONFLICT (user, topic) DO UPDATE SET seq = max(seq, excluded.seq) RETURNING seq",
        (user, topic.id, max(0, min(seq, topic.head))),
    )
    return stands


def find_members(connection: apsw.Connection, name: bytes, after: str, limit: int) -> list[Member]:
    sql = (
        "SELECT user, since_seq FROM member WHERE topic = (SELECT id FROM topic WHERE name = ?)"
        " AND user > ? ORDER BY user LIMIT ?"
    )
    return [Member(*row) for row in rows(connection, sql, (name, after, limit))]


def find_memberships(connection: apsw.Connection, user: str) -> list[str]:
    sql = "SELECT name FROM member JOIN topic ON id = topic WHERE user = ? ORDER BY name"
    return [name.decode(errors="replace") for (name,) in rows(connection, sql, (user,))]


def find_marks(connection: apsw.Connection, user: str, topics: Collection[str]) -> dict[str, Mark]:
    marks: dict[str, Mark] = {}
    for name in topics:
        topic = find_topic(connection, name.encode())
        if topic is None:
            marks[name] = Mark(0, 0, 1, 0)
            continue
        read = "SELECT seq FROM mark WHERE user = ? AND topic = ?"
        since = "SELECT since_seq FROM member WHERE user = ? AND topic = ?"
        seq, joined = (value(connection, sql, (user, topic.id)) or 0 for sql in (read, since))
        marks[name] = Mark(seq, joined, topic.first, topic.head)
    return marks
