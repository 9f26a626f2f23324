"""A plain WebSocket as a program holds it: whole messages in, whole messages out.

    @server.on_websocket("/echo")
    async def echo(socket: WebSocket) -> None:
        async for message in socket:
            socket.send(message)

The core does the framing, the limits and the heartbeats; messages wait there, at most
`limits.calls` of them in Python's hands. Large ones cross in parts, both ways. Nobody has logged
in: who it is is the handler's business.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

NORMAL: Final = 1000


class WebSocket:
    """One connection, for the time of its handler; then it is closed.

    `path` is what it asked for, `peer` its address, `token` what it brought in the upgrade.
    """

    def __init__(
        self,
        path: str,
        peer: str,
        token: str | None,
        say: Callable[[str | bytes], None],
        taken: Callable[[], None],
        close: Callable[[int], None],
    ) -> None:
        self.path, self.peer, self.token = path, peer, token
        #: None while it is open; then the close code, 0 when the peer went by itself.
        self.closed: int | None = None
        self._say = say
        self._taken = taken  # tells the core that it counts one less
        self._close = close
        self._came: deque[str | bytes] = deque()
        self._news = asyncio.Event()
        self._parts: list[bytes] = []  # of a large message that has not come to its end
        self._owed = 0  # parts that the core counts until the program has caught up
        self._is_busy = False  # with a message that the core still counts

    def send(self, message: str | bytes) -> None:
        """Queue a text or a binary message. A peer that does not read is closed (4109) when
        `limits.outbox_hard_bytes` wait for it; nothing is sent to one that has gone."""
        if self.closed is None:
            self._say(message)

    def close(self, code: int = NORMAL) -> None:
        """Close with 1000 or one of 3000..4999. ValueError for others."""
        if code != NORMAL and not 3000 <= code <= 4999:
            raise ValueError("close codes are 1000 and 3000..4999")
        if self.closed is None:
            self.closed = code
            self._news.set()
            self._close(code)

    def __aiter__(self) -> "WebSocket":
        return self

    async def __anext__(self) -> str | bytes:
        if self._is_busy:
            self._end_calls(1)
        self._is_busy = False
        while not self._came:
            if self.closed is not None:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        self._is_busy = True
        message = self._came.popleft()
        if not self._came:
            self._end_calls(self._owed)
            self._owed = 0
        return message

    def _end_calls(self, count: int) -> None:
        for _ in range(count if self.closed is None else 0):
            self._taken()

    # The gateway's side

    def take_part(self, part: bytes) -> None:
        """Of a message that is larger than the core holds. More come at once only while no other
        message waits: a program that is behind has one large message here, and `limits.calls`
        parts of the next."""
        self._parts.append(part)
        if self._came:
            self._owed += 1
        else:
            self._end_calls(1)

    def take(self, last: bytes, *, is_text: bool) -> None:
        """The end of a message, or all of it."""
        whole = b"".join((*self._parts, last)) if self._parts else last
        self._parts.clear()
        self._came.append(whole.decode() if is_text else whole)
        self._news.set()

    def end(self, code: int) -> None:
        if self.closed is None:
            self.closed = code
            self._news.set()
