"""Topics over HTTP: which there are, what was said there, who belongs to them, and who is here.

Not here: publishing (http_publish).
"""

from heapq import nsmallest
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from imserver.errors import ErrorCode, ImError
from imserver.http_route import ApiRoute, Body, Query
from imserver.http_served import Served
from imserver.names import check_identifier, check_topic
from imserver.operations import Operations

T = TypeVar("T")

Seq = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Meta(ge=1, le=1_000)]
Users = Annotated[list[str], Meta(max_length=1_000)]


class AskTopics(Query):
    """`after`: the last one of the page before."""

    after: str = ""
    limit: Limit = 100


class AskHistory(Query):
    """Messages behind `after`, or the last ones before `before`; without both the newest."""

    after: Seq | UnsetType = UNSET
    before: Seq | UnsetType = UNSET
    limit: Annotated[int, Meta(ge=1, le=256)] = 50


class AskMembers(Query):
    """`after`: the last one of the page before."""

    after: str = ""
    limit: Limit = 100


class ChangeMembers(Body):
    """Users who become members, and users who are members no more."""

    join: Users = msgspec.field(default_factory=list)
    leave: Users = msgspec.field(default_factory=list)


class Topic(msgspec.Struct):
    """A topic that keeps messages `first` to `head`; none when `first` is greater."""

    topic: str
    first: int
    head: int


class Topics(msgspec.Struct):
    """A page; `after` begins the next one, null: this was the last."""

    topics: list[Topic]
    after: str | None


class Said(msgspec.Struct):
    """A message as it is kept. A `body` that is no value is given as text."""

    topic: str
    seq: int
    time_ms: int
    sender: str
    id: int
    tag: str
    body: Any


class Gap(msgspec.Struct):
    """Messages that were kept and cannot be read."""

    first: int
    last: int
    reason: str


class History(msgspec.Struct):
    """Oldest first. `after`, or `before` of a page that was read backwards, begins the next one;
    null: there is none."""

    messages: list[Said]
    gaps: list[Gap]
    after: int | None = None
    before: int | None = None


class Member(msgspec.Struct):
    """`since_seq`: what came up to there was before their time. `read`: up to where they have."""

    user: str
    since_seq: int
    read: int
    unread: int


class Members(msgspec.Struct):
    members: list[Member]
    after: str | None


class Present(msgspec.Struct):
    """A user who is here, and on which devices."""

    user: str
    devices: list[str]


class Presence(msgspec.Struct):
    """Users who are here and subscribed, by name. `after` as everywhere."""

    users: list[Present]
    after: str | None


class TopicRoutes:
    """For one server."""

    def __init__(self, server: Served) -> None:
        self._server = server

    @property
    def routes(self) -> list[ApiRoute]:
        topic = "/v1/topics/{topic:path}"
        return [
            ApiRoute("GET", "/v1/topics", "read", self.topics),
            ApiRoute("GET", f"{topic}/history", "read", self.history),
            ApiRoute("GET", f"{topic}/members", "read", self.members),
            ApiRoute("POST", f"{topic}/members", "members", self.change_members),
            ApiRoute("GET", f"{topic}/presence", "read", self.presence),
        ]

    async def topics(self, query: AskTopics) -> Topics:
        """The topics that keep messages, by name."""
        return told(await kept(self._server).topics(query.after, query.limit), Topics)

    async def history(self, topic: str, query: AskHistory) -> History:
        """What was said in a topic."""
        store, topic = kept(self._server), check_topic(topic)
        if query.after is UNSET:
            before = 2**63 - 1 if query.before is UNSET else query.before
            return told(await store.history_back(topic, before, query.limit), History)
        if query.before is UNSET:
            return told(await store.history(topic, query.after, query.limit), History)
        raise ImError(ErrorCode.BAD_BODY, "after or before, not both")

    async def members(self, topic: str, query: AskMembers) -> Members:
        """The members of a topic, by name, and what they have read of it."""
        found = await kept(self._server).members(check_topic(topic), query.after, query.limit)
        return told(found, Members)

    async def change_members(self, topic: str, body: ChangeMembers) -> Members:
        """Make users members of a topic, or end that.

        Their sessions are subscribed and unsubscribed at once. The answer is the first page of the
        members as they are then."""
        kept(self._server)
        if body.join:
            await self._server.join(topic, body.join)
        if body.leave:
            await self._server.leave(topic, body.leave)
        return await self.members(topic, AskMembers())

    async def presence(self, topic: str, query: AskMembers) -> Presence:
        """Who is connected and subscribed to a topic now."""
        sessions = self._server.sessions.members(check_topic(topic))
        here = {session.user for session in sessions if session.user > query.after}
        users = nsmallest(query.limit, here)
        found = [Present(user, devices_of(self._server, user)) for user in users]
        return Presence(found, users[-1] if len(here) > len(users) else None)


def devices_of(server: Served, user: str) -> list[str]:
    return sorted(session.device for session in server.sessions.of(check_identifier(user)))


def kept(server: Served) -> Operations:
    """What the store answers; ImError 507 where there is none."""
    if server.operations is None:
        raise ImError(ErrorCode.NOT_DURABLE, "this server keeps nothing: set data_dir")
    return server.operations


def told(found: dict[str, Any], kind: type[T]) -> T:
    """What an operation told, as what the API says that it is."""
    return msgspec.convert(found, kind)
