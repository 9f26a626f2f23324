"""A bare WebSocket: what a client would send, byte for byte, and what it gets."""

import base64
import os
import socket
import struct

from harness import WAIT_S

HANDSHAKE = {
    "Host": "127.0.0.1",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(range(16))).decode(),
}


def request(
    path: str = "/ws", *, method: str = "GET", version: str = "1.1", **headers: str | None
) -> bytes:
    """A request for a WebSocket; headers by name with "_" for "-", None to leave one out."""
    named = {name.replace("_", "-").title(): value for name, value in headers.items()}
    lines = {name.title(): value for name, value in HANDSHAKE.items()} | named
    text = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
    return f"{method} {path} HTTP/{version}\r\n{text}\r\n".encode()


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, first: int | None = None
) -> bytes:
    """One of a client's. `first` replaces the first byte."""
    key = os.urandom(4)
    size = len(payload)
    length = (
        bytes([0x80 | size])
        if size < 126
        else b"\xfe" + struct.pack(">H", size)
        if size < 65_536
        else b"\xff" + struct.pack(">Q", size)
    )
    masked = bytes(byte ^ key[n % 4] for n, byte in enumerate(payload))
    return bytes([fin << 7 | opcode if first is None else first]) + length + key + masked


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(8, struct.pack(">H", code) + reason)


class Web:
    """One connection. `early` follows the request in the same write. Without `answer` the request
    is not whole yet, and read_head() comes later."""

    def __init__(
        self,
        address: tuple[str, int],
        asked: bytes | None = None,
        early: bytes = b"",
        *,
        answer: bool = True,
        receive_bytes: int = 0,
    ) -> None:
        self.socket = socket.socket()
        if receive_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(address)
        self.unread = b""
        self.head = ""
        self.send((asked or request()) + early)
        if answer:
            self.read_head()

    def read_head(self) -> None:
        while b"\r\n\r\n" not in self.unread:
            data = self.socket.recv(65_536)
            assert data, f"the connection ended behind {self.unread!r}"
            self.unread += data
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        self.head = head.decode("latin-1")

    @property
    def status(self) -> int:
        return int(self.head.split(" ")[1])

    def send(self, *data: bytes) -> None:
        self.socket.sendall(b"".join(data))

    def receive(self) -> tuple[int, bytes] | None:
        """The next frame of the server: (opcode, payload), None at the end of the stream."""
        head = self._take(2)
        if not head:
            return None
        assert head[0] & 0xF0 == 0x80, "whole, and without reserved bits"
        assert not head[1] & 0x80, "a server masks nothing"
        size = head[1]
        if size == 126:
            size = struct.unpack(">H", self._take(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self._take(8))[0]
        return head[0] & 0x0F, self._take(size)

    def closed(self) -> int:
        """The code it is closed with; messages before that are passed over."""
        while (received := self.receive()) is not None:
            if received[0] == 8:
                assert self.receive() is None, "nothing follows a Close"
                return int.from_bytes(received[1][:2])
        return 0

    def hang_up(self) -> None:
        self.socket.close()

    def _take(self, size: int) -> bytes:
        while len(self.unread) < size:
            try:
                data = self.socket.recv(65_536)
            except ConnectionResetError:
                data = b""
            if not data:
                return b""
            self.unread += data
        taken, self.unread = self.unread[:size], self.unread[size:]
        return taken
