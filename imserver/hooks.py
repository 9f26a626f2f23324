"""What the embedding program wants to decide or to know: its async functions, by event.

Most servers have none or a few, and most logins, subscriptions and messages meet none. So the
question "is there a hook?" is a look at a tuple, asked by code that never waits; only a yes costs
a task. A hook says no by raising ImError; any other exception is a fault of the program: the
request is refused (500) and the log says why, once a burst.

    K1  every hook has a time-out, and its end is an answer: 503, for calls 408.
    K2  where several hooks fit, all run, in the order of their registration; the first no counts.

Not here: messages in batches (hooks_batch), whose request waits for the answer (gateway).
"""

import asyncio
import logging
import re
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

from imserver.errors import ErrorCode, ImError
from imserver.hooks_batch import Batches, OnPublish, Publication
from imserver.hooks_log import Burst, is_cancelled
from imserver.model_session import Login, Session, matches
from imserver.upgrade import PATH
from imserver.websocket import WebSocket

__all__ = [
    "Hooks",
    "OnCall",
    "OnClose",
    "OnConnect",
    "OnPublish",
    "OnSubscribe",
    "OnWebSocket",
    "PlainWebSockets",
    "Publication",
    "RegisterWebSocket",
]

OnConnect = Callable[[Login], Awaitable[None]]
OnSubscribe = Callable[[Session, str, str], Awaitable[None]]
OnCall = Callable[[Session, Any], Awaitable[Any]]
OnClose = Callable[[Session, int], Awaitable[None]]
OnWebSocket = Callable[[WebSocket], Coroutine[Any, Any, None]]
RegisterWebSocket = Callable[[OnWebSocket], OnWebSocket]


class PlainWebSockets(NamedTuple):
    """What serves those of a path. `deflate`: their messages may be compressed."""

    serve: OnWebSocket
    deflate: bool


H = TypeVar("H", bound=Callable[..., Awaitable[Any]])

_log = logging.getLogger("imserver.hooks")


class Hooks:
    """The registered hooks, and how each kind is run.

    `on_change` is called after an on_publish hook was added: verdicts given before may be wrong
    from now on. Registering works before the start and at any time after it.
    """

    def __init__(self, hook_timeout_ms: int, call_timeout_ms: int) -> None:
        self._hook_timeout_s = hook_timeout_ms / 1000
        self._call_timeout_s = call_timeout_ms / 1000
        self._connect: tuple[OnConnect, ...] = ()
        self._subscribe: tuple[tuple[str, OnSubscribe], ...] = ()
        self._close: tuple[OnClose, ...] = ()
        self._calls: dict[str, OnCall] = {}
        self._failures: defaultdict[str, Burst] = defaultdict(lambda: Burst(_log))
        self.batches = Batches(self._hook_timeout_s)
        self.websockets: dict[str, PlainWebSockets] = {}
        self.on_change: Callable[[], None] | None = None

    # Registration: decorators of the embedding program

    def on_connect(self, hook: OnConnect) -> OnConnect:
        """`async def f(login: Login)`: judge a login whose token was good."""
        _check(hook)
        self._connect += (hook,)
        return hook

    def on_subscribe(self, pattern: str) -> Callable[[OnSubscribe], OnSubscribe]:
        """`async def f(session, topic, tags)`: judge a subscription that routing allows."""
        check_pattern(pattern)

        def register(hook: OnSubscribe) -> OnSubscribe:
            _check(hook)
            self._subscribe += ((pattern, hook),)
            return hook

        return register

    def on_publish(self, pattern: str) -> Callable[[OnPublish], OnPublish]:
        """`async def f(batch: list[Publication])`: judge, or just see, messages before they are
        delivered. Takes the topics it matches off the fast path."""
        check_pattern(pattern)

        def register(hook: OnPublish) -> OnPublish:
            _check(hook)
            self.batches.register(pattern, hook)
            if self.on_change:
                self.on_change()
            return hook

        return register

    def on_call(self, name: str) -> Callable[[OnCall], OnCall]:
        """`async def f(session, params) -> result`: answer CALLs of a method. ValueError when
        the name is taken."""

        def register(hook: OnCall) -> OnCall:
            _check(hook)
            if not name or name in self._calls:
                raise ValueError(f"the method {name!r} is registered already")
            self._calls[name] = hook
            return hook

        return register

    def on_close(self, hook: OnClose) -> OnClose:
        """`async def f(session, code)`: a session has ended; code 0: the peer went by itself."""
        _check(hook)
        self._close += (hook,)
        return hook

    def on_websocket(self, path: str, *, deflate: bool = False) -> RegisterWebSocket:
        """`async def f(socket)`: serve the plain WebSockets of a path. ValueError when it is none
        or taken."""
        if not re.fullmatch(r"/[\w./~-]{0,255}", path) or path in {PATH, *self.websockets}:
            raise ValueError(f"the path {path!r} is taken, or does not look like /this")

        def register(hook: OnWebSocket) -> OnWebSocket:
            _check(hook)
            self.websockets[path] = PlainWebSockets(hook, deflate)
            return hook

        return register

    # Questions, which never wait

    @property
    def judges_logins(self) -> bool:
        return bool(self._connect)

    @property
    def sees_closes(self) -> bool:
        return bool(self._close)

    def judges_subscriptions(self, topic: str) -> bool:
        return any(matches(pattern, topic) for pattern, _ in self._subscribe)

    def judges_messages(self, topic: str) -> bool:
        return self.batches.wants(topic)

    def answers(self, method: str) -> bool:
        return method in self._calls

    # Running them. ImError is the answer no.

    async def connect(self, login: Login) -> None:
        for hook in self._connect:
            await self._judge("on_connect", hook, login)

    async def subscribe(self, session: Session, topic: str, tags: str) -> None:
        for pattern, hook in self._subscribe:
            if matches(pattern, topic):
                await self._judge("on_subscribe", hook, session, topic, tags)

    async def call(self, method: str, session: Session, params: Any) -> Any:
        """ImError 404 for a method nobody registered, 408 after its time-out."""
        hook = self._calls.get(method)
        if hook is None:
            raise ImError(ErrorCode.NOT_FOUND, "no such method")
        late = ImError(ErrorCode.TIMEOUT, "the method took too long; it may have been done")
        limit_s = self._call_timeout_s
        return await self._run(f"on_call {method}", limit_s, late, hook, session, params)

    async def close(self, session: Session, code: int) -> None:
        for hook in self._close:
            # Nobody is left to be told of a failure, and the log knows.
            with suppress(ImError):
                await self._judge("on_close", hook, session, code)

    async def stop(self) -> None:
        await self.batches.stop()

    async def _judge(self, what: str, hook: Callable[..., Awaitable[None]], *about: object) -> None:
        late = ImError(ErrorCode.OVERLOADED, "judging this took too long")
        await self._run(what, self._hook_timeout_s, late, hook, *about)

    async def _run(
        self,
        what: str,
        limit_s: float,
        late: ImError,
        hook: Callable[..., Awaitable[Any]],
        *about: object,
    ) -> Any:
        limit = asyncio.timeout(limit_s)
        try:
            async with limit:
                return await hook(*about)
        except ImError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            if is_cancelled(error):
                raise
            if isinstance(error, TimeoutError) and limit.expired():
                self._failures[what].note("%s took longer than %g s", what, limit_s)
                raise late from None
            self._failures[what].note("%s failed", what, error=error)
            raise ImError(ErrorCode.INTERNAL) from error


def check_pattern(pattern: str) -> None:
    """ValueError for what could match nothing, or not what its author meant."""
    if not pattern or "*" in pattern[:-1]:
        raise ValueError(f"a pattern is a topic, or its beginning and one * at the end: {pattern}")


def _check(hook: Callable[..., object]) -> None:
    if not callable(hook):
        raise TypeError('a hook is an async function; patterns look like on_publish("room:*")')
