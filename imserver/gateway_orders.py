"""What others order about live connections: the application, an operator, a new token.

Rights end here: whatever routing no longer allows is taken back from the core at once, so the
next message of a user whose right was revoked is refused.

Not here: what clients ask for themselves (gateway, gateway_calls).
"""

from imserver import _core
from imserver.auth import Authenticator
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.gateway_frames import Frames
from imserver.gateway_subscriptions import Subscriptions
from imserver.model_session import Session, shared_expiry, shared_terms
from imserver.routing import Routing
from imserver.sessions import Sessions


class Orders:
    """Commands by user, carried out on each of their connections."""

    def __init__(
        self,
        core: _core.Core,
        frames: Frames,
        authenticator: Authenticator,
        sessions: Sessions,
        routing: Routing,
        subscriptions: Subscriptions,
    ) -> None:
        self._core = core
        self._frames = frames
        self._authenticator = authenticator
        self._sessions = sessions
        self._routing = routing
        self._subscriptions = subscriptions

    def refresh(self, session: Session, token: str) -> None:
        """Put a new token in force. ImError 401 for a bad one, 403 for somebody else's; then
        the old one stays."""
        identity = self._authenticator.identify(token)
        if identity.user != session.user or identity.device not in (None, session.device):
            raise ImError(ErrorCode.FORBIDDEN, "the token is for somebody else")
        session.expires_s = shared_expiry(identity.expires_s)
        if identity.rights != session.rights:
            session.terms = shared_terms(session.device, identity.rights, session.codec)
            self.judge_again(session)

    def revoke(self, user: str, pattern: str | None) -> None:
        """Judge all sessions of a user again; with a pattern, deny it from now on. ImError 503:
        see `Routing.deny`."""
        if pattern is not None:
            self._routing.deny(user, pattern)
        for session in self._sessions.of(user):
            self.judge_again(session)

    def allow(self, user: str, pattern: str | None) -> None:
        """Lift one denial of a user, or all. Ended subscriptions do not come back."""
        self._routing.allow(user, pattern)
        for session in self._sessions.of(user):
            self._core.revoke(session.conn)

    def judge_again(self, session: Session) -> None:
        """Publishing is asked for anew; subscriptions that routing no longer allows end."""
        self._core.revoke(session.conn)
        for topic in self._sessions.topics(session):
            if not self._routing.may_subscribe(session.user, session.rights, topic):
                self._subscriptions.forbid(session, topic)

    def forget_verdicts(self) -> None:
        """Everything is asked for anew, by all: an on_publish hook came."""
        for session in self._sessions:
            self._core.revoke(session.conn)

    def disconnect(self, user: str, code: int) -> int:
        """Close all connections of a user; returns how many."""
        sessions = self._sessions.of(user)
        for session in sessions:
            self._core.close(session.conn, code, self._frames.goodbye(code, session.codec))
        return len(sessions)

    def publish(self, frame: bytes) -> None:
        self._core.publish(frame)

    def broadcast(self, frame: bytes) -> None:
        self._core.broadcast(frame)

    def listen(self, fd: int) -> None:
        self._core.listen(fd)

    def unlisten(self) -> None:
        self._core.unlisten()

    def ask_to_leave(self) -> None:
        """GOAWAY to everybody: finish, then come back at a moment inside retry_after_ms."""
        for session in self._sessions:
            self._core.drain(session.conn, self._frames.goodbye(CloseCode.RESTART, session.codec))

    def close_all(self) -> None:
        for session in self._sessions:
            self._core.close(session.conn, CloseCode.RESTART)

    def stats(self) -> dict[str, int]:
        return self._core.stats()
