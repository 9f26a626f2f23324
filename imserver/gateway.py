"""Events in, commands out: the only module that knows the core.

The core tells what it may not decide, in batches; each event is answered by a command. Logins
come by the thousand a second and meet no hook in most programs: that path makes no task, takes
no lock and waits for nothing. Where a hook is asked, a bounded number of tasks wait for it.

    G1  who is paused gets one answer, on every path: a command that ends the pause or the call,
        or the end of the connection. What fails in between ends in one of them too.
    G2  after EVENT_CLOSED nothing is said to a connection.
    G3  a session is in the table from WELCOME until EVENT_CLOSED.
    G4  who waited for a hook is judged by routing again: rights may have ended meanwhile.

Not here: the policy (routing, auth), HELLO (gateway_login), CALLs (gateway_calls), what frames
contain (gateway_frames), what the application orders (gateway_orders).
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from imserver import _core
from imserver.auth import Authenticator
from imserver.config import Config
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.gateway_answers import Answers
from imserver.gateway_calls import Calls
from imserver.gateway_core import make_core
from imserver.gateway_durable import Durability
from imserver.gateway_followers import Followers
from imserver.gateway_frames import Frames
from imserver.gateway_kept import Kept
from imserver.gateway_login import Logins
from imserver.gateway_members import Members
from imserver.gateway_orders import Orders
from imserver.gateway_subscriptions import Subscriptions
from imserver.gateway_tasks import Tasks
from imserver.gateway_upgrades import Upgrades
from imserver.gateway_verdicts import Verdicts
from imserver.hooks import Hooks, Publication
from imserver.measures import Histogram, Measures
from imserver.model_session import NEVER, Session
from imserver.protocol import (
    Call,
    FrameType,
    Subscribe,
    Unsubscribe,
    codec_of,
    decode_body,
    decode_message,
)
from imserver.routing import Routing
from imserver.sessions import Sessions
from imserver.timeline_sqlite import SqliteTimeline

#: How often expired sessions are looked for: one pass over the table, a millisecond for 20,000.
SWEEP_S: Final = 1.0

#: Whoever has the result of a CALL.
Ask = Callable[[], Coroutine[Any, Any, Any]]

_log = logging.getLogger("imserver.gateway")


class Gateway:
    """The clients of one server, from HELLO to the end.

    Made, started and stopped once, in one event loop. `core` is for tests.
    """

    def __init__(
        self,
        config: Config,
        authenticator: Authenticator,
        routing: Routing,
        sessions: Sessions,
        hooks: Hooks,
        core: _core.Core | None = None,
        store: SqliteTimeline | None = None,
    ) -> None:
        self.core = core or make_core(config)
        self.sessions = sessions
        # Apart, so that slow calls do not keep others from logging in.
        self._judging = Tasks()
        self._calling = Tasks()
        self._closing = Tasks()
        self._frames = Frames(config)
        self._routing = routing
        self._hooks = hooks
        self.logins = Logins(
            config.dev, self.core, self._frames, authenticator, sessions, hooks, self._judging
        )
        self.upgrades = Upgrades(config, self.core, authenticator, hooks.websockets)
        self.logins.brought = self.upgrades.token
        self.answers = Answers(self.core, sessions, self._frames.refusals)
        self._store = store
        has_store = store is not None
        self.durability = Durability(self.core, sessions, routing, self.answers, has_store)
        self.followers = None
        if store:
            self.followers = Followers(config, self.core, sessions, routing, store, self.answers)
        self.subscriptions = Subscriptions(
            self.core,
            sessions,
            routing,
            hooks,
            self.answers,
            self._judging,
            self.durability,
            self.followers,
            most=config.limits.subscriptions,
        )
        self.members, kept = None, None
        if store:
            who = self._judging, self.subscriptions, self.durability, self.answers
            self.members = Members(self.core, sessions, routing, *who, store)
            self.logins.on_welcome = self.members.welcome
            most = config.limits.max_frame_bytes
            kept = Kept(store, self.members.membership, routing, sessions, most)
        self.orders = Orders(
            self.core, self._frames, authenticator, sessions, routing, self.subscriptions
        )
        self._verdicts = Verdicts(
            self.core, routing, hooks, self.answers, self._judging, self.durability, self.members
        )
        timeout_s = config.limits.call_timeout_ms / 1000
        self._calls = Calls(sessions, routing, self.orders.refresh, kept, timeout_s)
        self._hook_timeout_s = config.limits.hook_timeout_ms / 1000
        self.events_taken = 0
        self._loop_lag = Histogram()

    # Life

    def start(self) -> None:
        """Start the core and listen to it in the running loop."""
        for (codec, code), frame in self._frames.goodbyes.items():
            self.core.goodbye(codec, code, frame)
        self._hooks.batches.finish = self.on_finished
        self._hooks.on_change = self.orders.forget_verdicts
        self._loop = asyncio.get_running_loop()
        self.answers.is_running = True
        self.core.start()
        if self._store and self.followers:
            self._store.attach(self.core)
            self.followers.start()
        self._loop.add_reader(self.core.fileno(), self.on_events)
        self._sweep_later()

    async def settle(self) -> None:
        """Before the store closes: what has been acknowledged goes into it."""
        if self.followers and self.members:
            while self.on_events():  # the last acknowledgements of those who have just gone
                pass
            await self.members.membership.close()
            await self.followers.stop()

    async def stop(self) -> None:
        """End everything, politely only to the application: on_close hooks get their time."""
        if not self.answers.is_running:
            return
        self.answers.is_running = False
        self._sweeping.cancel()
        self._loop.remove_reader(self.core.fileno())
        for session in self.sessions:
            self.on_closed(session.conn, CloseCode.RESTART, 0, b"")
        self._hooks.on_change = None
        await self.upgrades.stop()
        for tasks in (self._judging, self._calling):
            await tasks.stop()
        await self._hooks.stop()
        await self._closing.join(self._hook_timeout_s)
        await self._closing.stop()
        self.durability.stop()
        self.core.stop()
        # Its sockets close with the last reference, which must not wait for the collector.
        del self.core, self.answers, self.logins, self.orders, self._calls
        del self.durability, self.followers, self.subscriptions, self.members, self._verdicts
        del self.upgrades

    def leave(self) -> None:
        """Take nobody new, and ask those who are here to come back later."""
        self.logins.is_leaving = self.upgrades.is_leaving = True
        self.orders.unlisten()
        self.orders.ask_to_leave()

    @property
    def is_idle(self) -> bool:
        """Nobody is connected, and nothing that was accepted waits for a hook."""
        return not (self.sessions or self.upgrades or self._hooks.batches or self._judging)

    @property
    def measures(self) -> Measures:
        commits = self._store.commits if self._store else Histogram()
        return Measures(commits, self._loop_lag, self._frames.refusals.counts)

    def stats(self) -> dict[str, int]:
        """How much is in the hands of hooks, and what delivery has done."""
        tasks = len(self._judging) + len(self._calling) + len(self._closing)
        counts = {"hook_tasks": tasks, "hook_messages": len(self._hooks.batches)}
        if self.followers:
            for name, number in self.followers.delivery.counts.items():
                counts[f"delivery_{name.replace('.', '_')}"] = number
        return counts

    # Events

    def on_events(self) -> bool:
        """Take what the core tells, in order. False when there was nothing."""
        if not self.answers.is_running:
            return False
        events = self.core.poll()
        self.events_taken += len(events)
        for kind, conn, a, b, data in events:
            try:
                _HANDLERS[kind](self, conn, a, b, data)
            except Exception:
                _log.exception("event %d of connection %x failed; it is closed", kind, conn)
                self.core.close(conn, CloseCode.INTERNAL)
        return bool(events)

    def on_hello(self, conn: int, flags: int, request: int, data: bytes) -> None:
        self.logins.on_hello(conn, codec_of(flags), request, data)

    def on_frame(self, conn: int, a: int, request: int, data: bytes) -> None:
        session = self._session(conn)
        if session is None:
            return
        type, flags = a & 0xFF, a >> 8
        ends = _core.ENDS_CALL if type == FrameType.CALL else _core.ENDS_PAUSE
        try:
            body: Any = decode_body(type, codec_of(flags), data)
            _FRAME_HANDLERS[type](self, session, request, body)
        except ImError as error:
            self.answers.refuse(session, request, error, ends)
        except Exception:
            _log.exception("a frame of type %d failed", type)
            self.answers.refuse(session, request, ImError(ErrorCode.INTERNAL), ends)

    def on_subscribe(self, session: Session, request: int, body: Subscribe) -> None:
        if self.members is None or self.members.is_known(session):
            self.subscriptions.on_subscribe(session, request, body)
        else:
            work = partial(self._subscribe, self.members, session, request, body)
            self.answers.later(self._judging, session, request, _core.ENDS_PAUSE, work)

    def on_unsubscribe(self, session: Session, request: int, body: Unsubscribe) -> None:
        self.subscriptions.on_unsubscribe(session, request, body)

    def on_call(self, session: Session, request: int, body: Call) -> None:
        if self._hooks.answers(body.method):
            ask = partial(self._hooks.call, body.method, session, body.params)
        elif self._calls.waits(body.method):
            ask = partial(self._ask_store, session, body)
        else:
            result = self._calls.answer(session, body.method, body.params)
            self._answer(session, request, result)
            return
        work = partial(self._call, session, request, ask)
        self.answers.later(self._calling, session, request, _core.ENDS_CALL, work)

    def on_ask(self, conn: int, _a: int, _b: int, data: bytes) -> None:
        session = self._session(conn)
        if session:
            self._verdicts.on_ask(session, data)

    def on_message(self, conn: int, _a: int, _b: int, data: bytes) -> None:
        session = self._session(conn)
        if session is None:
            return
        try:
            message = decode_message(data)
            try:
                self._hooks.batches.accept(Publication(message, session, data))
            except ImError as error:
                error.id, error.topic = message.id, message.topic
                raise
        except ImError as error:
            error.id = error.id or int.from_bytes(data[24:32])
            self.answers.refuse(session, 0, error, _core.ENDS_CALL)

    def on_finished(self, publication: Publication) -> None:
        """All hooks have seen a message, or one has refused it."""
        try:
            self._finish(publication)
        except Exception:
            _log.exception("a message of session %s failed; it is closed", publication.session.id)
            if self.answers.is_here(publication.session):
                self.core.close(publication.session.conn, CloseCode.INTERNAL)

    def _finish(self, publication: Publication) -> None:
        session, message = publication.session, publication.message
        try:
            if publication.error:
                raise publication.error
            if not self._routing.may_publish(session.user, session.rights, message.topic):
                raise ImError(ErrorCode.FORBIDDEN)
            frame = self.durability.marked(publication.frame, message.topic)
        except ImError as refusal:
            refusal.id, refusal.topic = message.id, message.topic
            self.answers.refuse(session, 0, refusal, _core.ENDS_CALL)
            return
        if self.answers.is_here(session):
            self.core.publish(frame, session.conn, _core.ENDS_CALL)
        elif self.answers.is_running:
            # Who said something and left has said it all the same.
            self.core.publish(frame)

    def on_refused(self, conn: int, code: int, request: int, data: bytes) -> None:
        session = self._session(conn)
        if session is None:
            return
        topic = data[8:].decode(errors="replace")
        error = ImError(code, id=int.from_bytes(data[:8]), topic=topic)
        self.answers.refuse(session, request, error, _core.ENDS_PAUSE)

    def on_unkept(self, conn: int, code: int, _b: int, data: bytes) -> None:
        self.durability.on_unkept(conn, code, data)

    def on_kept(self, token: int, code: int, _b: int, data: bytes) -> None:
        self.durability.on_kept(token, code, data)

    def on_want(self, _conn: int, _a: int, number: int, data: bytes) -> None:
        if self.followers:
            self.followers.on_want(number, data)

    def on_cursors(self, _conn: int, _a: int, _b: int, data: bytes) -> None:
        if self.followers:
            self.followers.on_cursors(data)

    def on_redelivered(self, _conn: int, is_sent: int, number: int, _data: bytes) -> None:
        if self.followers:
            self.followers.on_redelivered(number, bool(is_sent))

    def on_position(self, conn: int, type: int, number: int, data: bytes) -> None:
        session = self._session(conn)
        if session is None:
            return
        try:
            work = partial(self._settle, session, number, type == FrameType.NACK, data)
            self.answers.later(self._judging, session, 0, _core.ENDS_PAUSE, work)
        except ImError as error:
            self.answers.refuse(session, 0, error, _core.ENDS_PAUSE)

    def on_closed(self, conn: int, code: int, _b: int, _data: bytes) -> None:
        self.logins.forget(conn)
        self.upgrades.on_closed(conn, code)
        if self.followers:
            self.followers.close(conn)
        session = self.sessions.close(conn)
        if session and self.members:
            self.members.close(session)
        if session is None or not self._hooks.sees_closes:
            return
        if not self._closing.start(partial(self._hooks.close, session, code)):
            _log.error("on_close hooks are too far behind: the end of %s is not told", session.id)

    def on_sweep(self) -> None:
        """End the sessions whose token has expired."""
        self._loop_lag.add(max(0.0, time.monotonic() - self._sweep_due_s))
        try:
            for session in self.sessions.expired(time.time()):
                session.expires_s = NEVER  # once; it is in the table until the core says it closed
                self.core.close(session.conn, CloseCode.TOKEN_EXPIRED)
        finally:
            self._sweep_later()

    def _sweep_later(self) -> None:
        self._sweep_due_s = time.monotonic() + SWEEP_S
        self._sweeping = self._loop.call_later(SWEEP_S, self.on_sweep)

    # What is answered later

    async def _settle(self, session: Session, number: int, is_nack: bool, data: bytes) -> None:
        assert self.followers
        try:
            await self.followers.on_position(number, is_nack, data)
        except ImError as error:
            if error.code == ErrorCode.NOT_FOUND or not self.answers.is_here(session):
                raise
            # A later ACK would pass what could not be set aside: it comes again to who comes again.
            self.core.close(session.conn, CloseCode.OVERLOADED)
            return
        if self.answers.is_here(session):
            self.core.send(session.conn, b"", _core.ENDS_PAUSE)

    async def _subscribe(
        self, members: Members, session: Session, request: int, body: Subscribe
    ) -> None:
        await members.known(session)
        if self.answers.is_here(session):
            self.subscriptions.on_subscribe(session, request, body)

    async def _ask_store(self, session: Session, body: Call) -> Any:
        if self.members:
            await self.members.known(session)
        return await self._calls.answer_later(session, body.method, body.params)

    async def _call(self, session: Session, request: int, ask: Ask) -> None:
        self._answer(session, request, await ask())

    def _answer(self, session: Session, request: int, result: Any) -> None:
        if self.answers.is_here(session):
            frame = self._frames.result(result, session, request)
            self.core.send(session.conn, frame, _core.ENDS_CALL)

    def _session(self, conn: int) -> Session | None:
        session = self.sessions.get(conn)
        if session is None:
            # By G3 this cannot be; if it is, nobody may wait for an answer that never comes.
            self.core.close(conn, CloseCode.INTERNAL)
        return session


_HANDLERS: Final[dict[int, Callable[[Gateway, int, int, int, bytes], None]]] = {
    _core.EVENT_HELLO: Gateway.on_hello,
    _core.EVENT_FRAME: Gateway.on_frame,
    _core.EVENT_ASK: Gateway.on_ask,
    _core.EVENT_MESSAGE: Gateway.on_message,
    _core.EVENT_REFUSED: Gateway.on_refused,
    _core.EVENT_CLOSED: Gateway.on_closed,
    _core.EVENT_UNKEPT: Gateway.on_unkept,
    _core.EVENT_KEPT: Gateway.on_kept,
    _core.EVENT_WANT: Gateway.on_want,
    _core.EVENT_CURSORS: Gateway.on_cursors,
    _core.EVENT_POSITION: Gateway.on_position,
    _core.EVENT_REDELIVERED: Gateway.on_redelivered,
    _core.EVENT_UPGRADE: lambda self, conn, _a, _b, data: self.upgrades.on_upgrade(conn, data),
    _core.EVENT_WEB: lambda self, *about: self.upgrades.on_web(*about),
}

_FRAME_HANDLERS: Final[dict[int, Callable[[Gateway, Session, int, Any], None]]] = {
    FrameType.SUBSCRIBE: Gateway.on_subscribe,
    FrameType.UNSUBSCRIBE: Gateway.on_unsubscribe,
    FrameType.CALL: Gateway.on_call,
}
