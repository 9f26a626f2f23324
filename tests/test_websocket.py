"""WebSocket on the client port: the same frames, the same rules, and messages for the program."""

import asyncio
import json
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest
import websockets
from harness import Peer, RunningServer
from web import Web, close, frame, request

from imserver import Server
from imserver.protocol import (
    CODEC_JSON,
    NO_ECHO,
    FrameType,
    Hello,
    Subscribe,
    encode_bare,
    encode_frame,
    encode_message,
)
from imserver.websocket import WebSocket

Start = Callable[..., RunningServer]
IM = request(sec_websocket_protocol="im.v1")


class WebPeer(Peer):
    """A client whose frames are in binary messages."""

    def __init__(self, address: tuple[str, int], receive_bytes: int = 0) -> None:
        self.web = Web(address, IM, receive_bytes=receive_bytes)
        assert self.web.status == 101
        self.socket = self.web.socket
        self.unread = b""
        self.pongs: list[bytes] = []

    def send(self, *frames: bytes) -> None:
        self.web.send(frame(2, b"".join(frames)))

    def receive(self) -> tuple[int, int, int, bytes] | None:
        while len(self.unread) < 4 or len(self.unread) < int.from_bytes(self.unread[:4]) + 4:
            received = self.web.receive()
            if received is None or received[0] == 8:
                return None
            if received[0] == 10:
                self.pongs.append(received[1])
                continue
            assert received[0] == 2
            self.unread += received[1]
        size = int.from_bytes(self.unread[:4]) + 4
        whole, self.unread = self.unread[:size], self.unread[size:]
        return whole[4], whole[5], struct.unpack(">H", whole[6:8])[0], whole[8:]


@pytest.fixture
def web(server: RunningServer) -> Iterator[Callable[..., WebPeer]]:
    peers: list[WebPeer] = []

    def log_in(user: str, receive_bytes: int = 0) -> WebPeer:
        peers.append(WebPeer(server.address, receive_bytes))
        peers[-1].login(user, device=f"web-{len(peers)}")
        return peers[-1]

    yield log_in
    for peer in peers:
        peer.close()


# Frames in messages


def test_tcp_and_websocket_get_the_same_bytes(
    server: RunningServer, web: Callable[..., WebPeer]
) -> None:
    ann, bob, eve = web("ann"), server.user("bob"), web("eve")
    for peer in (ann, bob, eve):
        peer.subscribe("room:1")
    for author, user in ((ann, "ann"), (bob, "bob")):
        author.publish("room:1", user, b"hello", id=7)
        received = [peer.expect(FrameType.MESSAGE) for peer in (ann, bob, eve)]
        assert received[0] == received[1] == received[2]
        assert received[0].endswith(b"hello")


def test_several_frames_in_a_message_and_one_over_several(web: Callable[..., WebPeer]) -> None:
    ann = web("ann")
    ann.subscribe("room:1")
    frames = [encode_message("room:1", "ann", b"%d" % n, id=n + 1) for n in range(10)]
    whole = b"".join(frames)
    ann.send(*frames)
    ann.web.send(frame(2, whole[:13], fin=False), frame(9, b"?"), frame(0, whole[13:]))
    ann.web.send(*(frame(2, whole[n : n + 1]) for n in range(len(whole))))
    bodies = [ann.expect(FrameType.MESSAGE)[-1:] for _ in range(30)]
    assert bodies == [b"%d" % n for n in range(10)] * 3
    assert ann.pongs == [b"?"]


@pytest.mark.parametrize("piece", [1, 2, 5, 61])
def test_bytes_that_drip_are_the_same(web: Callable[..., WebPeer], piece: int) -> None:
    ann = web("ann")
    ann.subscribe("room:1")
    sent = b"".join(
        frame(2, encode_message("room:1", "ann", b"x" * size, id=size + 1))
        for size in (0, 1, 100, 200)
    ) + frame(9, b"a ping in the middle")
    for at in range(0, len(sent), piece):
        ann.web.send(sent[at : at + piece])
    bodies = [ann.expect(FrameType.MESSAGE).partition(b"ann")[2] for _ in range(4)]
    assert bodies == [b"x" * size for size in (0, 1, 100, 200)]
    ann.ping()
    assert ann.pongs == [b"a ping in the middle"]


def test_a_large_frame_goes_through_whole(start_server: Start) -> None:
    server = start_server(
        limits={"max_frame_bytes": 2**20, "outbox_hard_bytes": 2**23, "outbox_soft_bytes": 2**21}
    )
    ann, bob = WebPeer(server.address), server.user("bob")
    ann.login("ann")
    body = bytes(range(256)) * 4_000
    for peer in (ann, bob):
        peer.subscribe("room:1")
    ann.publish("room:1", "ann", body)
    assert ann.expect(FrameType.MESSAGE).endswith(body)
    assert bob.expect(FrameType.MESSAGE).endswith(body)
    ann.close()


def test_what_is_no_frame_is_closed_with_our_code(web: Callable[..., WebPeer]) -> None:
    ann = web("ann")
    ann.web.send(frame(2, b"\xff" * 8))
    assert ann.web.closed() == 4004


BROKEN = {
    "text": (1003, frame(1, b"{}")),
    "reserved bits": (1002, frame(2, b"", first=0xC2)),
    "no mask": (1002, b"\x82\x00"),
    "an unknown opcode": (1002, frame(3)),
    "a continuation of nothing": (1002, frame(0)),
    "a fragmented ping": (1002, frame(9, fin=False)),
    "a close of one byte": (1002, frame(8, b"\x03")),
    "a close code that is none": (1002, close(1005)),
    "a close reason that is no text": (1007, close(1000, b"\xff")),
}


@pytest.mark.parametrize(("code", "data"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_has_the_code_of_the_rfc(
    web: Callable[..., WebPeer], code: int, data: bytes
) -> None:
    ann, bob = web("ann"), web("bob")
    bob.subscribe("room:1")
    ann.web.send(frame(2, encode_message("room:1", "ann", b"before")), data)
    assert bob.expect(FrameType.MESSAGE).endswith(b"before"), "what came before has its effect"
    assert ann.web.closed() == code
    bob.ping()


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4999])
def test_a_close_is_answered_with_its_code(web: Callable[..., WebPeer], code: int) -> None:
    ann = web("ann")
    ann.web.send(close(code, b"bye"), frame(9, b"nothing behind it is looked at"))
    assert ann.web.closed() == code


def test_our_close_says_the_same_as_our_frame(
    server: RunningServer, web: Callable[..., WebPeer]
) -> None:
    ann = web("ann")
    server.run(lambda: server.server.disconnect("ann"))
    received = ann.web.receive()
    while received is not None and received[1][4] != FrameType.GOAWAY:
        received = ann.web.receive()
    assert received is not None
    assert b'"code":4010' in received[1]
    assert ann.web.receive() == (8, struct.pack(">H", 4010))
    assert ann.web.receive() is None


#: Bounds that a reader meets soon who does not read.
NARROW = {"outbox_soft_bytes": 70_000, "outbox_hard_bytes": 140_000, "stall_ms": 60_000}


def hears_whole_messages_and_its_code(
    server: RunningServer, bob: WebPeer, body: Callable[[], bytes]
) -> None:
    """bob does not read what ann says until he is closed for it; then all that comes is whole."""
    ann = server.user("ann")
    bob.login("bob")
    bob.subscribe("room:1")
    for n in range(20_000):
        ann.publish("room:1", "ann", body(), id=n + 1, flags=NO_ECHO)
        if n % 50 == 0:
            ann.ping()
            if server.stats()["slow_readers"]:
                break
    assert server.stats()["slow_readers"] == 1
    ids = []
    while (received := bob.receive()) is not None:
        if received[0] == FrameType.MESSAGE:
            ids.append(int.from_bytes(received[3][16:24]))
        else:
            assert received[0] == FrameType.GOAWAY
            assert b"4109" in received[3]
    assert ids == list(range(1, len(ids) + 1)), "in order, up to where it ends"
    bob.close()


def test_a_reader_that_stops_hears_a_whole_message_and_its_code(start_server: Start) -> None:
    """What was begun is finished, or nothing behind it could be read."""
    server = start_server(limits=NARROW)
    bob = WebPeer(server.address, receive_bytes=4_096)
    hears_whole_messages_and_its_code(server, bob, lambda: b"x" * 1_000)


def test_a_silent_peer_is_asked_and_closed(start_server: Start) -> None:
    server = start_server(heartbeat={"interval_ms": 150, "timeout_ms": 100, "max_missed": 2})
    ann = WebPeer(server.address)
    ann.login("ann")
    ann.expect(FrameType.PING)
    assert ann.web.closed() == 4108


def test_durable_messages_come_and_are_acknowledged(tmp_path: Any, start_server: Start) -> None:
    server = start_server(data_dir=str(tmp_path))
    ann = WebPeer(server.address)
    ann.login("ann")
    body = Subscribe("room:1", durable=True)
    ann.send(encode_frame(FrameType.SUBSCRIBE, body, CODEC_JSON, 2))
    ann.expect(FrameType.SUBSCRIBED)
    for n in range(1, 301):
        ann.publish("room:1", "ann", b"x", id=n, flags=1)
    kinds = {FrameType.RECEIPT: 0, FrameType.MESSAGE: 0}
    while kinds[FrameType.RECEIPT] < 300 or kinds[FrameType.MESSAGE] < 300:
        received = ann.receive()
        assert received is not None
        if received[0] in kinds:
            kinds[FrameType(received[0])] += 1
        if received[0] == FrameType.MESSAGE:
            seq = received[3][:8]
            ann.send(struct.pack(">IBBH", 4 + 8 + 6, FrameType.ACK, 0, 0) + seq + b"room:1")
    ann.close()


# JSON text


def test_text_is_every_frame_as_an_object(tmp_path: Any, start_server: Start) -> None:
    server = start_server(data_dir=str(tmp_path))
    web = Web(server.address)

    def ask(**fields: Any) -> None:
        web.send(frame(1, json.dumps(fields).encode()))

    def expect(type: str) -> dict[str, Any]:
        while (received := web.receive()) is not None:
            assert received[0] == 1
            said: dict[str, Any] = json.loads(received[1])
            if said["type"] == type:
                return said
        raise AssertionError(f"the end; expected {type}")

    ask(type="hello", version=1, user="ann", request=1)
    assert expect("welcome")["user"] == "ann"
    ask(type="subscribe", topic="room:1", durable=True, request=2)
    while (said := expect("subscribed"))["topic"] != "room:1":
        pass
    assert said["request"] == 2
    ask(type="message", topic="room:1", tag="t", body={"a": [1, "ü"]}, durable=True, id=9)
    receipt = expect("receipt")
    assert (receipt["id"], receipt["seq"]) == (9, 1)
    message = expect("message")
    assert message == message | {
        "topic": "room:1", "tag": "t", "sender": "ann", "seq": 1, "id": 9, "durable": True,
        "body": {"a": [1, "ü"]},
    }  # fmt: skip
    ask(type="ack", topic="room:1", seq=1)
    ask(type="message", topic="room:1", base64="AP8=", id=10)
    assert expect("message")["base64"] == "AP8="
    ask(type="call", method="history", params={"topic": "room:1"}, request=3)
    assert expect("result")["request"] == 3
    ask(type="ping", request=4)
    assert expect("pong")["request"] == 4
    for wrong in (
        "nonsense",
        '{"type": "nothing"}',
        '{"type": "message", "topic": "room:1"}',
        "[]",
    ):
        web.send(frame(1, wrong.encode()))
        assert expect("error")["code"] in (400, 422)
    ask(type="publish")
    assert expect("error")["code"] == 400
    web.send(frame(2, encode_bare(FrameType.PING)))
    assert expect("error")["code"] == 400, "frames want the subprotocol"
    server.run(lambda: server.server.disconnect("ann"))
    assert expect("goaway")["code"] == 4010
    assert web.closed() == 4010
    web.hang_up()


def test_text_without_a_login_is_told_why(server: RunningServer) -> None:
    web = Web(server.address)
    web.send(frame(1, b'{"type": "subscribe", "topic": "room:1"}'))
    assert web.closed() == 4001
    web.hang_up()


def test_text_that_is_none_ends_it(server: RunningServer) -> None:
    for piece in (frame(1, b"\xff"), frame(1, b"\xe2\x82", fin=False) + frame(0, b"A")):
        web = Web(server.address)
        web.send(piece)
        assert web.closed() == 1007
        web.hang_up()


def test_who_leaves_leaves_nothing_behind(start_server: Start) -> None:
    server = start_server()
    for n in range(20):
        web = Web(server.address)
        if n % 2:
            web.send(frame(1, b'{"type": "hello", "version": 1, "user": "ann"}'))
            web.receive()
        web.hang_up()
    for _ in range(1_000):
        if not server.stats()["connections"]:
            return
        time.sleep(0.01)
    raise AssertionError(server.stats()["connections"])


# Messages of the program's own


@pytest.fixture
def echo(start_server: Start) -> RunningServer:
    def prepare(server: Server) -> None:
        @server.on_websocket("/echo")
        async def echo(socket: WebSocket) -> None:
            async for message in socket:
                socket.send(message)

        @server.on_websocket("/fails")
        async def fail(socket: WebSocket) -> None:
            raise RuntimeError("on purpose")

        @server.on_websocket("/leaves")
        async def leave(socket: WebSocket) -> None:
            socket.send(f"{socket.path} {socket.token}")
            socket.close(4321)

    return start_server(prepare)


def test_whole_messages_come_and_go(echo: RunningServer) -> None:
    web = Web(echo.address, request("/echo"))
    web.send(frame(1, b"hel", fin=False), frame(9), frame(0, b"lo"), frame(2, b"\0\1"))
    web.send(*(frame(2, bytes([n])) for n in range(200)))
    received = [web.receive() for _ in range(203)]
    assert received.pop(received.index((10, b""))) is not None
    assert received[:2] == [(1, b"hello"), (2, b"\0\1")]
    assert received[2:] == [(2, bytes([n])) for n in range(200)]
    web.send(close(1000))
    assert web.closed() == 1000
    web.hang_up()


def test_a_message_that_is_too_large_is_refused_before_it_comes(echo: RunningServer) -> None:
    for data in (b"\x82\xff" + struct.pack(">Q", 2**40) + b"key!", frame(2, bytes(65_537))):
        web = Web(echo.address, request("/echo"))
        web.send(data)
        assert web.closed() == 1009
        web.hang_up()
    web = Web(echo.address, request("/echo"))
    for _ in range(70):
        web.send(frame(0 if _ else 2, bytes(1_000), fin=False))
    assert web.closed() == 1009
    web.hang_up()


def test_a_handler_ends_the_connection_and_its_failure_too(echo: RunningServer) -> None:
    web = Web(echo.address, request("/leaves", authorization="Bearer abc"))
    assert web.receive() == (1, b"/leaves abc")
    assert web.closed() == 4321
    web.hang_up()
    web = Web(echo.address, request("/fails"))
    assert web.closed() == 4100
    web.hang_up()


def test_there_is_no_subprotocol_on_a_path_of_the_program(echo: RunningServer) -> None:
    web = Web(echo.address, request("/echo", sec_websocket_protocol="im.v1"))
    assert web.status == 400
    web.hang_up()


def test_a_drain_closes_plain_ones_too(echo: RunningServer) -> None:
    web = Web(echo.address, request("/echo"))
    echo.run(lambda: echo.server.drain(5))
    assert web.closed() == 4201
    web.hang_up()


# Other people's clients


@pytest.fixture
async def bob_reads(server: RunningServer) -> Peer:
    bob = await asyncio.to_thread(server.user, "bob")
    await asyncio.to_thread(bob.subscribe, "room:1")
    return bob


HELLO = encode_frame(FrameType.HELLO, Hello(1, user="ann"), CODEC_JSON, 1)


async def test_websockets_gets_along(server: RunningServer, bob_reads: Peer) -> None:
    url = "ws://{}:{}/ws".format(*server.address)
    async with websockets.connect(url, subprotocols=["im.v1"]) as ws:  # type: ignore[list-item]
        assert ws.subprotocol == "im.v1"
        await ws.send(HELLO)
        assert (await ws.recv())[4] == FrameType.WELCOME
        await ws.send([encode_message("room:1", "ann", b"in "), b""])
        await ws.send(encode_message("room:1", "ann", b"x" * 40_000))
        await (await ws.ping(b"?"))
    assert ws.close_code == 1000
    for body in (b"in ", b"x" * 40_000):
        assert (await asyncio.to_thread(bob_reads.expect, FrameType.MESSAGE)).endswith(body)


async def test_aiohttp_gets_along(server: RunningServer, bob_reads: Peer) -> None:
    url = "http://{}:{}/ws".format(*server.address)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(url, protocols=["im.v1"]) as ws,
    ):
        await ws.send_bytes(HELLO)
        assert (await ws.receive_bytes())[4] == FrameType.WELCOME
        await ws.send_bytes(encode_message("room:1", "ann", b"hello"))
        body = await asyncio.to_thread(bob_reads.expect, FrameType.MESSAGE)
        assert body.endswith(b"hello")
        await ws.close(code=4000)
    assert ws.close_code == 4000
