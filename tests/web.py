"""A bare WebSocket: what a client would send, byte for byte, and what it gets."""

import base64
import os
import struct
import zlib

from harness import connected

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


def deflated(opcode: int, payload: bytes, *, level: int = 6) -> bytes:
    """A whole message, compressed."""
    shrinker = zlib.compressobj(level, zlib.DEFLATED, -15)
    data = shrinker.compress(payload) + shrinker.flush(zlib.Z_SYNC_FLUSH)
    return frame(0x40 | opcode, data.removesuffix(b"\0\0\xff\xff"))


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
        self.socket = connected(address, receive_bytes)
        self.unread = b""
        self.head = ""
        self.inflated = 0  # messages that came compressed
        self.fragments: list[tuple[int, bytes]] = []  # of one that has not ended
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
        """The next message of the server, or a control frame: (opcode, payload), None at the end
        of the stream."""
        while (received := self._receive_frame()) is not None:
            opcode, is_last, data = received
            if opcode >= 8:
                return opcode, data
            assert bool(opcode) == (not self.fragments), "the first has the opcode, the others none"
            self.fragments.append((opcode, data))
            if is_last:
                whole = b"".join(data for _, data in self.fragments)
                opcode = self.fragments[0][0]
                self.fragments.clear()
                return opcode, whole
        return None

    def _receive_frame(self) -> tuple[int, bool, bytes] | None:
        head = self._take(2)
        if not head:
            return None
        is_deflated = head[0] & 0x40
        assert head[0] & 0x30 == 0, "without reserved bits"
        assert not head[1] & 0x80, "a server masks nothing"
        size = head[1]
        if size == 126:
            size = struct.unpack(">H", self._take(2))[0]
        elif size == 127:
            size = struct.unpack(">Q", self._take(8))[0]
        data = self._take(size)
        if is_deflated:
            assert "permessage-deflate" in self.head
            assert head[0] & 0x0F < 8
            self.inflated += 1
            data = zlib.decompressobj(-15).decompress(data + b"\0\0\xff\xff")
        return head[0] & 0x0F, bool(head[0] & 0x80), data

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
