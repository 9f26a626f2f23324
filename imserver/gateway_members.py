"""Members and their sessions: subscribed at the login, and when a membership begins or ends.

What a user is a member of is read from the store when they log in, after WELCOME; a publish or a
subscription that depends on it waits for that. While somebody is here, their topics are also in
memory, which is what routing asks.

    N1  a topic of `topics_of` is followed by every session of its member, or routing forbids it, or
        the session was told why it is not: an ERROR with request 0 that names the topic.
    N2  who is judged by membership is judged when it is known.

Not here: who is a member (membership), what a subscription is (gateway_subscriptions).
"""

import asyncio
import logging
from functools import partial

from imserver import _core
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.gateway_answers import Answers
from imserver.gateway_durable import Durability
from imserver.gateway_subscriptions import Subscriptions
from imserver.gateway_tasks import Tasks
from imserver.membership import Membership
from imserver.model_session import Session
from imserver.routing import Routing
from imserver.sessions import Sessions
from imserver.timeline import Timeline

_log = logging.getLogger("imserver.gateway")


class Members:
    """Those of one gateway with a store."""

    def __init__(
        self,
        core: _core.Core,
        sessions: Sessions,
        routing: Routing,
        tasks: Tasks,
        subscriptions: Subscriptions,
        durability: Durability,
        answers: Answers,
        timeline: Timeline,
    ) -> None:
        self.membership = Membership(
            timeline,
            is_kept=durability.may_keep,
            on_joined=self._on_joined,
            on_left=self._on_left,
        )
        self._core = core
        self._sessions = sessions
        self._tasks = tasks
        self._subscriptions = subscriptions
        self._answers = answers
        self._by_user: dict[str, set[str]] = {}  # of those who are here and are members
        self._loading: dict[int, asyncio.Event] = {}
        routing.is_member = self.is_member

    def is_member(self, user: str, topic: str) -> bool:
        """Of somebody who is here and whose memberships are known."""
        topics = self._by_user.get(user)
        return topics is not None and topic in topics

    def welcome(self, session: Session) -> None:
        """Subscribe a session that has just logged in, soon."""
        self._loading[session.conn] = asyncio.Event()
        if not self._tasks.start(partial(self._load, session)):
            self._loaded(session.conn)
            self._core.close(session.conn, CloseCode.OVERLOADED)

    def close(self, session: Session) -> None:
        self._loaded(session.conn)
        if session.user in self._by_user and not self._sessions.of(session.user):
            del self._by_user[session.user]

    def is_known(self, session: Session) -> bool:
        """Whether `known` returns at once."""
        return session.conn not in self._loading

    async def known(self, session: Session) -> None:
        """Returns when the memberships of a session are known, or it has gone."""
        if event := self._loading.get(session.conn):
            await event.wait()

    async def _load(self, session: Session) -> None:
        topics: list[str] = []
        try:
            topics = await self.membership.topics_of(session.user)
            if topics and self._sessions.get(session.conn) is session:
                self._by_user.setdefault(session.user, set()).update(topics)
        except ImError as error:
            _log.error("the memberships of %s cannot be read: %s", session.user, error)
            self._tell(session, "", error)
        finally:
            self._loaded(session.conn)
        for topic in topics:
            await self._subscribe(session, topic)

    def _loaded(self, conn: int) -> None:
        if event := self._loading.pop(conn, None):
            event.set()

    async def _subscribe(self, session: Session, topic: str) -> None:
        try:
            still = partial(self.is_member, session.user, topic)
            await self._subscriptions.follow_unasked(session, topic, still)
        except ImError as error:
            if error.code == ErrorCode.FORBIDDEN:  # being a member is no right
                name = session.user
                _log.warning("%s is a member of %r and may not read it: %s", name, topic, error)
            else:
                self._tell(session, topic, error)

    def _tell(self, session: Session, topic: str, error: ImError) -> None:
        """What a member is not subscribed to; all of it, where no topic is named."""
        _log.info("%s is a member of %r and does not get it: %s", session.user, topic, error)
        text = f"a membership without its subscription: {error.message}"
        told = ImError(error.code, text, error.retry_after_ms, topic=topic)
        self._answers.refuse(session, 0, told)

    def _on_joined(self, user: str, topic: str) -> None:
        for session in self._sessions.of(user):
            self._by_user.setdefault(user, set()).add(topic)
            self._core.revoke(session.conn, topic.encode())
            if not self._tasks.start(partial(self._subscribe, session, topic)):
                self._core.close(session.conn, CloseCode.OVERLOADED)  # it is subscribed at a login

    def _on_left(self, user: str, topic: str) -> None:
        self._by_user.get(user, set()).discard(topic)
        for session in self._sessions.of(user):
            self._core.revoke(session.conn, topic.encode())
            if topic in self._sessions.topics(session):
                self._subscriptions.forbid(session, topic)
