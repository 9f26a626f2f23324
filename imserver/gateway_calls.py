"""CALL: the methods every server has. Quick looks into memory, answered at once.

    presence {users: [..]}  -> {user: {"online": bool, "devices": [..]}}   up to 1,000 users
    members  {topic, limit} -> [user, ..]    who is subscribed; needs the right to subscribe
    refresh  {token}        -> {"expires_ms": n}    a new token for the same user

The application's own methods (on_call) come first, so it can put its own in place of these.

Not here: waiting for an on_call hook, and the frames (gateway).
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from imserver.errors import ErrorCode, ImError
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
    limit: Annotated[int, Meta(ge=1, le=USERS_MAX)] = USERS_MAX


class _Refresh(msgspec.Struct):
    token: str


P = TypeVar("P", bound=msgspec.Struct)

#: Puts a new token in force for a session; ImError 401 or 403.
Refresh = Callable[[Session, str], None]


class Calls:
    """The built-in methods. `refresh` is the gateway's, since it changes what the core knows."""

    def __init__(self, sessions: Sessions, routing: Routing, refresh: Refresh) -> None:
        self._sessions = sessions
        self._routing = routing
        self._refresh = refresh
        self._methods: dict[str, Callable[[Session, Any], Any]] = {
            "presence": self.on_presence,
            "members": self.on_members,
            "refresh": self.on_refresh,
        }

    def answer(self, session: Session, method: str, params: Any) -> Any:
        """The result. ImError 404 for an unknown method, 422 for params that are not as above."""
        handler = self._methods.get(method)
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
        asked = _read(params, _Members)
        topic = check_topic(asked.topic)
        if not self._routing.may_subscribe(session.user, session.rights, topic):
            raise ImError(ErrorCode.FORBIDDEN, "only those who may subscribe see the members")
        users: dict[str, None] = {}  # in order, and a second device does not count
        for member in self._sessions.members(topic):
            users[member.user] = None
            if len(users) == asked.limit:
                break
        return list(users)

    def on_refresh(self, session: Session, params: Any) -> dict[str, int]:
        self._refresh(session, _read(params, _Refresh).token)
        return {"expires_ms": int(session.expires_s * 1000)}


def _read(params: Any, kind: type[P]) -> P:
    try:
        return msgspec.convert(params, kind)
    except msgspec.ValidationError as error:
        raise ImError(ErrorCode.BAD_BODY, f"params: {error}") from error
