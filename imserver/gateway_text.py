"""Clients that write JSON text over a plain WebSocket, let in as clients like any other.

Each is a connection of our own to the core beside the one that its text comes on, and every object
goes one way as a frame and comes back the other. So who may do what, receipts, cursors and limits
are what they are for everybody; what text costs is paid here, by those who use it.

Not here: what an object means (textual).
"""

import asyncio
import socket
from contextlib import suppress
from typing import Final

from imserver import _core
from imserver.bodies import Error, Goaway, Hello, Welcome
from imserver.errors import CloseCode, Closed, ErrorCode, ImError
from imserver.protocol import (
    CODEC_JSON,
    MAX_FRAME_BYTES,
    Frame,
    FrameReader,
    FrameType,
    decode_body,
    encode_bare,
    encode_frame,
)
from imserver.textual import read_text, write_text
from imserver.websocket import WebSocket

_READ_BYTES: Final = 65_536


class TextClients:
    """Handles the WebSockets of those who chose no subprotocol."""

    def __init__(self, core: _core.Core) -> None:
        self._core = core

    async def serve(self, web: WebSocket) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._core.adopt(theirs.detach())
        client = _TextClient(web, ours)
        try:
            await client.run()
        finally:
            ours.close()


class _TextClient:
    """Both directions of one."""

    def __init__(self, web: WebSocket, ours: socket.socket) -> None:
        self._web = web
        self._ours = ours
        self._loop = asyncio.get_running_loop()
        self._user = ""
        self._code: int = CloseCode.INTERNAL
        self._is_sending = False

    async def run(self) -> None:
        back = asyncio.create_task(self._come_back())
        try:
            async for text in self._web:
                await self._go(text)
        except OSError:  # it has been closed inside; the reason is on its way back
            await back
        finally:
            back.cancel()
            (failure,) = await asyncio.gather(back, return_exceptions=True)
        if isinstance(failure, Exception):
            raise failure

    async def _go(self, text: str | bytes) -> None:
        try:
            if isinstance(text, bytes):
                raise ImError(ErrorCode.BAD_FRAME, "text; for frames choose the subprotocol im.v1")
            frame = read_text(text, self._user or "?")
        except ImError as error:
            self._web.send(_text_of(error))
            return
        if frame[4] == FrameType.HELLO and self._web.token is not None:
            frame = self._with_token(frame, self._web.token)
        self._is_sending = True
        await self._loop.sock_sendall(self._ours, frame)
        self._is_sending = False

    def _with_token(self, frame: bytes, token: str) -> bytes:
        """A HELLO without a token has that of the upgrade."""
        hello = decode_body(FrameType.HELLO, CODEC_JSON, frame[8:])
        assert isinstance(hello, Hello)
        if hello.token is not None or hello.user is not None:
            return frame
        hello.token = token
        return encode_frame(FrameType.HELLO, hello, CODEC_JSON, int.from_bytes(frame[6:8]))

    async def _come_back(self) -> None:
        """Everything that the core says; its end is the end of the WebSocket."""
        reader = FrameReader(MAX_FRAME_BYTES)
        try:
            while data := await self._loop.sock_recv(self._ours, _READ_BYTES):
                for frame in reader.feed(data):
                    if frame.type == FrameType.PING:
                        self._pong(frame.request)
                        continue
                    self._note(frame.type, frame.body)
                    self._web.send(write_text(frame))
        except (OSError, Closed):
            pass
        finally:
            self._web.close(self._code)

    def _pong(self, request: int) -> None:
        """People's tools answer the pings of WebSocket, by which the core judges them; those of
        frames are answered here. Neither within a frame nor waiting: who is not read is not
        silent."""
        if not self._is_sending:
            with suppress(BlockingIOError):
                self._ours.send(encode_bare(FrameType.PONG, request))

    def _note(self, type: int, body: bytes) -> None:
        if type == FrameType.WELCOME:
            welcome = decode_body(type, CODEC_JSON, body)
            assert isinstance(welcome, Welcome)
            self._user = welcome.user
        elif type == FrameType.GOAWAY:
            goaway = decode_body(type, CODEC_JSON, body)
            assert isinstance(goaway, Goaway)
            self._code = goaway.code


def _text_of(error: ImError) -> str:
    data = encode_frame(FrameType.ERROR, Error.of(error), CODEC_JSON)
    return write_text(Frame(FrameType.ERROR, CODEC_JSON << 6, 0, data))
