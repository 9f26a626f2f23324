"""HELLO: who is it, and may they come in.

Ten thousand a second after a restart, each once in the life of a connection. Without an
on_connect hook the answer is given at once.

Not here: what a token proves (auth), when a session ends again (gateway).
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from imserver import _core
from imserver.auth import Authenticator, Identity
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.gateway_frames import Frames
from imserver.gateway_tasks import Tasks
from imserver.hooks import Hooks
from imserver.model_session import (
    DEFAULT_DEVICE,
    NEVER,
    NO_RIGHTS,
    Login,
    Session,
    shared_expiry,
    shared_terms,
)
from imserver.protocol import (
    CODEC_JSON,
    VERSION,
    FrameType,
    Hello,
    check_identifier,
    decode_body,
)
from imserver.sessions import Sessions

#: The close code after a login that a hook refused, by the number of its error; else 4003.
_CLOSES: Final[dict[int, CloseCode]] = {
    ErrorCode.UNAUTHORIZED: CloseCode.UNAUTHORIZED,
    ErrorCode.TOO_MANY_REQUESTS: CloseCode.TOO_MANY_CONNECTIONS,
    ErrorCode.INTERNAL: CloseCode.INTERNAL,
    ErrorCode.OVERLOADED: CloseCode.OVERLOADED,
}

_log = logging.getLogger("imserver.gateway")


class Logins:
    """Those who knock. `is_leaving` sends them to another server, or to this one later;
    `on_welcome` hears of each who has come in, `brought` knows the token that a connection had
    before its HELLO."""

    def __init__(
        self,
        dev: bool,
        core: _core.Core,
        frames: Frames,
        authenticator: Authenticator,
        sessions: Sessions,
        hooks: Hooks,
        tasks: Tasks,
    ) -> None:
        self.is_leaving = False
        self.on_welcome: Callable[[Session], None] | None = None
        self.brought: Callable[[int], str | None] = lambda conn: None
        self._dev = dev
        self._core = core
        self._frames = frames
        self._authenticator = authenticator
        self._sessions = sessions
        self._hooks = hooks
        self._tasks = tasks
        self._judged: set[int] = set()  # connections that wait for a hook

    def on_hello(self, conn: int, codec: int, request: int, data: bytes) -> None:
        """`data` as the core gives it: the peer's address, then the body."""
        peer_end = 1 + data[0]
        try:
            hello = _read(codec, data[peer_end:])
        except ImError as error:
            self._reject(conn, codec, request, error, CloseCode.BAD_PROTOCOL)
            return
        if hello.version != VERSION:
            refusal = ImError(ErrorCode.BAD_FRAME, f"this server speaks version {VERSION}")
            self._reject(conn, codec, request, refusal, CloseCode.VERSION_UNSUPPORTED)
            return
        try:
            brought = self.brought(conn)
            identity = self._identify(hello, hello.token if brought is None else brought)
        except ImError as error:
            self._reject(conn, codec, request, error, CloseCode.UNAUTHORIZED)
            return
        terms = shared_terms(identity.device or hello.device, identity.rights, codec)
        session = Session(conn, identity.user, terms, shared_expiry(identity.expires_s))
        if self._hooks.judges_logins:
            peer = data[1:peer_end].decode()
            login = Login(identity.user, terms.device, identity.claims, peer, hello.client)
            self._judge_later(session, request, login)
        else:
            self._admit(session, request)

    def forget(self, conn: int) -> None:
        """A connection has gone: nobody waits for the answer any more."""
        self._judged.discard(conn)

    def _identify(self, hello: Hello, token: str | None) -> Identity:
        if token is None:
            if self._dev and hello.user is not None:
                return Identity(hello.user, NO_RIGHTS, NEVER, None, {})
            raise ImError(ErrorCode.UNAUTHORIZED, "HELLO without a token")
        if hello.token not in (None, token):
            raise ImError(ErrorCode.UNAUTHORIZED, "two tokens")
        identity = self._authenticator.identify(token)
        # Who names no device gets that of the token.
        if identity.device and hello.device not in (identity.device, DEFAULT_DEVICE):
            raise ImError(ErrorCode.UNAUTHORIZED, "the token is for another device")
        return identity

    def _judge_later(self, session: Session, request: int, login: Login) -> None:
        self._judged.add(session.conn)
        if not self._tasks.start(partial(self._judge, session, request, login)):
            self._judged.discard(session.conn)
            error = ImError(ErrorCode.OVERLOADED)
            self._reject(session.conn, session.codec, request, error, CloseCode.OVERLOADED)

    async def _judge(self, session: Session, request: int, login: Login) -> None:
        refusal: ImError | None = None
        try:
            await self._hooks.connect(login)
        except ImError as error:
            refusal = error
        if session.conn not in self._judged:
            return
        self._judged.discard(session.conn)
        try:
            if refusal is None:
                self._admit(session, request)
            else:
                close = _CLOSES.get(refusal.code, CloseCode.FORBIDDEN)
                self._reject(session.conn, session.codec, request, refusal, close)
        except Exception:
            _log.exception("the login of connection %x failed; it is closed", session.conn)
            self._core.close(session.conn, CloseCode.INTERNAL)

    def _admit(self, session: Session, request: int) -> None:
        if self.is_leaving:
            error = ImError(ErrorCode.OVERLOADED, "the server is shutting down")
            self._reject(session.conn, session.codec, request, error, CloseCode.RESTART)
            return
        frame = self._frames.welcome(session, request, int(time.time() * 1000))
        self._core.welcome(session.conn, session.user.encode(), session.device.encode(), frame)
        replaced = self._sessions.open(session)
        if replaced:
            self._core.close(replaced.conn, CloseCode.REPLACED)
        if self.on_welcome:
            self.on_welcome(session)

    def _reject(
        self, conn: int, codec: int, request: int, error: ImError, close: CloseCode
    ) -> None:
        """ERROR tells people why, the close code tells the client what to do."""
        if (codec, close) not in self._frames.goodbyes:
            codec = CODEC_JSON  # not a codec of ours: then the one that everybody has
        self._core.send(conn, self._frames.refusals.frame(error, codec, request))
        self._core.close(conn, close, self._frames.goodbye(close, codec))


def _read(codec: int, body: bytes) -> Hello:
    hello = decode_body(FrameType.HELLO, codec, body)
    assert isinstance(hello, Hello)
    check_identifier(hello.device)
    if hello.user is not None:
        check_identifier(hello.user)
    return hello
