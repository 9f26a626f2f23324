"""Connection after connection, until one ends with a code that says stop.

A client's application knows nothing of it but short waits: whoever needs a connection waits for
`usable`, and what has to be said on every new one is said in `arrived`, before anybody else.

Not here: one connection's life (client_link), where the next one goes and when (client_itinerary).
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from imserver.client_itinerary import Itinerary
from imserver.client_link import Link, Owner, open_link
from imserver.errors import Action, Closed, ErrorCode, ImError
from imserver.protocol import Hello, Welcome

Token = str | Callable[[], Awaitable[str]] | None

_log = logging.getLogger("imserver.client")


class Traveller(Owner, Protocol):
    """Who makes the journey. Must not block or raise."""

    def arrived(self, link: Link) -> None:
        """There is a connection; it is `Journey.link` unless the server sends us on at once."""

    def departed(self, closed: Closed) -> None:
        """It has ended."""

    def finished(self, final: Closed, error: Closed | None) -> None:
        """There will be no other; `error` is what those who wait should see."""


class Journey:
    """`link` is the connection to send on, `reading` the same and, after GOAWAY, on to its end."""

    def __init__(
        self,
        home: tuple[str, int],
        token: Token,
        hello: Hello,
        codec: int,
        traveller: Traveller,
        *,
        connect_timeout_s: float,
        wait_timeout_s: float,
    ) -> None:
        self.link: Link | None = None
        self.reading: Link | None = None
        self.welcome: Welcome | None = None
        self._home = home
        self._token = token
        self._hello = hello
        self._codec = codec
        self._traveller = traveller
        self._connect_timeout_s = connect_timeout_s
        self._wait_timeout_s = wait_timeout_s
        self._ready = asyncio.Event()  # set while there is a link, and for good at the end
        self._final: Closed | None = None
        self._last: Exception | None = None  # why there is no connection
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Go, and wait for the first connection. Raises why there is none."""
        self._task = asyncio.create_task(self._stay_connected())
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._ready.wait()
        except BaseException as error:
            await self.stop()
            if isinstance(error, TimeoutError):
                raise self._last or TimeoutError("the server did not answer") from None
            raise
        if self._final:
            raise self._final

    async def stop(self) -> None:
        """Send what was queued, and end here."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait([self._task])
        link, self.link = self.reading, None
        self._ready.clear()
        if link and not link.closed.done():
            link.close()
            await asyncio.wait([link.closed], timeout=self._wait_timeout_s)
            link.abort()
        self._finish(self._final or Closed(0, "the client is closed"), None)

    async def usable(self) -> Link:
        """A connection with room to send. ImError 408 after `wait_timeout_s` without."""
        self.check_running()
        try:
            async with asyncio.timeout(self._wait_timeout_s):
                while True:
                    await self._ready.wait()
                    self.check_running()
                    assert self.link
                    if not self.link.is_full:
                        return self.link
                    await self.link.room()
        except TimeoutError:
            raise ImError(ErrorCode.TIMEOUT, "no connection with room in time") from None

    def check_running(self) -> None:
        if self._task is None:
            raise RuntimeError("not started: use `async with Client(...)` or `start()`")
        if self._final:
            raise self._final

    def leave(self, link: Link) -> None:
        """Nothing more may be sent on it."""
        if self.link is link:
            self.link = None
            self._ready.clear()

    async def _stay_connected(self) -> None:
        try:
            closed = await self._travel()
        except Exception as error:
            _log.exception("the client failed")
            closed = Closed(0, f"the client failed: {error!r}")
        self._finish(closed, closed)

    async def _travel(self) -> Closed:
        loop = asyncio.get_running_loop()
        itinerary = Itinerary(self._home)
        while True:
            began_s = loop.time()
            closed = await self._connection(itinerary.address)
            if closed.action is Action.STOP:
                return closed
            lived_ms = (loop.time() - began_s) * 1000
            delay_ms = itinerary.after(closed, lived_ms, self.welcome)
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
            timeout_s = self._connect_timeout_s
            link = await open_link(address, hello, self._codec, self._traveller, timeout_s)
        except (Closed, OSError, ValueError) as error:
            self._last = error
            return error if isinstance(error, Closed) else Closed(0, str(error))
        self.welcome, self.reading = link.welcome, link
        if link.is_usable:
            self.link = link
        self._traveller.arrived(link)
        if link.is_usable:
            self._ready.set()
        await asyncio.wait([link.closed])
        closed = self._last = link.closed.result()
        self.reading = None
        self._traveller.departed(closed)
        return closed

    def _finish(self, final: Closed, error: Closed | None) -> None:
        self._final = final
        self._ready.set()
        self._traveller.finished(final, error)
