"""CALL: the methods every server has, by name. docs/protocol.md has their params and results.

Some are quick looks into memory, answered at once; those that the store answers are waited for
(gateway_kept), and a server without one refuses them. The application's own methods (on_call) come
first, so it can put its own in place of these.

Not here: waiting for an on_call hook, and the frames (gateway).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from imserver.errors import ErrorCode, ImError
from imserver.gateway_kept import AskHistory, AskLeave, AskRead, AskUnread, Kept, may_see
from imserver.model_session import Session
from imserver.protocol import check_topic
from imserver.routing import Routing
from imserver.sessions import Sessions

#: Users in one question or one answer: with the longest names more than a frame of 64 KiB.
USERS_MAX = 1_000


class _Presence(msgspec.Struct):
    users: Annotated[list[str], Meta(max_length=USERS_MAX)]


class _Members(msgspec.Struct):
    topic: str
    after: str = ""
    limit: Annotated[int, Meta(ge=1, le=USERS_MAX)] = USERS_MAX


class _Refresh(msgspec.Struct):
    token: str


P = TypeVar("P", bound=msgspec.Struct)

#: Puts a new token in force for a session; ImError 401 or 403.
Refresh = Callable[[Session, str], None]


class Calls:
    """The built-in methods. `refresh` is the gateway's, since it changes what the core knows.
    `kept` are the answers of the store, which have `timeout_s`."""

    def __init__(
        self,
        sessions: Sessions,
        routing: Routing,
        refresh: Refresh,
        kept: Kept | None = None,
        timeout_s: float = 8.0,
    ) -> None:
        self._sessions = sessions
        self._routing = routing
        self._refresh = refresh
        self._kept = kept
        self._timeout_s = timeout_s
        self._methods: dict[str, Callable[[Session, Any], Any]] = {
            "presence": self.on_presence,
            "members": self.on_members,
            "refresh": self.on_refresh,
        }
        self._waiting: dict[str, Callable[[Session, Any], Coroutine[Any, Any, Any]]] = {}
        if kept:
            self._waiting = {
                "history": lambda session, params: kept.history(session, _read(params, AskHistory)),
                "read": lambda session, params: kept.read(session, _read(params, AskRead)),
                "unread": lambda session, params: kept.unread(session, _read(params, AskUnread)),
                "leave": lambda session, params: kept.leave(session, _read(params, AskLeave)),
                "members": self.on_kept_members,
            }

    def waits(self, method: str) -> bool:
        """Whether it is for `answer_later`, since the store has to be asked."""
        return method in self._waiting

    async def answer_later(self, session: Session, method: str, params: Any) -> Any:
        """As `answer`, for those that wait; also ImError 408, when the disk takes too long."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._waiting[method](session, params)
        except TimeoutError:
            raise ImError(ErrorCode.TIMEOUT) from None

    def answer(self, session: Session, method: str, params: Any) -> Any:
        """The result. ImError 404 for an unknown method, 422 for params that are not as
        documented, 507 for what only a server with a store can answer."""
        handler = self._methods.get(method)
        if handler is None and method in ("history", "read", "unread", "leave"):
            raise ImError(ErrorCode.NOT_DURABLE, "this server keeps no messages and no members")
        if handler is None:
            raise ImError(ErrorCode.NOT_FOUND, "no such method")
        return handler(session, params)

    def on_presence(self, session: Session, params: Any) -> dict[str, Any]:
        asked = _read(params, _Presence)
        found = {user: [one.device for one in self._sessions.of(user)] for user in asked.users}
        return {
            user: {"online": bool(devices), "devices": devices} for user, devices in found.items()
        }

    def on_members(self, session: Session, params: Any) -> list[str]:
        """Who is subscribed."""
        asked = self._asked_members(session, params)
        users: dict[str, None] = {}  # in order, and a second device does not count
        for member in self._sessions.members(asked.topic):
            users[member.user] = None
            if len(users) == asked.limit:
                break
        return list(users)

    async def on_kept_members(self, session: Session, params: Any) -> list[str]:
        """Those of the store; who is subscribed where a topic has none there."""
        asked = self._asked_members(session, params)
        assert self._kept
        found = await self._kept.members(session, asked.topic, asked.after, asked.limit)
        return found if found or asked.after else self.on_members(session, params)

    def _asked_members(self, session: Session, params: Any) -> _Members:
        asked = _read(params, _Members)
        if not may_see(self._routing, self._sessions, session, check_topic(asked.topic)):
            raise ImError(ErrorCode.FORBIDDEN, "only those who may subscribe see the members")
        return asked

    def on_refresh(self, session: Session, params: Any) -> dict[str, int]:
        self._refresh(session, _read(params, _Refresh).token)
        return {"expires_ms": int(session.expires_s * 1000)}


def _read(params: Any, kind: type[P]) -> P:
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise ImError(ErrorCode.BAD_BODY, f"params: {error}") from error
