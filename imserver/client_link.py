"""One connection of a client, from HELLO to its end.

An asyncio.Protocol and not streams: a frame costs no task switch. What is sent in one turn of
the event loop leaves in one write. Nothing here outlives the connection; `Client` makes the
next one.

    L1  nothing is handed on while reading is paused: what has arrived waits in the reader.
    L2  every request is answered once: by the server, by its caller's timeout, or by the end.
    L3  `closed` is set exactly once, after everything else has been told.

Not here: reconnecting, subscriptions, what a message means.
"""

import asyncio
from functools import partial
from typing import Protocol, cast

from imserver.errors import Action, CloseCode, Closed, ErrorCode, ImError
from imserver.model import Message
from imserver.protocol import (
    Body,
    Error,
    Frame,
    FrameReader,
    FrameType,
    Goaway,
    Hello,
    Receipt,
    Subscribed,
    Welcome,
    decode_body,
    decode_message,
    decode_receipt,
    encode_bare,
    encode_frame,
)

#: Bytes gathered before a writer has to wait for its turn to write them.
GATHER_BYTES = 64 << 10

#: A frame's limit until WELCOME names the server's own.
FIRST_FRAME_BYTES = 64 << 10

#: Requests in flight on one connection. Half of the numbers there are, so that a number whose
#: caller gave up is not used again before its late answer has passed.
MAX_REQUESTS = 1 << 15

#: How long answers may still arrive after GOAWAY.
LINGER_S = 10.0


class Owner(Protocol):
    """Who a connection reports to. Called from the event loop; must not block or raise."""

    def message_came(self, message: Message) -> None: ...

    def receipt_came(self, receipt: Receipt) -> None: ...

    def subscribed(self, link: "Link", body: Subscribed, is_asked: bool) -> None:
        """A subscription begins, asked for or not. Before the answer of the request, and perhaps
        before `open_link` has returned: messages may follow in the same read."""

    def notice_came(self, body: Body) -> None:
        """UNSUBSCRIBED or ERROR that no request waits for."""

    def link_leaves(self, link: "Link") -> None:
        """Nothing new may be sent: GOAWAY came, or the connection is gone."""

    def is_owed(self, link: "Link") -> bool:
        """Whether a receipt may still come on it."""


class Link(asyncio.Protocol):
    """Made by `open_link`; usable until `link_leaves`."""

    welcome: Welcome

    def __init__(self, owner: Owner, codec: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[Closed] = self.loop.create_future()
        self._owner = owner
        self._codec = codec
        self._reader = FrameReader(FIRST_FRAME_BYTES)
        self._max_frame_bytes = FIRST_FRAME_BYTES
        self._requests: dict[int, asyncio.Future[Body]] = {}
        self._last_request = 0
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._writable = asyncio.Event()
        self._reading_paused = False
        self._reason: Closed | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._heard_s = self._spoke_s = self.loop.time()

    # Sending

    def send(self, frame: bytes) -> None:
        """Queue a frame. ImError 413 when the server would refuse its length."""
        if len(frame) > self._max_frame_bytes:
            text = f"a frame of {len(frame)} bytes; the server takes {self._max_frame_bytes}"
            raise ImError(ErrorCode.TOO_LARGE, text)
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(frame)
        self._out_bytes += len(frame)

    def request(self, type: FrameType, body: Body) -> asyncio.Future[Body]:
        """Send a control frame; the future is its answer, or the ImError it was refused with.

        When the connection ends first, that is `Closed` if the client has to stop, else
        ImError 408: nobody knows whether the request was carried out.
        """
        if len(self._requests) >= MAX_REQUESTS:
            raise ImError(ErrorCode.TOO_MANY_REQUESTS, "too many unanswered requests")
        number = self._last_request % 0xFFFF + 1
        while number in self._requests:
            number = number % 0xFFFF + 1
        self.send(encode_frame(type, body, self._codec, number))
        self._last_request = number
        answer: asyncio.Future[Body] = self.loop.create_future()
        self._requests[number] = answer
        answer.add_done_callback(partial(self._answered, number))
        return answer

    def tell(self, type: FrameType, body: Body) -> None:
        """Send a control frame whose answer nobody waits for."""
        self.send(encode_frame(type, body, self._codec))

    @property
    def is_usable(self) -> bool:
        """Whether something new may be sent."""
        return self._reason is None and not self.closed.done()

    @property
    def is_waiting(self) -> bool:
        """Whether an answer or a receipt is still to come."""
        return bool(self._requests) or self._owner.is_owed(self)

    @property
    def is_full(self) -> bool:
        """Whether a polite sender waits for `room` first."""
        return self._out_bytes >= GATHER_BYTES or not self._writable.is_set()

    async def room(self) -> None:
        """Wait until the socket takes more, or the connection is gone."""
        self._flush()
        await asyncio.sleep(0)  # a fast publisher must not starve the reading side
        await self._writable.wait()

    def close(self) -> None:
        """End the connection once what was sent has left."""
        self._flush()
        self.resume()
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # Receiving

    def pause(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._heard_s = self.loop.time()
            self._transport.resume_reading()
            self.loop.call_soon(self._handle_frames)

    def _handle_frames(self) -> None:
        try:
            for frame in self._reader:
                if self._transport.is_closing():
                    return
                self._on_frame(frame)
                if self._reading_paused:
                    return
        except Closed as closed:
            self._give_up(closed)
        except ImError as error:
            self._give_up(Closed(CloseCode.BAD_PROTOCOL, f"from the server: {error}"))

    def _on_frame(self, frame: Frame) -> None:
        if frame.type == FrameType.MESSAGE:
            self._owner.message_came(decode_message(frame.data))
        elif frame.type == FrameType.PING:
            self.send(encode_bare(FrameType.PONG, frame.request))
        elif frame.type == FrameType.RECEIPT:
            self._owner.receipt_came(decode_receipt(frame.body))
            self._settle()
        elif frame.type == FrameType.PONG or frame.type > FrameType.GOAWAY:
            pass  # what a newer server may say besides is not for us
        else:
            self._on_body(frame.request, decode_body(frame.type, frame.codec, frame.body))

    def _on_body(self, request: int, body: Body) -> None:
        if isinstance(body, Goaway):
            self._leave(body.exception())
            return
        if isinstance(body, Welcome):
            self._begin(body)
        if isinstance(body, Subscribed):
            self._owner.subscribed(self, body, request != 0)
        answer = self._requests.pop(request, None)
        if answer is None or answer.done():
            # Of late answers only these concern more than their caller.
            if request == 0 and not isinstance(body, Subscribed):
                self._owner.notice_came(body)
                self._settle()
        elif isinstance(body, Error):
            answer.set_exception(body.exception())
        else:
            answer.set_result(body)

    def _answered(self, number: int, answer: asyncio.Future[Body]) -> None:
        if self._requests.get(number) is answer:  # its caller gave up
            del self._requests[number]
        self._settle()

    def _settle(self) -> None:
        """After GOAWAY: close when nothing more is to come."""
        if self._reason and not self.is_waiting:
            self.close()

    # Begin, liveness, end

    def _begin(self, welcome: Welcome) -> None:
        self.welcome = welcome
        self._max_frame_bytes = self._reader.max_frame_bytes = welcome.limits.max_frame
        self._timer = self.loop.call_later(welcome.heartbeat.interval_ms / 1000, self._beat)

    def _beat(self) -> None:
        """PING when either side has been silent for long; give up on a dead server."""
        beat = self.welcome.heartbeat
        now_s = self.loop.time()
        if self._reading_paused:
            self._heard_s = now_s  # it is us who do not listen
        unheard_ms = (now_s - self._heard_s) * 1000
        silent_ms = (now_s - self._spoke_s) * 1000
        if unheard_ms >= beat.interval_ms + beat.timeout_ms * beat.max_missed:
            self._give_up(Closed(CloseCode.HEARTBEAT_LOST, "the server is silent"))
            return
        if max(unheard_ms, silent_ms) >= beat.interval_ms:
            self.send(encode_bare(FrameType.PING))
            silent_ms = 0
        wait_ms = float(beat.timeout_ms)
        if unheard_ms < beat.interval_ms:
            wait_ms = beat.interval_ms - max(unheard_ms, silent_ms)
        self._timer = self.loop.call_later(max(wait_ms, 1) / 1000, self._beat)

    def _leave(self, closed: Closed) -> None:
        """GOAWAY: let what was asked be answered, then close."""
        self._reason = closed
        self._owner.link_leaves(self)
        if self.is_waiting:
            self.loop.call_later(LINGER_S, self.abort)
        else:
            self.close()

    def _give_up(self, closed: Closed) -> None:
        self._reason = closed
        self._transport.abort()

    def _flush(self) -> None:
        if self._out and not self._transport.is_closing():
            self._spoke_s = self.loop.time()
            self._transport.write(b"".join(self._out))
        self._out.clear()
        self._out_bytes = 0

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but class
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._heard_s = self.loop.time()
        self._reader.feed(data)
        if not self._reading_paused:
            self._handle_frames()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        closed = self._reason or Closed(0, str(exc) if exc else "")
        if self._timer:
            self._timer.cancel()
        self._owner.link_leaves(self)
        self._writable.set()
        for answer in self._requests.values():
            if answer.done():
                continue
            if closed.action is Action.STOP:
                answer.set_exception(closed)
            else:
                text = "the connection ended before the answer came"
                answer.set_exception(ImError(ErrorCode.TIMEOUT, text))
        self._requests.clear()
        self.closed.set_result(closed)


async def open_link(
    address: tuple[str, int], hello: Hello, codec: int, owner: Owner, timeout_s: float
) -> Link:
    """A connection that has been welcomed. `Closed` when it was refused, OSError (TimeoutError
    among them) when nobody answered."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        _, link = await loop.create_connection(lambda: Link(owner, codec), *address)
        try:
            await link.request(FrameType.HELLO, hello)
        except ImError as refusal:
            # The ERROR explains; the close code that follows says what to do about it.
            await asyncio.wait([link.closed])
            closed = link.closed.result()
            if refusal.code in (ErrorCode.TIMEOUT, closed.code):
                raise closed from None
            retry_ms = max(closed.retry_after_ms, refusal.retry_after_ms)
            text = refusal.message
            alternatives = closed.alternatives
            raise Closed(closed.code, text, retry_ms, alternatives=alternatives) from refusal
        except BaseException:
            link.abort()
            raise
    return link
