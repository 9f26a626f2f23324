"""A real server in a thread of this process, and a bare socket to talk to it.

The server runs the same code as `imserver serve`, with settings in milliseconds where a test
waits for a time-out. A `Peer` is a blocking socket that writes and reads frames and knows
nothing else: what it sees is what any client would.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from click.testing import Result

from imserver import Config, Server
from imserver.protocol import FrameType, Hello, Subscribe, encode_frame, encode_message

JSON = 1
Run = Callable[..., Result]  # the command line in this process
WAIT_S = 20.0  # an answer that takes longer will not come


def connected(address: tuple[str, int], receive_bytes: int = 0) -> socket.socket:
    """`receive_bytes`: little room for what is not read."""
    opened = socket.socket()
    if receive_bytes:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    opened.settimeout(WAIT_S)
    opened.connect(address)
    return opened


def read_all(peer: socket.socket) -> bytes:
    """Until the other side closes, however it does."""
    received = b""
    try:
        while some := peer.recv(65536):
            received += some
    except ConnectionResetError:
        pass
    return received


class Peer:
    """One connection of a client that does just what it is told."""

    def __init__(self, address: tuple[str, int], receive_bytes: int = 0) -> None:
        self.socket = connected(address, receive_bytes)
        self.unread = b""

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def receive(self) -> tuple[int, int, int, bytes] | None:
        """The next frame: (type, flags, request, bytes after the head); None at the end."""
        while True:
            if len(self.unread) >= 4:
                size = struct.unpack(">I", self.unread[:4])[0] + 4
                if len(self.unread) >= size:
                    frame, self.unread = self.unread[:size], self.unread[size:]
                    return frame[4], frame[5], struct.unpack(">H", frame[6:8])[0], frame[8:]
            try:
                data = self.socket.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self.unread += data

    def expect(self, type: int) -> bytes:
        """The next frame, which has to be of that type; but for what a login is subscribed to by
        itself."""
        frame = self.receive()
        while frame is not None and frame[0] == FrameType.SUBSCRIBED != type and frame[2] == 0:
            frame = self.receive()
        assert frame is not None, f"the connection ended; expected {FrameType(type).name}"
        assert frame[0] == type, f"expected {FrameType(type).name}, not {frame}"
        return frame[3]

    def login(self, user: str, device: str = "test", codec: int = JSON) -> None:
        body = Hello(version=1, user=user, device=device)
        self.send(encode_frame(FrameType.HELLO, body, codec, 1))
        self.expect(FrameType.WELCOME)

    def subscribe(self, topic: str, tags: str = "*") -> None:
        self.send(encode_frame(FrameType.SUBSCRIBE, Subscribe(topic=topic, tags=tags), JSON, 2))
        frame = self.receive()
        while frame is not None and frame[0] == FrameType.SUBSCRIBED and frame[2] == 0:
            frame = self.receive()  # the login is subscribed to something by itself
        assert frame is not None, "the connection ended"
        assert frame[0] == FrameType.SUBSCRIBED, f"expected SUBSCRIBED, not {frame}"

    def publish(self, topic: str, sender: str, body: bytes = b"x", **fields: Any) -> bytes:
        frame = encode_message(topic, sender, body, **fields)
        self.send(frame)
        return frame

    def ping(self) -> None:
        """Returns when everything sent before has been taken."""
        self.send(struct.pack(">IBBH", 4, FrameType.PING, 0, 7))
        self.expect(FrameType.PONG)

    def close(self) -> None:
        self.socket.close()


class RunningServer:
    """A Server whose loop runs in a thread, so that tests may block."""

    def __init__(self, config: Config, prepare: Callable[[Server], None] | None = None) -> None:
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(config, prepare)), daemon=True
        )
        self._thread.start()
        if not self._ready.wait(WAIT_S) or self._failure:
            raise self._failure or TimeoutError("the server did not start")
        self._peers: list[Peer] = []

    async def _main(self, config: Config, prepare: Callable[[Server], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        try:
            self.server = Server(config)
            if prepare:
                prepare(self.server)
            async with self.server:
                self.address = self.server.address
                self._ready.set()
                await self._end.wait()
        except BaseException as error:
            self._failure = error
            self._ready.set()
            raise

    def run(self, make: Callable[[], Any]) -> Any:
        """Awaits make() in the server's loop."""

        async def call() -> Any:
            return await make()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(WAIT_S)

    def peer(self, receive_bytes: int = 0) -> Peer:
        peer = Peer(self.address, receive_bytes)
        self._peers.append(peer)
        return peer

    def user(self, name: str, device: str = "test") -> Peer:
        peer = self.peer()
        peer.login(name, device)
        return peer

    def stats(self) -> dict[str, int]:
        return self.server.stats()

    def forget_peers(self) -> None:
        for peer in self._peers:
            peer.close()
        self._peers.clear()

    def stop(self) -> None:
        """Once more is allowed, and does nothing."""
        if not self._thread.is_alive():
            return
        self.forget_peers()
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), "the server did not stop"


def dev_config(**sections: Any) -> Config:
    """A server on a free port of loopback, open to any user name."""
    fields: dict[str, Any] = {"listen": "127.0.0.1:0", "dev": True} | sections
    return Config(**fields)
