"""The asyncio client: publish, subscribe, call, and stay connected.

    async with Client("127.0.0.1:7400", token=token) as client:
        await client.publish("room:lobby", {"text": "hello"})
        async for message in await client.subscribe("room:lobby"):
            print(message.sender, message.value())

A lost connection is made again by itself, at the times and places that the server advertised,
and subscriptions are renewed. Messages of live topics that pass in between are not seen; durable
ones are, and durable publishes are repeated until they have their receipts:

    receipt = await client.publish("room:lobby", "keep this", durable=True)
    print((await receipt).seq)  # it is on the server's disk
    async with await client.subscribe("room:lobby", durable=True) as subscription:
        async for message in subscription:
            subscription.ack(message)

    C1  every wait is bounded: by a timeout of its caller or by the heartbeat.
    C2  nothing that arrived is dropped: a subscription that is not read stops the reading.

Not here: a single connection's life (client_link), what waits to be read
(client_subscription), reconnecting (client_journey), what waits for a receipt
(client_publishes), what was acknowledged (client_cursor), unasked subscriptions (client_joined).
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self, overload

from imserver.client_cursor import Cursor
from imserver.client_itinerary import parse_address
from imserver.client_joined import Joined
from imserver.client_journey import Journey, Token
from imserver.client_link import Link
from imserver.client_publishes import Publishes
from imserver.client_subscription import Inbox, Subscription
from imserver.errors import Closed, ErrorCode, ImError, may_retry
from imserver.model import CODEC_BYTES, CODECS, Message, encode_value
from imserver.protocol import (
    DURABLE,
    NO_ECHO,
    VERSION,
    Body,
    Call,
    Error,
    FrameType,
    Hello,
    Receipt,
    Result,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    Welcome,
    check_identifier,
    check_tag,
    check_tags,
    check_topic,
    encode_message,
)

__all__ = ["Client", "Receipt", "Subscription", "parse_address"]

_log = logging.getLogger("imserver.client")


class Client:
    """A user's connection to a server, kept alive.

    `address`: "host:port" or (host, port). `token`: the text, or an async function that is
    asked for one before every connection. `user`: in place of a token, with --dev servers.
    `codec`: "json", "msgpack" or "protobuf", for what is said to the server and for bodies that
    are not bytes. `queue_messages`: how many messages a subscription holds before reading
    stops. `connect_timeout_s` bounds one attempt and the whole of `start`; `wait_timeout_s`
    bounds how long publish and subscribe wait for a connection and its room.

    Callbacks are plain functions, run by the event loop:
    `on_error(ImError)` for refused publishes (`id` and `topic` say which) and other errors that
    no call waits for: 410, messages of `topic` were kept and are gone, or it is numbered anew;
    442, there was no room to subscribe us to `topic` as its member. Without it they are logged.
    `on_message(Message)` for topics that no Subscription reads: broadcasts, and those the server
    subscribed us to, where returning acknowledges a durable message and raising has it sent
    again later. `on_connect(Welcome)` and `on_disconnect(Closed)` at each connection and its end.
    """

    def __init__(
        self,
        address: str | tuple[str, int],
        *,
        token: Token = None,
        user: str | None = None,
        device: str = "default",
        codec: str = "json",
        name: str = "imserver-python",
        queue_messages: int = 256,
        connect_timeout_s: float = 10.0,
        wait_timeout_s: float = 10.0,
        on_error: Callable[[ImError], object] | None = None,
        on_message: Callable[[Message], object] | None = None,
        on_connect: Callable[[Welcome], object] | None = None,
        on_disconnect: Callable[[Closed], object] | None = None,
    ) -> None:
        if CODECS.get(codec, CODEC_BYTES) == CODEC_BYTES:
            raise ValueError(f"codec is json, msgpack or protobuf, not {codec!r}")
        self.on_error, self.on_message = on_error, on_message
        self.on_connect, self.on_disconnect = on_connect, on_disconnect
        self._codec = CODECS[codec]
        self._wait_timeout_s = wait_timeout_s
        self._journey = Journey(
            parse_address(address) if isinstance(address, str) else address,
            token,
            Hello(VERSION, user=user, device=check_identifier(device), client=name),
            self._codec,
            self,
            connect_timeout_s=connect_timeout_s,
            wait_timeout_s=wait_timeout_s,
        )
        self._inbox = Inbox(queue_messages, self._regulate, self._leave)
        self._joined = Joined()
        self._publishes = Publishes(self._regulate)
        # Microseconds since 1970: upwards from run to run, and exact in a JavaScript number.
        self._last_id = time.time_ns() // 1000

    # Life

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Connect. Tries for `connect_timeout_s`, then raises why it failed: `Closed`, or
        OSError when there was no answer. A 40xx close code is raised at once."""
        await self._journey.start()

    async def close(self) -> None:
        """Send what was published and acknowledged, then disconnect. Waits for receipts up to
        `wait_timeout_s`; those that are missing then fail with ImError 408. Subscriptions end."""
        await self._publishes.settled(self._wait_timeout_s)
        for cursor in (*self._inbox.cursors(), *self._joined.cursors()):
            cursor.flush()
        await self._journey.stop()

    @property
    def is_connected(self) -> bool:
        return self._journey.link is not None

    @property
    def welcome(self) -> Welcome | None:
        """What the server said when it last welcomed us: user, session, limits."""
        return self._journey.welcome

    # Verbs

    @overload
    async def publish(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        codec: str | None = None,
        no_echo: bool = False,
        durable: Literal[False] = False,
    ) -> int: ...

    @overload
    async def publish(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        codec: str | None = None,
        no_echo: bool = False,
        durable: Literal[True],
        retry_s: float | None = None,
    ) -> asyncio.Future[Receipt]: ...

    async def publish(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        codec: str | None = None,
        no_echo: bool = False,
        durable: bool = False,
        retry_s: float | None = None,
    ) -> int | asyncio.Future[Receipt]:
        """Send a message to a topic; returns its id, or with `durable` the future of its receipt.

        bytes are sent as they are (`codec` says what they hold, default "bytes"), everything
        else is encoded with `codec`, by default the client's. ImError 422 for a bad topic or
        tag, 413 for a frame over the limit, ValueError for a body that cannot be encoded.

        Without `durable` it waits for a connection and for room in its buffer, up to
        `wait_timeout_s`: ImError 408. Returning means handed to the socket, not received; a
        refusal by the server comes to `on_error`.

        With `durable` it waits, as long, for room among those without a receipt. The future
        resolves when the message is on the server's disk, and fails with the ImError that the
        server refused it with, or `Closed`. Until then the message is repeated with the same id
        on every new connection, and when the server puts it off; `retry_s` ends that with ImError
        408: nobody knows whether it is kept. Cancelling the future ends it too, and recalls
        nothing. One that was put off may come behind later ones: wait for each receipt where
        the order matters.
        """
        check_topic(topic)
        check_tag(tag)
        if isinstance(body, bytes | bytearray | memoryview):
            kind, data = CODECS[codec or "bytes"], bytes(body)
        else:
            kind = CODECS[codec] if codec else self._codec
            data = encode_value(body, kind)
        flags = (NO_ECHO if no_echo else 0) | (DURABLE if durable else 0)
        link = self._journey.link
        if durable:
            self._journey.check_running()
            await self._publishes.room(len(data), self._wait_timeout_s)
            self._journey.check_running()
        elif link is None or link.is_full:
            link = await self._journey.usable()
        welcome = self._journey.welcome
        assert welcome
        self._last_id += 1
        id, user = self._last_id, welcome.user
        frame = encode_message(topic, user, data, tag=tag, id=id, flags=flags, codec=kind)
        if durable:
            return self._publishes.add(id, topic, frame, retry_s)
        assert link
        link.send(frame)
        return id

    async def subscribe(
        self,
        topic: str,
        tags: str = "*",
        *,
        durable: bool = False,
        after: int | None = None,
        epoch: str = "",
    ) -> Subscription:
        """Receive a topic; `tags` picks: "*", or "a||b". ImError when refused, 507 where the
        server keeps nothing, 409 for a topic that this client already reads, 408 without an
        answer in time.

        From now on, and after a lost connection from then on; or with `durable` what this user
        and device have not acknowledged yet, the first time from now on; or everything behind
        the seq `after`, and after a lost connection where it ended. `durable` with `after`
        sets the place that is remembered. `epoch`: the `Subscription.epoch` that `after` was
        read under; when the topic is numbered anew since, everything that is kept comes.
        """
        topic, tags = check_topic(topic), check_tags(tags)
        self._journey.check_running()
        cursor = None
        if durable or after is not None:
            cursor = Cursor(topic, is_durable=durable, after=after, epoch=epoch)
        subscription = Subscription(topic, tags, self._inbox, cursor)
        if self._inbox.by_topic.setdefault(topic, subscription) is not subscription:
            raise ImError(ErrorCode.CONFLICT, f"already subscribed to {topic}")
        self._joined.end(topic)
        try:
            async with asyncio.timeout(self._wait_timeout_s):
                self._open(subscription)  # or with the others, when there is a connection
                await subscription.opened
        except BaseException as error:
            self._inbox.forget(subscription, None)
            if not isinstance(error, ImError) and self._journey.link:
                self._journey.link.tell(FrameType.UNSUBSCRIBE, Unsubscribe(topic))
            if isinstance(error, TimeoutError):
                raise ImError(ErrorCode.TIMEOUT, f"no answer about {topic} in time") from None
            raise
        return subscription

    async def call(self, method: str, params: Any = None, timeout_s: float = 10.0) -> Any:
        """Ask the server; the result is JSON-like. ImError as the server refused, 408 when
        there was no answer in time or the connection ended first: it may have been done."""
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._journey.usable()
                answer = await self._request(link, FrameType.CALL, Call(method, params))
        except TimeoutError:
            raise ImError(ErrorCode.TIMEOUT, f"no answer to {method} in time") from None
        assert isinstance(answer, Result)
        return answer.result

    # What the Journey reports (client_journey.Traveller)

    def arrived(self, link: Link) -> None:
        if link.is_usable:
            # Before anybody can publish on it: a publisher sees its own first message.
            for subscription in self._inbox.by_topic.values():
                self._open(subscription)
            self._publishes.resume(link)
            self._regulate()
        self._tell(self.on_connect, link.welcome)

    def departed(self, closed: Closed) -> None:
        self._tell(self.on_disconnect, closed)

    def finished(self, final: Closed, error: Closed | None) -> None:
        self._publishes.end(final)
        for subscription in list(self._inbox.by_topic.values()):
            self._inbox.forget(subscription, error)

    # Subscriptions

    def _request(self, link: Link, type: FrameType, body: Body) -> asyncio.Future[Body]:
        answer = link.request(type, body)
        answer.add_done_callback(lambda _: self._regulate())
        self._regulate()
        return answer

    def _open(self, subscription: Subscription) -> None:
        """Ask for a subscription, for the first time or again."""
        link = self._journey.link
        if link is None or subscription.is_ended:
            return
        answer = self._request(link, FrameType.SUBSCRIBE, subscription.question())
        answer.add_done_callback(partial(self._on_opened, subscription, link))

    def _on_opened(
        self, subscription: Subscription, link: Link, answer: asyncio.Future[Body]
    ) -> None:
        error = answer.exception()
        if error is None:
            if not subscription.opened.done():
                subscription.opened.set_result(None)
        elif not link.is_usable:
            pass  # the next connection asks again
        elif isinstance(error, ImError) and subscription.opened.done() and may_retry(error.code):
            policy = link.welcome.reconnect
            delay_ms = error.retry_after_ms + random.uniform(policy.base_ms, policy.max_ms)
            link.loop.call_later(delay_ms / 1000, self._open, subscription)
        else:
            assert isinstance(error, ImError)
            self._inbox.forget(subscription, error)

    async def _leave(self, subscription: Subscription) -> None:
        link = self._journey.link
        if link and self._inbox.by_topic.get(subscription.topic) is subscription:
            try:
                async with asyncio.timeout(self._wait_timeout_s):
                    body = Unsubscribe(subscription.topic)
                    await self._request(link, FrameType.UNSUBSCRIBE, body)
            except (ImError, TimeoutError):
                pass  # gone with its connection, or the server ended it first
        self._inbox.forget(subscription, None)

    def _regulate(self) -> None:
        if link := self._journey.reading:
            if self._inbox.is_stuck(link.is_waiting):
                link.pause()
            else:
                link.resume()

    # What a Link reports (client_link.Owner)

    def message_came(self, message: Message) -> None:
        if not self._inbox.deliver(message):
            self._joined.deliver(message, self.on_message)

    def receipt_came(self, receipt: Receipt) -> None:
        self._publishes.receipt_came(receipt)

    def is_owed(self, link: Link) -> bool:
        return self._publishes.is_owed(link)

    def subscribed(self, link: Link, body: Subscribed, is_asked: bool) -> None:
        subscription = self._inbox.by_topic.get(body.topic)
        if subscription:
            cursor = subscription.cursor
            if not is_asked and not (cursor and cursor.is_open):
                return  # ours is about to replace it
        elif is_asked or not body.durable:
            return
        elif self.on_message is None:
            link.tell(FrameType.UNSUBSCRIBE, Unsubscribe(body.topic))
            return
        else:
            cursor = self._joined.cursor(body.topic)
        if cursor and cursor.begin(body, link.welcome.limits.window, link.send):
            text = f"{body.topic} is numbered anew; what is kept comes again"
            self._report(ImError(ErrorCode.LOST, text, topic=body.topic))

    def notice_came(self, body: Body) -> None:
        if isinstance(body, Unsubscribed):
            self._joined.end(body.topic)
            subscription = self._inbox.by_topic.get(body.topic)
            if subscription:
                self._inbox.forget(subscription, ImError(body.code) if body.code else None)
        elif isinstance(body, Error):
            error = body.exception()
            if not self._publishes.refused(error):
                self._report(error)

    def _report(self, error: ImError) -> None:
        if self.on_error:
            self._tell(self.on_error, error)
        elif error.id:
            _log.warning("the server refused message %d to %r: %s", error.id, error.topic, error)
        else:
            _log.warning("about %r: %s", error.topic, error)

    def link_leaves(self, link: Link) -> None:
        for cursor in (*self._inbox.cursors(), *self._joined.cursors()):
            cursor.pause()
        self._publishes.suspend()
        self._journey.leave(link)

    def _tell(self, callback: Callable[[Any], object] | None, news: object) -> None:
        # Later and by the loop: what the application raises must not end the connection.
        if callback:
            asyncio.get_running_loop().call_soon(callback, news)
