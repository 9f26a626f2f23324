"""The asyncio client: publish, subscribe, call, and stay connected.

    async with Client("127.0.0.1:7400", token=token) as client:
        await client.publish("room:lobby", {"text": "hello"})
        async for message in await client.subscribe("room:lobby"):
            print(message.sender, message.value())

A lost connection is made again by itself, at the times and places that the server advertised,
and subscriptions are renewed. Messages of live topics that pass in between are not seen.

    C1  every wait is bounded: by a timeout of its caller or by the heartbeat.
    C2  nothing that arrived is dropped: a subscription that is not read stops the reading.

Not here: a single connection's life (client_link), what waits to be read
(client_subscription), where and when to reconnect (client_itinerary).
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Self

import msgspec

from imserver.client_itinerary import Itinerary, parse_address
from imserver.client_link import Link, open_link
from imserver.client_subscription import Inbox, Subscription
from imserver.errors import Action, Closed, ErrorCode, ImError, may_retry
from imserver.model import CODEC_BYTES, CODECS, Message, encode_value
from imserver.protocol import (
    NO_ECHO,
    VERSION,
    Body,
    Call,
    Error,
    FrameType,
    Hello,
    Result,
    Subscribe,
    Unsubscribe,
    Unsubscribed,
    Welcome,
    check_identifier,
    check_tag,
    check_tags,
    check_topic,
    encode_message,
)

__all__ = ["Client", "Subscription", "parse_address"]

Token = str | Callable[[], Awaitable[str]] | None

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
    no call waits for; without it they are logged. `on_message(Message)` for topics that no
    Subscription reads: broadcasts, and those the server subscribed us to. `on_connect(Welcome)`
    and `on_disconnect(Closed)` at every connection and its end.
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
        self._home = parse_address(address) if isinstance(address, str) else address
        self._token = token
        self._hello = Hello(VERSION, user=user, device=check_identifier(device), client=name)
        self._codec = CODECS[codec]
        self._connect_timeout_s = connect_timeout_s
        self._wait_timeout_s = wait_timeout_s
        self._inbox = Inbox(queue_messages, self._regulate, self._leave)
        self._welcome: Welcome | None = None
        self._link: Link | None = None  # the one to send on
        self._reading: Link | None = None  # the same, and on after GOAWAY until its end
        self._ready = asyncio.Event()  # set while there is a link, and for good at the end
        self._final: Closed | None = None
        self._last: Exception | None = None  # why there is no connection
        self._task: asyncio.Task[None] | None = None
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
        self._task = asyncio.create_task(self._stay_connected())
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._ready.wait()
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                raise self._last or TimeoutError("the server did not answer") from None
            raise
        if self._final:
            raise self._final

    async def close(self) -> None:
        """Send what was published, then disconnect. Subscriptions end."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        link, self._link = self._reading, None
        self._ready.clear()
        if link and not link.closed.done():
            link.close()
            await asyncio.wait([link.closed], timeout=self._wait_timeout_s)
            link.abort()
        self._finish(self._final or Closed(0, "the client is closed"), None)

    @property
    def is_connected(self) -> bool:
        return self._link is not None

    @property
    def welcome(self) -> Welcome | None:
        """What the server said when it last welcomed us: user, session, limits."""
        return self._welcome

    # Verbs

    async def publish(
        self,
        topic: str,
        body: Any,
        *,
        tag: str = "",
        codec: str | None = None,
        no_echo: bool = False,
    ) -> int:
        """Send a message to a topic; returns its id.

        bytes are sent as they are (`codec` says what they hold, default "bytes"), everything
        else is encoded with `codec`, by default the client's. Waits for a connection and for
        room in its buffer, up to `wait_timeout_s`: ImError 408. Returning means handed to the
        socket, not received; a refusal by the server comes to `on_error`. ImError 422 for a bad
        topic or tag, 413 for a frame over the limit, ValueError for a body that cannot be encoded.
        """
        check_topic(topic)
        check_tag(tag)
        if isinstance(body, bytes | bytearray | memoryview):
            kind, data = CODECS[codec or "bytes"], bytes(body)
        else:
            kind = CODECS[codec] if codec else self._codec
            data = encode_value(body, kind)
        link = self._link
        if link is None or link.is_full:
            link = await self._usable()
        self._last_id += 1
        id, flags = self._last_id, NO_ECHO if no_echo else 0
        user = link.welcome.user
        link.send(encode_message(topic, user, data, tag=tag, id=id, flags=flags, codec=kind))
        return id

    async def subscribe(self, topic: str, tags: str = "*") -> Subscription:
        """Receive a topic from now on; `tags` picks: "*", or "a||b". ImError when refused,
        409 for a topic that this client already reads, 408 without an answer in time."""
        topic, tags = check_topic(topic), check_tags(tags)
        self._check_running()
        subscription = Subscription(topic, tags, self._inbox)
        if self._inbox.by_topic.setdefault(topic, subscription) is not subscription:
            raise ImError(ErrorCode.CONFLICT, f"already subscribed to {topic}")
        try:
            async with asyncio.timeout(self._wait_timeout_s):
                if self._link:  # else it is opened with the others when the next one is made
                    self._open(subscription)
                await subscription.opened
        except BaseException as error:
            self._inbox.forget(subscription, None)
            if not isinstance(error, ImError) and self._link:
                self._link.tell(FrameType.UNSUBSCRIBE, Unsubscribe(topic))
            if isinstance(error, TimeoutError):
                raise ImError(ErrorCode.TIMEOUT, f"no answer about {topic} in time") from None
            raise
        return subscription

    async def call(self, method: str, params: Any = None, timeout_s: float = 10.0) -> Any:
        """Ask the server; the result is JSON-like. ImError as the server refused, 408 when
        there was no answer in time or the connection ended first: it may have been done."""
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._usable()
                answer = await self._request(link, FrameType.CALL, Call(method, params))
        except TimeoutError:
            raise ImError(ErrorCode.TIMEOUT, f"no answer to {method} in time") from None
        assert isinstance(answer, Result)
        return answer.result

    # Connections

    async def _stay_connected(self) -> None:
        try:
            closed = await self._travel()
        except Exception as error:
            _log.exception("the client failed")
            closed = Closed(0, f"the client failed: {error!r}")
        self._finish(closed, closed)

    async def _travel(self) -> Closed:
        """Connection after connection, until one ends with a code that says stop."""
        loop = asyncio.get_running_loop()
        itinerary = Itinerary(self._home)
        while True:
            began_s = loop.time()
            closed = await self._connection(itinerary.address)
            if closed.action is Action.STOP:
                return closed
            lived_ms = (loop.time() - began_s) * 1000
            delay_ms = itinerary.after(closed, lived_ms, self._welcome)
            _log.info("%s; next attempt in %d ms", closed, delay_ms)
            await asyncio.sleep(delay_ms / 1000)

    async def _connection(self, address: tuple[str, int]) -> Closed:
        """One attempt: from connecting to why it ended."""
        try:
            token = self._token if isinstance(self._token, str | None) else await self._token()
        except Exception as error:  # the application's: whatever it is, try again later
            self._last = error
            return Closed(0, f"no token: {error!r}")
        try:
            hello = msgspec.structs.replace(self._hello, token=token)
            link = await open_link(address, hello, self._codec, self, self._connect_timeout_s)
        except (Closed, OSError, ValueError) as error:
            self._last = error
            return error if isinstance(error, Closed) else Closed(0, str(error))
        self._welcome, self._reading = link.welcome, link
        if link.is_usable:
            self._link = link
            # Before anybody can publish on it: a publisher sees its own first message.
            for subscription in self._inbox.by_topic.values():
                self._open(subscription)
            self._regulate()
            self._ready.set()
        self._tell(self.on_connect, link.welcome)
        await asyncio.wait([link.closed])
        closed = self._last = link.closed.result()
        self._reading = None
        self._tell(self.on_disconnect, closed)
        return closed

    def _finish(self, final: Closed, error: Closed | None) -> None:
        self._final = final
        self._ready.set()
        for subscription in list(self._inbox.by_topic.values()):
            self._inbox.forget(subscription, error)

    async def _usable(self) -> Link:
        """A connection with room to send. ImError 408 after `wait_timeout_s` without."""
        self._check_running()
        try:
            async with asyncio.timeout(self._wait_timeout_s):
                while True:
                    await self._ready.wait()
                    self._check_running()
                    assert self._link
                    if not self._link.is_full:
                        return self._link
                    await self._link.room()
        except TimeoutError:
            raise ImError(ErrorCode.TIMEOUT, "no connection with room in time") from None

    def _check_running(self) -> None:
        if self._task is None:
            raise RuntimeError("not started: use `async with Client(...)` or `start()`")
        if self._final:
            raise self._final

    # Subscriptions

    def _request(self, link: Link, type: FrameType, body: Body) -> asyncio.Future[Body]:
        answer = link.request(type, body)
        answer.add_done_callback(lambda _: self._regulate())
        self._regulate()
        return answer

    def _open(self, subscription: Subscription) -> None:
        """Ask for a subscription, for the first time or again."""
        link = self._link
        if link is None or subscription.is_ended:
            return
        body = Subscribe(subscription.topic, subscription.tags)
        answer = self._request(link, FrameType.SUBSCRIBE, body)
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
        link = self._link
        if link and self._inbox.by_topic.get(subscription.topic) is subscription:
            try:
                async with asyncio.timeout(self._wait_timeout_s):
                    body = Unsubscribe(subscription.topic)
                    await self._request(link, FrameType.UNSUBSCRIBE, body)
            except (ImError, TimeoutError):
                pass  # gone with its connection, or the server ended it first
        self._inbox.forget(subscription, None)

    def _regulate(self) -> None:
        if link := self._reading:
            if self._inbox.is_stuck(link.is_waiting):
                link.pause()
            else:
                link.resume()

    # What a Link reports (client_link.Owner)

    def message_came(self, message: Message) -> None:
        if not self._inbox.deliver(message):
            self._tell(self.on_message, message)

    def notice_came(self, body: Body) -> None:
        if isinstance(body, Unsubscribed):
            subscription = self._inbox.by_topic.get(body.topic)
            if subscription:
                self._inbox.forget(subscription, ImError(body.code) if body.code else None)
        elif isinstance(body, Error):
            error = body.exception()
            if self.on_error:
                self._tell(self.on_error, error)
            else:
                _log.warning("the server refused message %d to %r: %s", body.id, body.topic, error)

    def link_leaves(self, link: Link) -> None:
        if self._link is link:
            self._link = None
            self._ready.clear()

    def _tell(self, callback: Callable[[Any], object] | None, news: object) -> None:
        # Later and by the loop: what the application raises must not end the connection.
        if callback:
            asyncio.get_running_loop().call_soon(callback, news)
