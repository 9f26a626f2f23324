"""Who is online: sessions by connection and by user, and what they are subscribed to.

Logins and subscriptions change it, a few in the life of a connection; everything else asks.
Memory is the workload: thousands of sessions that do nothing. So there is no set, dict or task
a session, and where nearly always one thing stands (the device of a user, the topic of a
session) it stands there by itself until a second one comes.

    N1  a session is found by its connection from open() until close(), whatever else happens.
    N2  a user's devices have different names; the latest login of a device is the one listed.
    N3  `members` and the topics of a session say the same.

Not here: what the core was told about a subscription (gateway), who may have it (routing).
"""

from collections.abc import Collection, Iterator
from typing import Protocol, TypeVar

from imserver.model_session import NEVER, Session


class Sessions(Protocol):
    """The sessions of this process. `MemorySessions` is the adapter for a single node."""

    def open(self, session: Session) -> Session | None:
        """Add a session; returns the one of the same user and device that it replaces, which
        stays in the table, unlisted, until it is closed."""

    def close(self, conn: int) -> Session | None:
        """Forget a connection and its subscriptions; None when it had no session."""

    def get(self, conn: int) -> Session | None: ...

    def of(self, user: str) -> Collection[Session]:
        """One for each device of the user that is online."""

    def subscribe(self, session: Session, topic: str) -> None:
        """Twice is once."""

    def unsubscribe(self, session: Session, topic: str) -> bool:
        """False when there was no such subscription."""

    def topics(self, session: Session) -> Collection[str]: ...

    def members(self, topic: str) -> Collection[Session]: ...

    def expired(self, now_s: float) -> list[Session]:
        """Those whose `expires_s` has passed."""

    @property
    def users(self) -> int:
        """How many users are online."""

    def __len__(self) -> int:
        """How many sessions there are."""

    def __iter__(self) -> Iterator[Session]: ...


K = TypeVar("K", str, Session)


class MemorySessions:
    """Sessions of one process, in its memory."""

    def __init__(self) -> None:
        self._by_conn: dict[int, Session] = {}
        self._by_user: dict[str, Session | dict[Session, None]] = {}
        self._by_topic: dict[str, Session | dict[Session, None]] = {}
        self._names: dict[str, str] = {}  # of topics that have had two members at a time

    def open(self, session: Session) -> Session | None:
        self._by_conn[session.conn] = session
        listed = self._by_user.get(session.user)
        if listed is None:
            self._by_user[session.user] = session
            return None
        others = _all(listed)
        session.user = next(iter(others)).user
        replaced = next((other for other in others if other.device == session.device), None)
        if replaced is not None:
            listed = _without(listed, replaced)
        self._by_user[session.user] = _with(listed, session)
        return replaced

    def close(self, conn: int) -> Session | None:
        session = self._by_conn.pop(conn, None)
        if session is None:
            return None
        for topic in _all(session.topics_):
            self._leave_topic(topic, session)
        session.topics_ = None
        _leave(self._by_user, session.user, session)
        return session

    def get(self, conn: int) -> Session | None:
        return self._by_conn.get(conn)

    def of(self, user: str) -> Collection[Session]:
        return _all(self._by_user.get(user))

    def subscribe(self, session: Session, topic: str) -> None:
        if self._by_conn.get(session.conn) is not session:
            return
        topic = self._shared(topic)
        self._by_topic[topic] = _with(self._by_topic.get(topic), session)
        session.topics_ = _with(session.topics_, topic)

    def unsubscribe(self, session: Session, topic: str) -> bool:
        if topic not in _all(session.topics_):
            return False
        session.topics_ = _without(session.topics_, topic)
        self._leave_topic(topic, session)
        return True

    def topics(self, session: Session) -> Collection[str]:
        return _all(session.topics_)

    def members(self, topic: str) -> Collection[Session]:
        return _all(self._by_topic.get(topic))

    def expired(self, now_s: float) -> list[Session]:
        return [session for session in self._by_conn.values() if NEVER < session.expires_s <= now_s]

    @property
    def users(self) -> int:
        return len(self._by_user)

    def __len__(self) -> int:
        return len(self._by_conn)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_conn.values()))

    def _shared(self, topic: str) -> str:
        """One text for all who subscribe to a topic; what only one has needs no table.

        Not sys.intern: clients choose these names, and some versions of Python keep what was
        interned forever.
        """
        first = self._by_topic.get(topic)
        if isinstance(first, Session):
            topic = next(name for name in _all(first.topics_) if name == topic)
            self._names[topic] = topic
        return self._names.get(topic, topic)

    def _leave_topic(self, topic: str, session: Session) -> None:
        if not _leave(self._by_topic, topic, session):
            self._names.pop(topic, None)


# Nothing, one thing by itself, or a dict of several.


def _all(few: K | dict[K, None] | None) -> Collection[K]:
    if few is None:
        return ()
    return few.keys() if isinstance(few, dict) else (few,)


def _with(few: K | dict[K, None] | None, item: K) -> K | dict[K, None]:
    if few is None or few == item:
        return item
    if isinstance(few, dict):
        few[item] = None
        return few
    return {few: None, item: None}


def _without(few: K | dict[K, None] | None, item: K) -> K | dict[K, None] | None:
    if isinstance(few, dict):
        few.pop(item, None)
        return few or None
    return None if few == item else few


def _leave(table: dict[str, Session | dict[Session, None]], key: str, session: Session) -> bool:
    """Whether anybody is left."""
    left = _without(table.get(key), session)
    if left is None:
        table.pop(key, None)
        return False
    table[key] = left
    return True
