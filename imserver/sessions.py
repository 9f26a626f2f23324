"""Who is online: sessions by connection and by user, and what they are subscribed to.

Logins and subscriptions change it, a few in the life of a connection; everything else asks.
Memory is the workload: thousands of sessions that do nothing. So there is no set, dict or task
a session; where nearly always one thing stands (the device of a user, the topic of a session)
it stands there by itself until a second one comes, and several stand in a sorted list or array:
found in log n, and 4 or 8 bytes each where a dict takes 24 to 50. What stands behind a removed
one moves up, which among 20,000 takes 1 us: less than the rest of its end.

    N1  a session is found by its connection from open() until close(), whatever else happens.
    N2  a user's devices have different names; the latest login of a device is the one listed.
    N3  `members` and the topics of a session say the same.

Not here: what the core was told about a subscription (gateway), who may have it (routing).
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, TypeVar

from imserver.model_session import NEVER, Session


class Sessions(Protocol):
    """The sessions of this process. `MemorySessions` is the adapter for a single node.

    What it answers with stays as it is, whoever comes or goes while it is read."""

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
T = TypeVar("T", str, int, Session)


class MemorySessions:
    """Sessions of one process, in its memory. `threads` is how many I/O threads number the
    connections."""

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        # By place. A core fills its slots from the lowest and reuses them, so two lists hold in
        # 16 bytes what a dict of connections and a field more in each session hold in 50.
        self._by_place: list[Session | None] = []
        self._topics: list[str | list[str] | None] = []
        self._count = 0
        self._by_user: dict[str, Session | list[Session]] = {}
        self._by_topic: dict[str, Session | array[int]] = {}  # several: by place
        self._names: dict[str, str] = {}  # of topics that have had two members at a time

    def open(self, session: Session) -> Session | None:
        place = self._place(session.conn)
        missing = place + 1 - len(self._by_place)
        self._by_place += [None] * missing
        self._topics += [None] * missing
        self._by_place[place] = session
        self._count += 1
        listed = self._by_user.get(session.user)
        if listed is None:
            self._by_user[session.user] = session
            return None
        others = _all(listed)
        session.user = others[0].user
        replaced = next((other for other in others if other.device == session.device), None)
        if replaced is not None:
            listed = _without(listed, replaced)
        self._by_user[session.user] = _with(listed, session)
        return replaced

    def close(self, conn: int) -> Session | None:
        session = self.get(conn)
        if session is None:
            return None
        place = self._place(conn)
        for topic in _all(self._topics[place]):
            self._leave_topic(topic, place)
        self._by_place[place] = self._topics[place] = None
        self._count -= 1
        left = _without(self._by_user.get(session.user), session)
        if left is None:
            self._by_user.pop(session.user, None)  # not there when it was replaced
        else:
            self._by_user[session.user] = left
        return session

    def get(self, conn: int) -> Session | None:
        place = self._place(conn)
        if place < len(self._by_place):
            session = self._by_place[place]
            # A slot has had other connections before, and will have.
            if session is not None and session.conn == conn:
                return session
        return None

    def of(self, user: str) -> Collection[Session]:
        return tuple(_all(self._by_user.get(user)))

    def subscribe(self, session: Session, topic: str) -> None:
        if self.get(session.conn) is not session:
            return
        topic = self._shared(topic)
        place = self._place(session.conn)
        self._join_topic(topic, session, place)
        self._topics[place] = _with(self._topics[place], topic)

    def unsubscribe(self, session: Session, topic: str) -> bool:
        if topic not in self.topics(session):
            return False
        place = self._place(session.conn)
        self._topics[place] = _without(self._topics[place], topic)
        self._leave_topic(topic, place)
        return True

    def topics(self, session: Session) -> Collection[str]:
        if self.get(session.conn) is not session:
            return ()
        return tuple(_all(self._topics[self._place(session.conn)]))

    def members(self, topic: str) -> Collection[Session]:
        members = self._by_topic.get(topic)
        if isinstance(members, array):
            return [session for at in members if (session := self._by_place[at]) is not None]
        return () if members is None else (members,)

    def expired(self, now_s: float) -> list[Session]:
        return [session for session in self if NEVER < session.expires_s <= now_s]

    @property
    def users(self) -> int:
        return len(self._by_user)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Session]:
        return iter([session for session in self._by_place if session is not None])

    def _place(self, conn: int) -> int:
        """The thread is in the highest byte of a connection's number, the slot in the lowest
        four; threads are filled evenly."""
        return (conn & 0xFFFF_FFFF) * self._threads + (conn >> 56)

    def _shared(self, topic: str) -> str:
        """One text for all who subscribe to a topic; what only one has needs no table.

        Not sys.intern: clients choose these names, and some versions of Python keep what was
        interned forever.
        """
        first = self._by_topic.get(topic)
        if isinstance(first, Session):
            topic = next(name for name in self.topics(first) if name == topic)
            self._names[topic] = topic
        return self._names.get(topic, topic)

    def _join_topic(self, topic: str, session: Session, place: int) -> None:
        members = self._by_topic.get(topic)
        if members is None:
            self._by_topic[topic] = session
        elif isinstance(members, array):
            if _at(members, place) is None:
                insort(members, place)
        elif members is not session:
            self._by_topic[topic] = array("I", sorted((self._place(members.conn), place)))

    def _leave_topic(self, topic: str, place: int) -> None:
        members = self._by_topic[topic]
        if isinstance(members, array):
            del members[bisect_left(members, place)]
            if members:
                return
        del self._by_topic[topic]
        self._names.pop(topic, None)


# Nothing, one thing by itself, or a sorted list of several.


def _all(few: K | list[K] | None) -> Sequence[K]:
    if few is None:
        return ()
    return few if isinstance(few, list) else (few,)


def _with(few: K | list[K] | None, item: K) -> K | list[K]:
    if few is None or few == item:
        return item
    if not isinstance(few, list):
        return sorted((few, item))
    if _at(few, item) is None:
        insort(few, item)
    return few


def _without(few: K | list[K] | None, item: K) -> K | list[K] | None:
    if not isinstance(few, list):
        return None if few == item else few
    at = _at(few, item)
    if at is not None:
        del few[at]
    return few or None


def _at(items: Sequence[T], item: T) -> int | None:
    """Where it stands among sorted items."""
    at = bisect_left(items, item)
    return at if at < len(items) and items[at] == item else None
