"""Durable publishes that wait for their receipts.

Each is kept here until the server has said that the message is on its disk, or that it never
will be. What is unanswered when a connection ends is sent again on the next one, in its order
and with its id, so that the server keeps it once.

    P1  at most MAX_PUBLISHES wait, and MAX_BYTES of frames; further ones are waited with.
    P2  ids go upwards, and each connection sees those that it is sent in this order, except what
        the server itself has put off.
    P3  every future ends: with the receipt, the refusal, its own time, or the client's end.

Not here: connections (client_link), what a message looks like (protocol).
"""

import asyncio
from collections.abc import Callable
from functools import partial

from imserver.client_itinerary import back_off_ms
from imserver.client_link import Link
from imserver.errors import ErrorCode, ImError, may_retry
from imserver.protocol import RETRY, Receipt

#: More than a disk takes in one commit at its usual pace, and a bounded number to repeat.
MAX_PUBLISHES = 1024
MAX_BYTES = 4 << 20

_FLAGS_AT = 5


class Publish:
    """One message without a receipt. `link` is the connection that it was last sent on, None
    before the first and while the server has put it off."""

    __slots__ = ("attempts", "deadline", "frame", "id", "link", "pause", "receipt", "topic")

    def __init__(self, id: int, topic: str, frame: bytes, receipt: asyncio.Future[Receipt]) -> None:
        self.id = id
        self.topic = topic
        self.frame = frame
        self.receipt = receipt
        self.link: Link | None = None
        self.attempts = 0
        self.pause: asyncio.TimerHandle | None = None
        self.deadline: asyncio.TimerHandle | None = None


class Publishes:
    """Those of one client, across its connections. `sent` is called when one was sent: a receipt
    is expected, which must not wait behind messages that nobody reads."""

    def __init__(self, sent: Callable[[], None]) -> None:
        self._sent = sent
        self._link: Link | None = None
        self._unanswered: dict[int, Publish] = {}
        self._bytes = 0
        self._room = asyncio.Event()

    def _has_room(self, frame_bytes: int) -> bool:
        count = len(self._unanswered)
        return not count or (count < MAX_PUBLISHES and self._bytes + frame_bytes <= MAX_BYTES)

    async def room(self, frame_bytes: int, timeout_s: float) -> None:
        """Wait until there is room; for one frame there always is. ImError 408."""
        if self._has_room(frame_bytes):
            return
        try:
            async with asyncio.timeout(timeout_s):
                while not self._has_room(frame_bytes):
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            text = "too many messages wait for their receipts"
            raise ImError(ErrorCode.TIMEOUT, text) from None

    def add(
        self, id: int, topic: str, frame: bytes, retry_s: float | None
    ) -> asyncio.Future[Receipt]:
        """Send it now, or on the next connection. ImError 408 after `retry_s`."""
        loop = asyncio.get_running_loop()
        one = Publish(id, topic, frame, loop.create_future())
        if self._link:
            self._link.send(frame)  # raises when it is too long
            one.link = self._link
        self._unanswered[id] = one
        self._bytes += len(frame)
        if retry_s is not None:
            one.deadline = loop.call_later(retry_s, self._expire, one)
        one.receipt.add_done_callback(partial(self._forget, one))
        self._sent()
        return one.receipt

    def resume(self, link: Link) -> None:
        """There is a connection again: everything unanswered, before anything new."""
        self._link = link
        for one in list(self._unanswered.values()):
            if one.pause is None:
                self._repeat(one)

    def suspend(self) -> None:
        """Nothing more can be sent; receipts may still come."""
        self._link = None

    def is_owed(self, link: Link) -> bool:
        """Whether a receipt may still come on this connection."""
        return any(one.link is link for one in self._unanswered.values())

    def receipt_came(self, receipt: Receipt) -> None:
        one = self._unanswered.get(receipt.id)
        if one and not one.receipt.done():
            one.receipt.set_result(receipt)
            self._forget(one)

    def refused(self, error: ImError) -> bool:
        """False when the error is about none of these."""
        one = self._unanswered.get(error.id)
        if one is None or one.topic != error.topic:
            return False
        if not may_retry(error.code):
            self._fail(one, error)
        elif one.link:
            wait_ms = error.retry_after_ms + back_off_ms(one.attempts, one.link.welcome.reconnect)
            one.attempts += 1
            one.pause = one.link.loop.call_later(wait_ms / 1000, self._again, one)
            one.link = None
        return True

    async def settled(self, timeout_s: float) -> None:
        """Wait until those that wait now have been answered. What has not been in time fails with
        ImError 408."""
        receipts = [one.receipt for one in self._unanswered.values()]
        if receipts:
            await asyncio.wait(receipts, timeout=timeout_s)
        for one in list(self._unanswered.values()):
            self._time_out(one, "the client was closed before the receipt came")

    def end(self, error: ImError) -> None:
        for one in list(self._unanswered.values()):
            self._fail(one, error)

    def _again(self, one: Publish) -> None:
        one.pause = None
        if self._link:
            self._repeat(one)

    def _repeat(self, one: Publish) -> None:
        assert self._link
        if one.link or one.attempts:
            flags = one.frame[_FLAGS_AT] | RETRY
            one.frame = one.frame[:_FLAGS_AT] + bytes((flags,)) + one.frame[_FLAGS_AT + 1 :]
        try:
            self._link.send(one.frame)
            one.link = self._link
            self._sent()
        except ImError as error:  # this server takes shorter frames than the one before
            self._fail(one, ImError(error.code, error.message, id=one.id, topic=one.topic))

    def _expire(self, one: Publish) -> None:
        self._time_out(one, "no receipt in time")

    def _time_out(self, one: Publish, text: str) -> None:
        text = f"{text}: nobody knows whether the message is kept"
        self._fail(one, ImError(ErrorCode.TIMEOUT, text, id=one.id, topic=one.topic))

    def _fail(self, one: Publish, error: ImError) -> None:
        if not one.receipt.done():
            one.receipt.set_exception(error)
        self._forget(one)

    def _forget(self, one: Publish, _: object = None) -> None:
        """It has been answered, or nobody waits for the answer any more."""
        if self._unanswered.pop(one.id, None) is None:
            return
        self._bytes -= len(one.frame)
        self._room.set()
        for timer in (one.pause, one.deadline):
            if timer:
                timer.cancel()
