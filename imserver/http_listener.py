"""uvicorn as a guest in the loop of the server: no signals, no logging of its own, no process.

Not here: what a connection may do (http_connection), and what is answered (http_app).
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from imserver.http_connection import IDLE_S, Connection

#: How long requests that are being answered have when the server stops.
GRACE_S: Final = 2

#: How often uvicorn writes down the date for its answers.
TICK_S: Final = 1.0


class HttpListener:
    """Answers on one listening socket, from `start` to `close`."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        self.address: tuple[str, int] = listener.getsockname()[:2]
        self._listener = listener
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_S,
            timeout_graceful_shutdown=GRACE_S,
        )
        self._server = _Guest(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        self._task.add_done_callback(lambda _: self._server.running.set())
        await self._server.running.wait()

    async def close(self) -> None:
        """Answer what is being answered, for at most GRACE_S, and nothing more."""
        self._server.stop()
        if self._task:
            await asyncio.wait([self._task])
        self._listener.close()


class _Guest(uvicorn.Server):
    """A uvicorn that is told to end by its host instead of a signal."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running = asyncio.Event()
        self._stopping = asyncio.Event()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.should_exit = True
        self._stopping.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        self.running.set()
        while not self.should_exit:
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._stopping.wait()
            await self.on_tick(0)
