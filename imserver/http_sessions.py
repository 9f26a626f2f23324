"""Sessions over HTTP: who is connected, and the end of that.

A page of sessions is one pass over the table, a few milliseconds for 20,000; an operator looks, and
nobody else.
"""

from heapq import nsmallest
from typing import Annotated

import msgspec
from msgspec import Meta

from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.http_route import ApiRoute, Body, Query
from imserver.http_served import Served
from imserver.http_topics import Limit, Present, devices_of
from imserver.model_session import NEVER, Session
from imserver.names import check_identifier

#: Topics that are named of each session.
TOPICS_SHOWN = 16


class AskSessions(Query):
    """`search`: part of the name of a user or device. `after`: the last one of the page before."""

    search: Annotated[str, Meta(max_length=64)] = ""
    after: str = ""
    limit: Limit = 100


class Disconnect(Body):
    """The close code that they are told, 4000 to 4999: its range says whether clients come back."""

    code: Annotated[int, Meta(ge=4000, le=4999)] = int(CloseCode.KICKED)


class OneSession(msgspec.Struct):
    """`topics` are the first 16 of its `subscriptions`; `expires_ms` null: not by itself."""

    id: str
    user: str
    device: str
    subscriptions: int
    topics: list[str]
    expires_ms: int | None


class SessionPage(msgspec.Struct):
    """`total` is how many there are, found or not."""

    sessions: list[OneSession]
    after: str | None
    total: int


class Disconnected(msgspec.Struct):
    """How many connections of the user there were."""

    count: int


class SessionRoutes:
    """For one server."""

    def __init__(self, server: Served) -> None:
        self._server = server

    @property
    def routes(self) -> list[ApiRoute]:
        return [
            ApiRoute("GET", "/v1/sessions", "operate", self.sessions),
            ApiRoute("POST", "/v1/users/{user}/disconnect", "operate", self.disconnect),
            ApiRoute("GET", "/v1/users/{user}/presence", "read", self.presence),
        ]

    async def sessions(self, query: AskSessions) -> SessionPage:
        """Logged-in connections, the oldest places first."""
        after, text = _number(query.after), query.search
        found = [
            session
            for session in self._server.sessions
            if session.conn > after and (text in session.user or text in session.device)
        ]
        shown = nsmallest(query.limit, found, key=lambda session: session.conn)
        next = shown[-1].id if len(found) > len(shown) else None
        total = len(self._server.sessions)
        return SessionPage([self._plain(session) for session in shown], next, total)

    async def disconnect(self, user: str, body: Disconnect) -> Disconnected:
        """Close the connections of a user."""
        check_identifier(user)
        return Disconnected(await self._server.disconnect(user, body.code))

    async def presence(self, user: str) -> Present:
        """The devices on which a user is connected now; none: not here."""
        return Present(user, devices_of(self._server, user))

    def _plain(self, session: Session) -> OneSession:
        topics = self._server.sessions.topics(session)
        expires_ms = None if session.expires_s == NEVER else int(session.expires_s * 1000)
        return OneSession(
            session.id,
            session.user,
            session.device,
            len(topics),
            list(topics)[:TOPICS_SHOWN],
            expires_ms,
        )


def _number(id: str) -> int:
    try:
        return int(id, 16) if id else -1
    except ValueError:
        raise ImError(ErrorCode.BAD_BODY, "after is the id of a session") from None
