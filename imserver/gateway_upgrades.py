"""Requests for WebSocket, and those that speak it without frames.

With the subprotocol a connection goes on as any other: HELLO comes next. Without it whole messages
come here and go to a handler: the program's for its paths, gateway_text for ours.

Not here: what a request has to look like (upgrade).
"""

import logging
import re
from collections import ChainMap
from functools import partial

from imserver import _core
from imserver.auth import Authenticator
from imserver.config import LOOPBACK, Config, is_loopback, split_address
from imserver.errors import CloseCode, ImError
from imserver.gateway_tasks import RUNNING_MAX, Tasks
from imserver.gateway_text import TextClients
from imserver.hooks import OnWebSocket, PlainWebSockets
from imserver.upgrade import PATH, Refusal, Upgrade, read_upgrade, switch
from imserver.websocket import NORMAL, WebSocket

_log = logging.getLogger("imserver.gateway")


class Upgrades:
    """`handlers` of plain ones by path. `is_leaving` refuses everybody.

    U3  compression is agreed to only for who is somebody: with a good token in the request, or
        where the program said that a path of its own is for such. Before that nothing is inflated.
    """

    def __init__(
        self,
        config: Config,
        core: _core.Core,
        authenticator: Authenticator,
        handlers: dict[str, PlainWebSockets],
    ) -> None:
        ours = PlainWebSockets(TextClients(core).serve, deflate=False)
        self._handlers = ChainMap[str, PlainWebSockets]({PATH: ours}, handlers)
        self.is_leaving = False
        self._core = core
        self._authenticator = authenticator
        self._dev = config.dev
        self._deflate = config.websocket.deflate
        self._frame_max = config.limits.max_frame_bytes
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
        deflates = self._deflate and upgrade.offers_deflate and self._may_deflate(upgrade)
        self._core.upgrade(conn, transport, switch(upgrade, deflates=deflates), deflates)

    def on_web(self, conn: int, kind: int, is_last: int, data: bytes) -> None:
        socket = self._sockets.get(conn)
        if socket is None:  # its handler has ended, and it is about to hear so
            self._core.taken(conn)
        elif is_last:
            socket.take(data, is_text=kind == _core.TEXT)
        else:
            socket.take_part(data)

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

    def _may_deflate(self, upgrade: Upgrade) -> bool:
        if self._handlers[upgrade.path].deflate or self._dev:
            return True
        if upgrade.token is None or upgrade.path != PATH:
            return False
        try:
            self._authenticator.identify(upgrade.token)
        except ImError:
            return False  # and HELLO will say why
        return True

    def _open(self, conn: int, peer: str, upgrade: Upgrade) -> None:
        handler = self._handlers.get(upgrade.path)
        if handler is None:
            raise Refusal(400, "name the subprotocol im.v1")
        if len(self._tasks) >= RUNNING_MAX:  # a handler may outlive its connection
            raise Refusal(503, "too many WebSockets without the subprotocol")
        say, close = partial(self._say, conn), partial(self._core.close, conn)
        taken = partial(self._core.taken, conn)
        socket = WebSocket(upgrade.path, peer, upgrade.token, say, taken, close)
        self._sockets[conn] = socket
        self._tasks.start(partial(self._serve, conn, handler.serve, socket))

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

    def _say(self, conn: int, message: str | bytes) -> None:
        kind = _core.BINARY if isinstance(message, bytes) else _core.TEXT
        data = message.encode() if isinstance(message, str) else message
        # In fragments where it is large: the core's queue has room for two frames at least.
        at = 0
        while len(data) - at > self._frame_max:
            self._core.say(conn, kind, data[at : at + self._frame_max], False)
            kind, at = _core.CONTINUATION, at + self._frame_max
        self._core.say(conn, kind, data[at:])


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
