"""Requests for WebSocket, and those that speak it without frames.

With the subprotocol a connection goes on as any other: HELLO comes next. Without it whole messages
come here and go to a handler: the program's for its paths, gateway_text for ours.

Not here: what a request has to look like (upgrade).
"""

import logging
import re
from collections import ChainMap
from functools import partial
from typing import Final

from imserver import _core
from imserver.config import Config, is_loopback, split_address
from imserver.errors import CloseCode
from imserver.gateway_tasks import RUNNING_MAX, Tasks
from imserver.gateway_text import TextClients
from imserver.hooks import OnWebSocket
from imserver.upgrade import PATH, Refusal, Upgrade, read_upgrade, switch
from imserver.websocket import NORMAL, WebSocket

#: The names under which a browser on this machine reaches it.
LOOPBACK: Final = {"localhost", "127.0.0.1", "[::1]"}

_log = logging.getLogger("imserver.gateway")


class Upgrades:
    """`handlers` of plain ones by path. `is_leaving` refuses everybody."""

    def __init__(self, config: Config, core: _core.Core, handlers: dict[str, OnWebSocket]) -> None:
        self._handlers = ChainMap[str, OnWebSocket]({PATH: TextClients(core).serve}, handlers)
        self.is_leaving = False
        self._core = core
        self._tasks = Tasks()
        self._origins = Origins(config)
        self._tokens: dict[int, str] = {}  # brought before HELLO
        self._sockets: dict[int, WebSocket] = {}

    def on_upgrade(self, conn: int, data: bytes) -> None:
        """`data` as the core gives it: the peer's address, then the head."""
        end = 1 + data[0]
        try:
            if self.is_leaving:
                raise Refusal(503, "the server is shutting down")
            upgrade = self._read(data[end:])
            if not upgrade.speaks_frames:
                self._open(conn, data[1:end].decode(), upgrade)
        except Refusal as refusal:
            _log.debug("connection %x: no WebSocket: %d %s", conn, refusal.status, refusal)
            self._core.close(conn, CloseCode.BAD_PROTOCOL, refusal.response())
            return
        if upgrade.token is not None and upgrade.speaks_frames:
            self._tokens[conn] = upgrade.token
        transport = _core.WEB if upgrade.speaks_frames else _core.PLAIN
        self._core.upgrade(conn, transport, switch(upgrade))

    def on_web(self, conn: int, kind: int, data: bytes) -> None:
        socket = self._sockets.get(conn)
        if socket:
            socket.take(data.decode() if kind == _core.TEXT else data)
        else:  # its handler has ended, and it is about to hear so
            self._core.say(conn, 0, b"", _core.ENDS_CALL)

    def on_closed(self, conn: int, code: int) -> None:
        self._tokens.pop(conn, None)
        if socket := self._sockets.pop(conn, None):
            socket.end(code)

    def token(self, conn: int) -> str | None:
        """What the connection brought in its upgrade, once."""
        return self._tokens.pop(conn, None)

    def __len__(self) -> int:
        return len(self._sockets)

    def close_all(self, code: int) -> None:
        for socket in list(self._sockets.values()):
            socket.close(code)

    async def stop(self) -> None:
        await self._tasks.stop()

    def _read(self, head: bytes) -> Upgrade:
        return read_upgrade(head, self._handlers.keys(), self._origins.may_come)

    def _open(self, conn: int, peer: str, upgrade: Upgrade) -> None:
        handler = self._handlers.get(upgrade.path)
        if handler is None:
            raise Refusal(400, "name the subprotocol im.v1")
        if len(self._tasks) >= RUNNING_MAX:  # a handler may outlive its connection
            raise Refusal(503, "too many WebSockets without the subprotocol")
        say, close = partial(self._say, conn), partial(self._core.close, conn)
        socket = WebSocket(upgrade.path, peer, upgrade.token, say, close)
        self._sockets[conn] = socket
        self._tasks.start(partial(self._serve, conn, handler, socket))

    async def _serve(self, conn: int, handler: OnWebSocket, socket: WebSocket) -> None:
        code = NORMAL
        try:
            await handler(socket)
        except Exception:
            _log.exception("the WebSocket handler of %s failed", socket.path)
            code = CloseCode.INTERNAL
        finally:
            self._sockets.pop(conn, None)
            socket.close(code)

    def _say(self, conn: int, message: str | bytes | None, is_taken: bool) -> None:
        ends = _core.ENDS_CALL if is_taken else _core.ENDS_NOTHING
        if message is None:
            self._core.say(conn, 0, b"", ends)
        elif isinstance(message, str):
            self._core.say(conn, _core.TEXT, message.encode(), ends)
        else:
            self._core.say(conn, _core.BINARY, message, ends)


class Origins:
    """The listed ones, the pages that this server serves itself, and with `dev` all of this
    machine."""

    def __init__(self, config: Config) -> None:
        self._is_dev = config.dev
        self._listed = {origin.lower() for origin in config.websocket.origins}
        if config.http:
            host, port = split_address(config.http)
            names = {f"[{host}]" if ":" in host else host}
            if is_loopback(config.http):
                names |= LOOPBACK
            self._listed |= {f"http://{name}:{port}" for name in names}

    def may_come(self, origin: str) -> bool:
        if origin in self._listed:
            return True
        found = re.fullmatch(r"https?://([^/@?#:]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?", origin)
        return self._is_dev and found is not None and found[1] in LOOPBACK
