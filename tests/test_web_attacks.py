"""Strangers and vandals over HTTP and WebSocket: refused, bounded, and no harm to anybody else."""

import asyncio
import base64
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from harness import Peer, RunningServer
from test_websocket import IM, WebPeer
from web import Web, close, frame, request

from imserver import Server
from imserver.gateway_tasks import RUNNING_MAX
from imserver.protocol import CODEC_JSON, CODEC_MSGPACK, FrameType
from imserver.websocket import WebSocket

Start = Callable[..., RunningServer]
#: Half-open requests at a time, from a process of their own: each may have 20,000 descriptors.
HALF_OPEN = 10_000
STRANGERS = """
import socket, sys
port, count, half = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
sockets = []
for n in range(count):
    sockets.append(socket.create_connection(("127.0.0.1", port)))
    sockets[-1].sendall(half[: 20 + n % 100])
print("open", flush=True)
print({one.recv(20)[:12] for one in sockets})
"""


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def wait_until(is_so: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if is_so():
            return
        time.sleep(0.01)
    raise AssertionError("it did not become so")


@contextmanager
def unharmed(server: RunningServer) -> Iterator[Peer]:
    """Somebody who is served all the while; then everything is as it was before."""
    bob = server.user("bob", device=str(time.time_ns()))
    bob.subscribe("room:calm")
    wait_until(lambda: server.stats()["connections"] == 1)
    wait_until(lambda: server.stats()["subscriptions"] == 1)
    files = descriptors()
    yield bob
    bob.publish("room:calm", "bob", b"still here")
    assert bob.expect(FrameType.MESSAGE).endswith(b"still here")
    bob.ping()
    wait_until(lambda: server.stats()["connections"] == 1)
    wait_until(lambda: server.stats()["subscriptions"] == 1)
    wait_until(lambda: server.stats()["messages"] == 0)
    wait_until(lambda: descriptors() == files)


def reset(web: Web) -> None:
    web.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def say(**fields: Any) -> bytes:
    return frame(1, json.dumps(fields).encode())


class TextPeer(Web):
    """A login over JSON text."""

    def __init__(self, address: tuple[str, int], user: str) -> None:
        super().__init__(address)
        self.send(say(type="hello", version=1, user=user, device=str(time.time_ns())))
        self.expect("welcome")

    def expect(self, type: str) -> dict[str, Any]:
        while (received := self.receive()) is not None:
            if received[0] == 1:
                said: dict[str, Any] = json.loads(received[1])
                if said["type"] == type:
                    return said
            else:
                assert received[0] == 9, f"{received}; expected {type}"
        raise AssertionError(f"the end; expected {type}")


# Requests


def test_half_open_requests_end_in_their_time_and_disturb_nobody(start_server: Start) -> None:
    server = start_server(limits={"handshake_ms": 15_000})
    with unharmed(server) as bob:
        command = [sys.executable, "-c", STRANGERS, str(server.address[1]), str(HALF_OPEN)]
        with subprocess.Popen([*command, IM.decode()], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            assert child.stdout.readline() == "open\n"
            bob.ping()
            stats = server.stats()
            assert stats["connections"] == HALF_OPEN + 1
            assert stats["messages"] <= HALF_OPEN + 10, "a small buffer each, in a bounded pool"
            assert child.stdout.readline().strip() == repr({b"HTTP/1.1 408"})


def test_a_head_that_drips_or_never_ends_is_refused(start_server: Start) -> None:
    server = start_server(limits={"handshake_ms": 500, "hello_bytes": 1_000})
    with unharmed(server):
        drip = socket.create_connection(server.address)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            for n in range(1_000):
                drip.sendall(IM[n % 10 : n % 10 + 1])
                time.sleep(0.01)
        drip.close()
        for size in (1_001, 50_000):
            web = Web(server.address, b"GET /" + b"x" * size)
            assert web.status == 431
            web.hang_up()


def test_a_storm_of_logins_leaves_nothing(server: RunningServer) -> None:
    with unharmed(server) as bob:
        for _ in range(5):
            webs = [Web(server.address, IM, answer=False) for _ in range(200)]
            for n, web in enumerate(webs):
                body = json.dumps({"version": 1, "user": f"u{n}"}).encode()
                hello = struct.pack(">IBBH", 4 + len(body), FrameType.HELLO, CODEC_JSON << 6, 1)
                web.send(frame(2, hello + body, fin=n % 2 == 0), frame(9, b"?"))
            for n, web in enumerate(webs):
                if n % 3:
                    web.read_head()
                    received = [web.receive(), web.receive()]
                    assert sorted(got[0] for got in received if got) == [2, 10]
                web.hang_up()
            bob.ping()


# Frames


def test_frames_that_drip_keep_nobody_alive(start_server: Start) -> None:
    server = start_server(heartbeat={"interval_ms": 150, "timeout_ms": 100, "max_missed": 2})
    ann = WebPeer(server.address)
    ann.login("ann")
    with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
        for byte in frame(2, bytes([0, 0, 200, 0]) + bytes(60_000)):
            ann.web.send(bytes([byte]))
            time.sleep(0.01)
    ann.close()


@pytest.mark.parametrize("path", ["/ws", "/sleeps"])
def test_floods_of_fragments_are_bounded(start_server: Start, path: str) -> None:
    """On a plain connection a message of a frame's size is too large; with the subprotocol the
    stream of payloads may go on, and ends at the first frame of ours that is too large."""
    server = start_server(sleepers)
    pieces = b"".join(frame(0, bytes([0, 200, 0, 0]) * 250, fin=False) for _ in range(80))
    asked = IM if path == "/ws" else request(path)
    with unharmed(server) as bob:
        for _ in range(30):
            web = Web(server.address, asked)
            web.socket.settimeout(20)
            try:
                web.send(frame(2, b"", fin=False), frame(0, b"", fin=False) * 5_000, pieces)
                assert web.closed() in (4013, 1009)
            except OSError:  # it was closed while we sent
                pass
            web.hang_up()
            bob.ping()


def test_whoever_sends_pings_and_reads_nothing_is_not_read(server: RunningServer) -> None:
    with unharmed(server) as bob:
        ann = WebPeer(server.address, receive_bytes=4_096)
        ann.login("ann")
        ann.socket.setblocking(False)
        ping = frame(9, b"?" * 125)
        pings = ping * 200_000
        given = 0
        for _ in range(200):
            try:
                given += ann.socket.send(pings[given : given + 1_000_000])
            except BlockingIOError:
                time.sleep(0.005)
        bob.ping()
        assert given < len(pings)
        assert server.stats()["messages"] < 20_000
        ann.socket.settimeout(20)
        received = 0
        while received < given // len(ping):
            got = ann.web.receive()
            assert got is not None
            received += got[0] == 10
        ann.close()


# Handlers of the program


def sleepers(server: Server) -> None:
    @server.on_websocket("/sleeps")
    async def sleep(socket: WebSocket) -> None:
        await asyncio.Event().wait()


def test_handlers_that_never_read_are_bounded_with_their_connections(start_server: Start) -> None:
    server = start_server(sleepers, limits={"calls": 4})
    with unharmed(server) as bob:
        first = Web(server.address, request("/sleeps"))
        first.socket.setblocking(False)
        with pytest.raises(BlockingIOError):  # noqa: PT012
            while True:
                first.socket.send(frame(2, bytes(10_000)))
        for _ in range(RUNNING_MAX // 512):
            webs = [Web(server.address, request("/sleeps"), answer=False) for _ in range(512)]
            for web in webs:
                web.read_head()
                web.hang_up()
            bob.ping()
        assert web.status == 503, "a handler that outlives its connection counts"
        text = Web(server.address)
        assert text.status == 503
        reset(first)
        for web in (first, text):
            web.hang_up()


# JSON text

TIMESTAMP = b"\xd6\xff\x00\x00\x00\x07"
STRANGE = {
    "a time": (CODEC_MSGPACK, TIMESTAMP),
    "an extension": (CODEC_MSGPACK, b"\xd4\x05x"),
    "nesting beyond JSON's": (CODEC_MSGPACK, b"\x91" * 1_011 + b"\x90"),
    "what JSON needs six bytes for": (CODEC_MSGPACK, msgspec.msgpack.encode("\0" * 60_000)),
    "keys that are lists": (CODEC_MSGPACK, b"\x81\x91\x01\x02"),
    "brackets": (CODEC_JSON, b"[" * 10_000 + b"]" * 10_000),
    "a number too large": (CODEC_JSON, b"1e999"),
    "a number too long": (CODEC_JSON, b"9" * 5_000),
    "half a surrogate pair": (CODEC_JSON, b'"\\ud800"'),
    "no JSON": (CODEC_JSON, b"\xff{"),
}


def test_no_body_makes_a_reader_of_text_deaf(start_server: Start) -> None:
    server = start_server()
    with unharmed(server) as bob:
        ann = TextPeer(server.address, "ann")
        ann.send(say(type="subscribe", topic="room:1", request=1))
        ann.expect("subscribed")
        for name, (codec, body) in STRANGE.items():
            bob.publish("room:1", "bob", body, codec=codec)
            said = ann.expect("message")
            assert "body" in said or base64.b64decode(said["base64"]) == body, name
        ann.hang_up()


ODD = {
    "brackets": '{"type": "message", "topic": "room:1", "body": '
    + "[" * 10_000
    + "]" * 10_000
    + "}",
    "parameters of brackets": '{"type": "call", "method": "x", "params": ' + "[" * 10_000,
    "a number too large": '{"type": "call", "method": "x", "params": 1e999}',
    "a number too long": '{"type": "call", "method": "x", "params": ' + "9" * 5_000 + "}",
    "an id too large": '{"type": "message", "topic": "room:1", "body": 1, "id": 1e30}',
    "half a surrogate pair": '{"type": "message", "topic": "\\ud800", "body": 1}',
    "half of another": '{"type": "subscribe", "topic": "\\udfff"}',
    "a request out of range": '{"type": "ping", "request": 65536}',
    "no type": "{}",
    "types twice": '{"type": "ping", "type": "none of ours"}',
    "a frame of the server": '{"type": "receipt", "id": 1, "seq": 1, "time": 1}',
    "nothing": "",
}


def test_odd_text_is_answered_with_an_error_and_the_connection_goes_on(
    server: RunningServer,
) -> None:
    with unharmed(server):
        ann = TextPeer(server.address, "ann")
        for name, text in ODD.items():
            ann.send(frame(1, text.encode()))
            assert ann.expect("error")["code"] in (400, 404, 422), name
        ann.send(say(type="ping", request=9))
        assert ann.expect("pong")["request"] == 9
        ann.hang_up()


def test_a_reader_of_text_needs_no_pongs_but_those_of_websocket(start_server: Start) -> None:
    server = start_server(heartbeat={"interval_ms": 150, "timeout_ms": 100, "max_missed": 2})
    ann = TextPeer(server.address, "ann")
    for _ in range(8):
        received = ann.receive()
        assert received is not None
        assert received[0] == 9
        ann.send(frame(10, received[1]))
    assert ann.closed() == 4108, "one that is silent there as well is given up"
    ann.hang_up()


ENDS: dict[str, Callable[[Web], None]] = {
    "at once": lambda web: None,
    "reset": reset,
    "close": lambda web: web.send(close(1000)),
    "broken": lambda web: web.send(frame(3)),
    "half a frame": lambda web: web.send(say(type="ping")[:-3]),
    "half its stream": lambda web: web.socket.shutdown(socket.SHUT_WR),
    "not a HELLO": lambda web: web.send(say(type="ping")),
    "a HELLO and gone": lambda web: web.send(say(type="hello", version=1, user="eve")),
    "much and gone": lambda web: web.send(say(type="call", method="none") * 300),
    "no such version": lambda web: web.send(say(type="hello", version=9, user="eve")),
}


def test_a_text_client_leaves_no_descriptor_however_it_ends(server: RunningServer) -> None:
    with unharmed(server):
        for logs_in in (False, True):
            for end in ENDS.values():
                for _ in range(5):
                    web = TextPeer(server.address, "ann") if logs_in else Web(server.address)
                    end(web)
                    web.hang_up()


def test_a_drain_leaves_no_descriptor_of_a_text_client(start_server: Start) -> None:
    server = start_server()
    files = descriptors()
    webs = [Web(server.address) for _ in range(3)]
    webs += [TextPeer(server.address, "ann") for _ in range(3)]
    webs[0].send(say(type="call", method="none")[:-3])
    server.run(lambda: server.server.drain(2))
    for web in webs:
        assert web.closed() == 4201
        web.hang_up()
    wait_until(lambda: descriptors() <= files)
