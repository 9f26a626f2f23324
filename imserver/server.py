"""The server as a program holds it: put together here, started, told what to do, and stopped.

    async with Server(Config(dev=True)) as server:

        @server.on_publish("room:*")
        async def see(batch): ...

        await server.publish("room:lobby", {"text": "hello"})

A guest in somebody else's process: no signal handlers, no logging configuration, any asyncio
loop, and everything it opened is closed when the block ends. Its methods belong to the loop it
was started in.

Not here: what clients do (gateway), what hooks see (hooks), the signals and logs of
`imserver serve` (cli_serve).
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from imserver.auth import Authenticator
from imserver.config import Config
from imserver.control import ControlServer
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.gateway import Gateway
from imserver.hooks import (
    Hooks,
    OnCall,
    OnClose,
    OnConnect,
    OnPublish,
    OnSubscribe,
    RegisterWebSocket,
    check_pattern,
)
from imserver.http_served import NOT_RUNNING
from imserver.measures import Measures
from imserver.membership import Membership
from imserver.model import CODECS, encode_value
from imserver.operations import Operations
from imserver.protocol import (
    DURABLE,
    Receipt,
    check_identifier,
    check_tag,
    check_topic,
    encode_message,
)
from imserver.retention import Retention
from imserver.routing import Routing, is_addressable
from imserver.server_listener import address_text, open_listener
from imserver.sessions import MemorySessions, Sessions
from imserver.timeline_sqlite import SqliteTimeline

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from imserver.http_listener import HttpListener

#: How long the last words to those we close may take.
FLUSH_S: Final = 0.5

#: How often we look whether everybody has gone. Sockets end in the core, which tells nobody.
LOOK_S: Final = 0.02

#: After so many publications in a row the other tasks of the program have their turn.
PUBLICATIONS_A_TURN: Final = 64

#: How long the program waits for the disk.
KEEP_TIMEOUT_S: Final = 30.0

#: The topic of broadcasts. No client can publish or subscribe to it.
BROADCAST_TOPIC: Final = "$broadcast"

#: The sender of what the server itself says.
SERVER: Final = "$server"

_log = logging.getLogger("imserver.server")
logging.getLogger("imserver").addHandler(logging.NullHandler())


class Server:
    """A messaging server, for one start and one stop.

    ConfigError for keys that cannot be used. Starting raises OSError when the address is taken
    or not ours, ValueError or MemoryError for limits that cannot be had. The other methods
    raise RuntimeError when the server is not running, and ImError for names and sizes that a
    client could not use either.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        #: Who is online. Read it as you like, change nothing.
        self.sessions: Sessions = MemorySessions(self.config.threads or 1)
        limits = self.config.limits
        self._hooks = Hooks(limits.hook_timeout_ms, limits.call_timeout_ms)
        self._authenticator = Authenticator(self.config.auth)
        self._routing = Routing(self.config.namespaces, dev=self.config.dev)
        self._store: SqliteTimeline | None = None
        self._retention: Retention | None = None
        self._control: ControlServer | None = None
        #: What an operator may ask for, of a server that has a store and runs.
        self.operations: Operations | None = None
        self._http: HttpListener | None = None
        self._drained = asyncio.Event()
        self._gateway: Gateway | None = None
        self._address: tuple[str, int] | None = None
        self._published = 0

    # Hooks: decorators, usable before the start and after it

    def on_connect(self, hook: OnConnect) -> OnConnect:
        """`async def f(login: Login)`: judge a login whose token was good."""
        return self._hooks.on_connect(hook)

    def on_subscribe(self, pattern: str) -> Callable[[OnSubscribe], OnSubscribe]:
        """`async def f(session, topic, tags)`: judge a subscription that routing allows."""
        return self._hooks.on_subscribe(pattern)

    def on_publish(self, pattern: str) -> Callable[[OnPublish], OnPublish]:
        """`async def f(batch: list[Publication])`: see messages before they are delivered, and
        `refuse` some. Takes the topics that match off the fast path."""
        return self._hooks.on_publish(pattern)

    def on_call(self, name: str) -> Callable[[OnCall], OnCall]:
        """`async def f(session, params) -> result`: answer the CALLs of a method."""
        return self._hooks.on_call(name)

    def on_close(self, hook: OnClose) -> OnClose:
        """`async def f(session, code)`: a session has ended; code 0: the peer went by itself."""
        return self._hooks.on_close(hook)

    def on_websocket(self, path: str, *, deflate: bool = False) -> RegisterWebSocket:
        """`async def f(socket: WebSocket)`: serve the plain WebSockets of a path of the client
        port, where nobody has logged in; `deflate` lets those compress. ValueError for no path."""
        return self._hooks.on_websocket(path, deflate=deflate)

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Open the store where there is one, and listen. What `async with` calls."""
        if self._address is not None:
            raise RuntimeError("a Server starts once; make another one")
        listener = await open_listener(self.config.listen)
        try:
            self._address = listener.getsockname()[:2]
            config = await self._open_http()
            if self.config.data_dir:
                self._store = await SqliteTimeline.open(Path(self.config.data_dir))
            gateway = Gateway(
                config,
                self._authenticator,
                self._routing,
                self.sessions,
                self._hooks,
                store=self._store,
            )
            gateway.start()
            if self._store:
                self._retention = Retention(self._store, self._routing)
                self._retention.start()
                await self._listen_to_operator(gateway, self._store)
        except BaseException:
            listener.close()
            await self._close_http()
            await self._close_store()
            raise
        gateway.orders.listen(listener.detach())
        self._gateway = gateway
        if self._http:
            await self._http.start()

    async def drain(self, timeout_s: float | None = None) -> None:
        """Leave without hurting anybody: take no new connections, ask everybody to come back
        later (GOAWAY 4201), and wait until they have gone. Whoever is still here after
        `timeout_s`, by default the setting, is closed. `stop` is still yours to call."""
        gateway = self._running()
        if timeout_s is None:
            timeout_s = self.config.drain.timeout_ms / 1000
        gateway.leave()
        gateway.upgrades.close_all(CloseCode.RESTART)
        await wait_until(lambda: self._gateway is not gateway or gateway.is_idle, timeout_s)
        if self._gateway is gateway:
            await self._close_all(gateway)
        self._drained.set()

    async def drained(self) -> None:
        """Returns when somebody has drained it: this program, or an operator."""
        await self._drained.wait()

    async def stop(self) -> None:
        """Close everything, at once but with a word (4201). Harmless when it is stopped."""
        gateway, self._gateway = self._gateway, None
        if gateway is None:
            return
        try:
            gateway.orders.unlisten()
            await self._close_all(gateway)
        finally:
            await self._close_http()
            self.operations = None
            if self._control:
                await self._control.close()
            # While the gateway still listens to the core: what comes back has to be taken.
            await gateway.settle()
            await self._close_store()
            await gateway.stop()

    async def _listen_to_operator(self, gateway: Gateway, store: SqliteTimeline) -> None:
        assert gateway.followers
        delivery = gateway.followers.delivery
        self.operations = Operations(store, redrive=delivery.redrive, followers=delivery.followers)
        control = ControlServer(Path(self.config.data_dir), self.operations.methods)
        try:
            await control.start()
        except OSError as error:  # clients need none
            _log.error("no control socket in %s: %s", self.config.data_dir, error)
        else:
            self._control = control

    async def _open_http(self) -> Config:
        """What the gateway is to know: the pages of the port that the system chose are ours."""
        if not self.config.http:
            return self.config
        from imserver.http_listener import HttpListener

        self._http = HttpListener(self.http_app, await open_listener(self.config.http))
        return msgspec.structs.replace(self.config, http=address_text(self._http.address))

    async def _close_http(self) -> None:
        http, self._http = self._http, None
        if http:
            await http.close()

    async def _close_store(self) -> None:
        store, self._store = self._store, None
        if self._retention:
            await self._retention.stop()
        if store:
            await store.close()

    async def _close_all(self, gateway: Gateway) -> None:
        if not (self.sessions or gateway.upgrades):
            return
        gateway.orders.close_all()
        gateway.upgrades.close_all(CloseCode.RESTART)
        await wait_until(lambda: not gateway.orders.stats()["connections"], FLUSH_S)

    # What the program may ask and order

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: (host, port), the port that the system chose for port 0."""
        if self._address is None:
            raise RuntimeError("the server has not been started")
        return self._address

    @property
    def http_address(self) -> tuple[str, int] | None:
        """The same of the HTTP API; None where the server does not listen for it."""
        return self._http.address if self._http else None

    @property
    def http_app(self) -> "ASGIApp":
        """API, health, metrics and pages as an ASGI application, to be mounted in a program's own.
        503 while the server does not run. ConfigError for API keys that cannot be used."""
        from imserver import __version__
        from imserver.http_app import make_app

        return make_app(self, __version__)

    @property
    def failure(self) -> str:
        """Why the server is not fit for work: the store has stopped. Else empty."""
        return self._store.failure if self._store else ""

    @property
    def unready(self) -> str:
        """Why nobody should be sent here (readiness): "not running", "leaving", "the store has
        stopped". Else empty."""
        if self._gateway is None:
            return NOT_RUNNING
        if self._gateway.logins.is_leaving:
            return "leaving"
        return "the store has stopped" if self.failure else ""

    def stats(self) -> dict[str, int]:
        """Counters and gauges by name; docs/operations.md explains each."""
        gateway = self._running()
        core = gateway.orders.stats()
        own = {"sessions": len(self.sessions), "users": self.sessions.users}
        own["event_queue"] = max(0, core["events"] - gateway.events_taken)
        if self._retention:
            own["forgotten"] = self._retention.forgotten
        return core | own | gateway.stats()

    @property
    def measures(self) -> Measures:
        """What is more than one number each."""
        return self._running().measures

    async def publish(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        sender: str = SERVER,
        codec: str | None = None,
        id: int = 0,
        durable: bool = False,
    ) -> Receipt | None:
        """Deliver a message to the subscribers of a topic, whatever routing says of it.

        `body`: bytes stay as they are; other values are encoded by `codec`, by default "json".
        `sender` is a user or a name beginning with "$", like tags. ValueError for what the
        codec cannot carry. With `durable`, and where the topic keeps everything, returns when
        the disk has the message, with its receipt; ImError 507 where the topic or the server
        keeps nothing or the store has failed, 503 with too many under way, 408 after
        KEEP_TIMEOUT_S: then nobody knows.
        """
        gateway = self._running()
        frame = self._message(check_topic(topic), body, tag, sender, codec, id, durable)
        frame = gateway.durability.marked(frame, topic)
        if frame[5] & DURABLE:
            if not is_addressable(topic):
                text = "no client can address this topic"
                raise ImError(ErrorCode.BAD_BODY, text, id=id, topic=topic)
            await self._members().before_publish(topic)
            return await self._kept(gateway.durability.keep(frame, id, topic), id, topic)
        gateway.orders.publish(frame)
        self._published += 1
        if self._published % PUBLICATIONS_A_TURN == 0:
            await asyncio.sleep(0)
        return None

    async def _kept(self, receipt: "asyncio.Future[Receipt]", id: int, topic: str) -> Receipt:
        try:
            async with asyncio.timeout(KEEP_TIMEOUT_S):
                return await receipt
        except TimeoutError:
            text = "the disk did not answer in time"
            raise ImError(ErrorCode.TIMEOUT, text, id=id, topic=topic) from None

    async def broadcast(
        self, body: Any, tag: str = "", *, sender: str = SERVER, codec: str | None = None
    ) -> None:
        """Deliver a message to every connection, subscribed or not, on the topic "$broadcast"."""
        gateway = self._running()
        gateway.orders.broadcast(self._message(BROADCAST_TOPIC, body, tag, sender, codec, 0))

    async def join(self, topic: str, users: Collection[str]) -> None:
        """Make users members of a topic: where its namespace says `member` they may publish and
        subscribe, and their sessions are subscribed by themselves, now and at each login. A dm
        has its two from its first kept message on. ImError 403 for whom the topic cannot have,
        442 past a bound, 507 without a store."""
        await self._members().join(topic, _listed(users))

    async def leave(self, topic: str, users: Collection[str]) -> None:
        """End memberships. Their sessions get UNSUBSCRIBED 403."""
        await self._members().leave(topic, _listed(users))

    def _members(self) -> Membership:
        members = self._running().members
        if members is None:
            raise ImError(ErrorCode.NOT_DURABLE, "members are kept in a store: set data_dir")
        return members.membership

    async def revoke(self, user: str, topic: str | None = None) -> None:
        """Judge a user's live connections again, at once.

        With a topic, or the beginning of topics and "*", deny it to the user first, whatever
        the token says. That lasts until `allow` or the end of this process and also holds for
        later logins. Publishing is asked for anew; subscriptions that are no longer allowed end
        with UNSUBSCRIBED 403. ImError 503 when 10,000 denials are in force.
        """
        gateway = self._running()
        if topic is not None:
            check_pattern(check_topic(topic))
        gateway.orders.revoke(check_identifier(user), topic)

    async def allow(self, user: str, topic: str | None = None) -> None:
        """Lift one denial of `revoke`, by the same text, or all of a user."""
        self._running().orders.allow(user, topic)

    async def disconnect(self, user: str, code: int = CloseCode.KICKED) -> int:
        """Close a user's connections with a code of 4000..4999; returns how many there were."""
        if not 4000 <= code <= 4999:
            raise ValueError("close codes are 4000..4999; their ranges are in docs/protocol.md")
        return self._running().orders.disconnect(user, code)

    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("the server is not running")
        return self._gateway

    def _message(
        self,
        topic: str,
        body: Any,
        tag: str,
        sender: str,
        codec: str | None,
        id: int,
        durable: bool = False,
    ) -> bytes:
        check_tag(tag.removeprefix("$"))
        check_identifier(sender.removeprefix("$"))
        name = codec or ("bytes" if isinstance(body, bytes) else "json")
        if name not in CODECS:
            raise ValueError(f"codecs are {', '.join(CODECS)}, not {name!r}")
        data = body if isinstance(body, bytes) else encode_value(body, CODECS[name])
        flags = DURABLE if durable else 0
        frame = encode_message(topic, sender, data, tag=tag, codec=CODECS[name], id=id, flags=flags)
        if len(frame) > self.config.limits.max_frame_bytes:
            text = f"a frame of {len(frame)} bytes; clients take max_frame_bytes"
            raise ImError(ErrorCode.TOO_LARGE, text)
        return frame


def _listed(users: Collection[str]) -> Collection[str]:
    if isinstance(users, str):
        raise TypeError("users is a list of names, not one")
    return users


async def wait_until(is_so: Callable[[], bool], timeout_s: float) -> None:
    """Return when it is so, or after that time."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    while not is_so() and loop.time() < deadline_s:  # noqa: ASYNC110 (see LOOK_S)
        await asyncio.sleep(LOOK_S)
