"""One HTTP connection, with the bounds that uvicorn leaves to a proxy in front of it.

uvicorn reads a head of any length, for as long as it takes to come, and never gives up on a peer
that does not read its answer. So:

    H1  a connection always has a deadline, which no byte of the peer's moves: for its head, for the
        whole of a request and its answer, for the silence after it.
    H2  a head has at most HEAD_MAX bytes, and PIPELINE_MAX requests wait for their answers.
    H3  a body comes with its length. No transfer codings: there is nothing about whose end a proxy
        and we could disagree (request smuggling).

Not here: the size of bodies (http_route).
"""

import asyncio
import logging
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from imserver.errors import ErrorCode, ImError
from imserver.http_problem import problem

CONNECTIONS_MAX: Final = 512
HEAD_MAX: Final = 16_384
PIPELINE_MAX: Final = 16
#: From accept, or the first byte of a further request, to the end of its head.
HEAD_S: Final = 10.0
#: From there to the last byte of the answer. More than a handler may take (http_route).
REQUEST_S: Final = 60.0
#: Silence between requests.
IDLE_S: Final = 15

_log = logging.getLogger("imserver.http")


class Connection(HttpToolsProtocol):
    """Made by uvicorn for every connection."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.access_log = False  # uvicorn's own setting changes loggers of the whole process
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = True
        self._refusal: ImError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._give(HEAD_S)
        if len(self.connections) > CONNECTIONS_MAX:
            self._refuse(ImError(ErrorCode.OVERLOADED, "too many connections", 1_000))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline:
            self._deadline.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self._in_head:
            if not self._head_bytes and not self._is_busy:
                self._give(HEAD_S)
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # To another HTTP, which some libraries offer: the request is answered in this one.
            if upgrade.args[0] < len(data):
                self._refuse(ImError(ErrorCode.BAD_FRAME, "there is nothing to upgrade to here"))
        except httptools.HttpParserError:
            self._refuse(self._refusal or ImError(ErrorCode.BAD_FRAME, "this is not HTTP"))
        if self._in_head and self._head_bytes > HEAD_MAX:
            self._refuse(_too_long())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if len(self.pipeline) >= PIPELINE_MAX:
            self._refusal = ImError(ErrorCode.TOO_MANY_REQUESTS, "too many requests in a row")
            raise self._refusal

    def on_headers_complete(self) -> None:
        headers = dict(self.headers)
        if b"transfer-encoding" in headers:
            self._refusal = ImError(ErrorCode.BAD_FRAME, "send a Content-Length, and no codings")
        elif headers.get(b"upgrade", b"").lower() == b"websocket":
            text = "WebSocket is spoken on the client port: see /client.json"
            self._refusal = ImError(ErrorCode.BAD_FRAME, text)
        elif sum(len(name) + len(value) for name, value in self.headers) > HEAD_MAX:
            self._refusal = _too_long()
        if self._refusal:
            raise self._refusal
        if not self._is_busy:
            self._give(REQUEST_S)
        self._in_head, self._head_bytes = False, 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True

    @property
    def _is_busy(self) -> bool:
        """With a request that has not been answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # uvicorn closes when the silence is over, which waits for a peer that has not read.
        self._give(REQUEST_S if self.pipeline else 2 * IDLE_S)

    def _give(self, seconds: float) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._end)

    def _end(self) -> None:
        _log.debug("a connection of %s took too long", self.client)
        self.transport.abort()

    def _refuse(self, error: ImError) -> None:
        """As the last thing on this connection, which is then closed."""
        _log.debug("a connection of %s is closed: %s", self.client, error)
        response = problem(error)
        lines = [b"HTTP/1.1 %d %s" % (response.status_code, b"Refused"), b"connection: close"]
        lines += [b"%s: %s" % pair for pair in response.raw_headers]
        self.transport.write(b"\r\n".join(lines) + b"\r\n\r\n" + bytes(response.body))
        self.transport.close()


def _too_long() -> ImError:
    return ImError(ErrorCode.TOO_LARGE, f"a head has at most {HEAD_MAX} bytes")
