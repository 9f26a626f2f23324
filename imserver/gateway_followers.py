"""Durable subscriptions of sessions: begun, fed and ended here, judged by delivery.

A follower is one subscription of one connection with a place in the topic's timeline. Its number
is what the core and delivery know it by. This is where the two meet: delivery's orders become
commands, the core's events delivery's.

    W1  a number is delivery's from the command that begins it until the core has said that it has
        ended, and how far it had got.

Not here: windows, redelivery, dead letters (delivery), live delivery (`_core`).
"""

import asyncio
import logging
import time
from collections import defaultdict
from contextlib import suppress
from itertools import count
from random import Random
from struct import Struct
from typing import Final

from imserver import _core, gateway_frames
from imserver.config import Config
from imserver.delivery import Delivery, Position
from imserver.errors import ErrorCode, ImError
from imserver.gateway_answers import Answers
from imserver.model_session import Session
from imserver.protocol import Subscribe, Subscribed
from imserver.routing import Routing
from imserver.sessions import Sessions
from imserver.timeline import Timeline

#: How often delivery looks what is due.
TICK_S: Final = 0.25
#: How long the core has to end a subscription. Longer only while its event queue is full.
END_S: Final = 1.0
#: The longest silence that a redelivery can be told to bear.
SILENCE_MAX_MS: Final = 65_535

_log = logging.getLogger("imserver.gateway")

_WANT = Struct("=QQQ")
_CURSOR = Struct("=IIQQ")


class Followers:
    """Those of one server; also delivery's courier to its core."""

    def __init__(
        self,
        config: Config,
        core: _core.Core,
        sessions: Sessions,
        routing: Routing,
        timeline: Timeline,
        answers: Answers,
    ) -> None:
        self._answers = answers
        self.delivery = Delivery(
            timeline,
            self,
            config.delivery,
            now_s=time.monotonic,
            random=Random(),
            attempts_of=self._attempts_of,
            report=self._report,
        )
        self._core = core
        self._sessions = sessions
        self._routing = routing
        self._timeline = timeline
        self._window = config.limits.window
        self._silence_ms = min(config.delivery.ack_wait_ms, SILENCE_MAX_MS)
        self._numbers = count(1)
        self._by_conn: defaultdict[int, dict[str, int]] = defaultdict(dict)
        self._ending: dict[int, asyncio.Future[None]] = {}

    def start(self) -> None:
        self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    async def stop(self) -> None:
        """What has been acknowledged goes into the store; what is due waits for the next start."""
        self._ticking.cancel()
        await self.delivery.stop()
        try:
            await self.delivery.flush()
        except ImError as error:  # the store has stopped; it has told why
            _log.error("acknowledgements of the last second are not kept: %s", error)

    def _tick(self) -> None:
        try:
            self.delivery.tick()
        finally:
            self._ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    # Subscriptions

    async def position(self, session: Session, asked: Subscribe) -> Position:
        """Where a subscription starts."""
        await self._let_go(session.conn, asked.topic)
        return await self.delivery.position(
            session.user,
            session.device,
            asked.topic,
            asked.after,
            epoch_of(asked.epoch),
            is_durable=asked.durable,
        )

    async def place_of_member(self, session: Session, topic: str) -> int | None:
        """Where a member's device begins that has no place of its own, or one from before they
        were a member: where the furthest of the user's other devices is, or with the first
        message of their time. None when it goes on where it was."""
        user = session.user
        marks = await self._timeline.marks(user, [topic])
        since = marks[topic].since_seq
        own = await self._timeline.cursor(user, session.device, topic)
        if own is not None:
            return None if own >= since else since
        places = [one.seq for one in await self._timeline.cursors(user) if one.topic == topic]
        return max(since, *places, 0)

    def begin(self, session: Session, request: int, asked: Subscribe, position: Position) -> None:
        """Follow a topic from a position; `request` 0 for what nobody asked."""
        topic, tags, is_durable = asked.topic, asked.tags, asked.durable
        self.end(session.conn, topic)
        number = next(self._numbers)
        body = Subscribed(
            topic,
            position.head,
            position.cursor,
            f"{self._timeline.epoch:x}",
            position.first,
            position.missed,
            is_durable,
        )
        self._core.follow(
            session.conn,
            number,
            topic.encode(),
            tags.encode(),
            position.cursor,
            self._window if is_durable else 0,
            gateway_frames.subscribed(body, session, request),
            _core.ENDS_PAUSE if request else _core.ENDS_NOTHING,
        )
        self._by_conn[session.conn][topic] = number
        self.delivery.open(
            number,
            session.conn,
            session.user,
            session.device,
            topic,
            cursor=position.cursor,
            is_acked=is_durable,
            tags=tags,
        )

    def end(self, conn: int, topic: str) -> int | None:
        """The core has been told to end the subscription, if there is one: its number."""
        return self._by_conn[conn].pop(topic, None) if conn in self._by_conn else None

    async def _let_go(self, conn: int, topic: str) -> None:
        """End a subscription that is about to be replaced, and wait for its last word: the next
        one begins behind what it had acknowledged."""
        number = self.end(conn, topic)
        if number is None:
            return
        self._core.unsubscribe(conn, topic.encode(), b"")
        self._ending[number] = asyncio.get_running_loop().create_future()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_S):
                await self._ending[number]
        del self._ending[number]
        self.delivery.unsubscribe(number)

    def close(self, conn: int) -> None:
        self._by_conn.pop(conn, None)
        self.delivery.close(conn)

    def _attempts_of(self, topic: str) -> int:
        policy = self._routing.policy(topic)
        return policy.attempts if policy else 0

    def _report(self, conn: int, topic: str, first: int, last: int, reason: str) -> None:
        session = self._sessions.get(conn)
        if session:
            text = f"messages {first} to {last} are gone: {reason}"
            error = ImError(ErrorCode.LOST, text, topic=topic)
            self._answers.refuse(session, 0, error)

    # Events

    def on_want(self, number: int, data: bytes) -> None:
        self.delivery.on_want(number, *_WANT.unpack(data))

    def on_cursors(self, data: bytes) -> None:
        reports = list(_CURSOR.iter_unpack(data))
        self.delivery.on_cursors((number, acked, sent) for number, _, acked, sent in reports)
        for number, has_ended, _, _ in reports:
            if has_ended:
                self.delivery.unsubscribe(number)
                if (last_word := self._ending.get(number)) and not last_word.done():
                    last_word.set_result(None)

    def on_redelivered(self, number: int, is_sent: bool) -> None:
        self.delivery.on_redelivered(number, is_sent)

    async def on_position(self, number: int, is_nack: bool, data: bytes) -> None:
        """A NACK or an old ACK. ImError as it is to be answered."""
        seq, acked, sent = _WANT.unpack(data)
        self.delivery.on_cursors([(number, acked, sent)])
        await (self.delivery.on_nack if is_nack else self.delivery.on_ack)(number, seq)

    # Delivery's courier

    def feed(self, conn: int, number: int, frames: bytes, last: int, head: int) -> None:
        self._core.feed(conn, number, frames, last, head)

    def redeliver(self, conn: int, number: int, frames: bytes) -> None:
        self._core.redeliver(conn, number, frames, self._silence_ms)

    def advance(self, conn: int, number: int, seq: int) -> None:
        self._core.advance(conn, number, seq)


def epoch_of(text: str) -> int | None:
    """The number in the text of a SUBSCRIBE; None for none. A text that is no epoch of ours is
    another one."""
    if not text:
        return None
    try:
        return int(text, 16)
    except ValueError:
        return 0
