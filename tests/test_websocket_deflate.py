"""permessage-deflate: who gets it, what it bounds, and other people's clients with it."""

import asyncio
import os
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator

import aiohttp
import jwt
import pytest
import websockets
from harness import RunningServer
from hypothesis import given, settings
from hypothesis import strategies as st
from test_websocket import NARROW, WebPeer, hears_whole_messages_and_its_code
from web import Web, close, deflated, frame, request

from imserver import Server, _core
from imserver.config import Config, ConfigError, Websocket
from imserver.gateway_core import make_core
from imserver.protocol import (
    CODEC_JSON,
    NO_ECHO,
    FrameType,
    Hello,
    encode_frame,
    encode_message,
)
from imserver.upgrade_extensions import AGREED, offers_deflate
from imserver.websocket import WebSocket

pytestmark = pytest.mark.skipif(not _core.HAS_ZLIB, reason="a build without zlib")

Start = Callable[..., RunningServer]
OFFER = "permessage-deflate; client_max_window_bits"
SECRET = "0123456789abcdef0123456789abcdef"
HELLO = encode_frame(FrameType.HELLO, Hello(1, user="ann"), CODEC_JSON, 1)
ON = {"deflate": True}


def asked(path: str = "/ws", offer: str = OFFER, **headers: str) -> bytes:
    if path == "/ws":
        headers = {"sec_websocket_protocol": "im.v1"} | headers
    return request(path, sec_websocket_extensions=offer, **headers)


def serve_echo(server: Server) -> None:
    @server.on_websocket("/echo", deflate=True)
    async def echo(socket: WebSocket) -> None:
        async for message in socket:
            socket.send(message)

    @server.on_websocket("/strangers")
    async def strangers(socket: WebSocket) -> None:
        async for message in socket:
            socket.send(message)


@pytest.fixture(scope="module")
def shared() -> Iterator[RunningServer]:
    from harness import dev_config

    running = RunningServer(dev_config(websocket=ON), serve_echo)
    yield running
    running.stop()


@pytest.fixture
def server(shared: RunningServer) -> Iterator[RunningServer]:
    yield shared
    shared.forget_peers()


class DeflatePeer(WebPeer):
    """A client that compresses all it sends."""

    def __init__(self, address: tuple[str, int], receive_bytes: int = 0) -> None:
        self.web = Web(address, asked(), receive_bytes=receive_bytes)
        assert f"Sec-WebSocket-Extensions: {AGREED}" in self.web.head
        self.socket = self.web.socket
        self.unread = b""
        self.pongs = []

    def send(self, *frames: bytes) -> None:
        self.web.send(deflated(2, b"".join(frames)))


@pytest.fixture
def ann(server: RunningServer) -> Iterator[DeflatePeer]:
    ann = DeflatePeer(server.address)
    ann.login("ann")
    ann.subscribe("room:1")
    yield ann
    ann.close()


# Who gets it

TAKEN = [
    "permessage-deflate",
    OFFER,
    "permessage-deflate; client_max_window_bits=10",
    'permessage-deflate; client_max_window_bits="10"',
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    "permessage-bzip2, ,permessage-deflate ;client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=9, permessage-deflate",
]
PASSED_OVER = [
    "",
    "x-webkit-deflate-frame",
    "permessage-deflate; server_max_window_bits=15",
    "permessage-deflate; unknown",
    "permessage-deflate; server_no_context_takeover=1",
    "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; client_max_window_bits=7",
    "permessage-deflate; client_max_window_bits=16",
    "permessage-deflate; client_max_window_bits=08",
    "permessage-deflate; client_max_window_bits; client_max_window_bits=9",
    "PermessageDeflate, permessage-deflate2",
]
MALFORMED = [
    "permessage-deflate;",
    ";",
    "permessage-deflate client_max_window_bits",
    "permessage-deflate; client_max_window_bits=",
    "permessage-deflate; =10",
    'permessage-deflate; client_max_window_bits="10',
    'permessage-deflate; client_max_window_bits="1 0"',
    "permessage deflate",
    "permessage-deflate; (comment)",
    "permessage-defl\u00e4te",
]


def test_offers_are_judged_one_by_one() -> None:
    assert [offer for offer in TAKEN if not offers_deflate(offer)] == []
    assert [offer for offer in PASSED_OVER if offers_deflate(offer)] == []


@given(st.text(alphabet="ab;=, \"'\t1", max_size=30) | st.text(max_size=10))
def test_a_header_is_a_list_or_an_error(header: str) -> None:
    try:
        assert not offers_deflate(header)
    except ValueError:
        assert header.strip(" \t,")


@pytest.mark.parametrize("header", MALFORMED)
def test_a_header_that_is_no_list_is_refused(server: RunningServer, header: str) -> None:
    data = asked(offer="MARK").replace(b"MARK", header.encode("latin-1"))
    web = Web(server.address, data)
    assert web.status == 400
    web.hang_up()


def agrees(server: RunningServer, data: bytes) -> bool:
    web = Web(server.address, data)
    assert web.status == 101
    web.hang_up()
    return f"\r\nSec-WebSocket-Extensions: {AGREED}" in web.head


def test_it_is_off_unless_it_is_set(start_server: Start) -> None:
    server = start_server(serve_echo)
    assert not agrees(server, asked())
    assert not agrees(server, asked("/echo"))


def token(user: str, secret: str = SECRET) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 60}, secret, "HS256")


def test_a_stranger_gets_it_nowhere(start_server: Start) -> None:
    """Nothing of theirs is inflated: without a good token a compressed HELLO is a broken rule."""
    keys = ({"algorithm": "HS256", "secret": SECRET},)
    server = start_server(serve_echo, dev=False, auth={"keys": keys}, websocket=ON)
    good, bad = token("ann"), token("ann", "x" * 32)
    assert agrees(server, asked(authorization=f"Bearer {good}"))
    assert agrees(server, asked(sec_websocket_protocol=f"im.v1, im.token.{good}"))
    assert agrees(server, request(sec_websocket_extensions=OFFER, authorization=f"Bearer {good}"))
    assert agrees(server, asked("/echo"))
    assert not agrees(server, asked("/strangers"))
    assert not agrees(server, asked("/strangers", authorization=f"Bearer {good}"))
    assert not agrees(server, asked())
    assert not agrees(server, asked(authorization=f"Bearer {bad}"))
    hello = encode_frame(FrameType.HELLO, Hello(1, token=good), CODEC_JSON, 1)
    web = Web(server.address, asked(), deflated(2, hello))
    assert web.closed() == 1002
    web.hang_up()
    assert server.stats()["inflated"] == 0
    web = Web(
        server.address,
        asked(authorization=f"Bearer {good}"),
        deflated(2, encode_frame(FrameType.HELLO, Hello(1), CODEC_JSON, 1)),
    )
    received = web.receive()
    assert received is not None
    assert b'"user":"ann"' in received[1]
    web.hang_up()


def test_a_build_without_zlib_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_core, "HAS_ZLIB", False)
    with pytest.raises(ConfigError, match=r"websocket.deflate: is not in this build.*zlib1g-dev"):
        make_core(Config(websocket=Websocket(deflate=True)))


# Frames


def test_compressed_and_not_both_ways(server: RunningServer, ann: DeflatePeer) -> None:
    bob = server.user("bob")
    bob.subscribe("room:1")
    for n, body in enumerate((b"short", b"long " * 2_000, os.urandom(3_000), b"")):
        frames = encode_message("room:1", "ann", body, id=n + 1)
        (ann.send if n % 2 else super(DeflatePeer, ann).send)(frames)
        received = [peer.expect(FrameType.MESSAGE) for peer in (ann, bob)]
        assert received[0] == received[1]
        assert received[0].endswith(body)
    assert ann.web.inflated == 1, "neither what is short nor what does not get smaller"


def test_many_small_messages_leave_compressed_together(
    server: RunningServer, ann: DeflatePeer
) -> None:
    bob = server.user("bob")
    frames = [encode_message("room:1", "bob", b"hello %d" % n, id=n + 1) for n in range(500)]
    before = server.stats()["deflate_saved_bytes"]
    bob.send(*frames)
    for n in range(500):
        assert ann.expect(FrameType.MESSAGE).endswith(b"hello %d" % n)
    assert ann.web.inflated
    assert server.stats()["deflate_saved_bytes"] - before > sum(map(len, frames)) / 2


STREAM = b"".join(
    encode_message("room:1", "ann", bytes([n]) * (n * 37 % 900), id=n + 1) for n in range(40)
)


@given(
    sizes=st.lists(st.integers(1, 4_000), min_size=1, max_size=12),
    pieces=st.lists(st.integers(1, 3_000), min_size=1, max_size=12),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=25)
def test_a_stream_is_the_same_however_it_is_cut(
    shared: RunningServer, sizes: list[int], pieces: list[int], seed: int
) -> None:
    """Into messages, compressed or not, in fragments with pings between, and into reads."""
    chance = random.Random(seed)
    sent, at = b"", 0
    while at < len(STREAM):
        part = STREAM[at : at + sizes[chance.randrange(len(sizes))]]
        at += len(part)
        whole = deflated(2, part) if chance.random() < 0.7 else frame(2, part)
        if chance.random() < 0.3:
            data = zlib.compressobj(1, zlib.DEFLATED, -15)
            packed = (data.compress(part) + data.flush(zlib.Z_SYNC_FLUSH))[:-4]
            cut = chance.randrange(len(packed) + 1)
            whole = frame(0x42, packed[:cut], fin=False) + frame(9, b"?") + frame(0, packed[cut:])
        sent += whole
    ann = DeflatePeer(shared.address)
    ann.login("ann", device=f"d{seed}")
    ann.subscribe("room:1")
    at = 0
    while at < len(sent):
        piece = sent[at : at + pieces[chance.randrange(len(pieces))]]
        ann.web.send(piece)
        at += len(piece)
    for n in range(40):
        body = ann.expect(FrameType.MESSAGE)
        assert int.from_bytes(body[16:24]) == n + 1
        assert body.endswith(b"ann" + bytes([n]) * (n * 37 % 900))
    ann.close()


def test_what_follows_hello_in_one_read_waits_for_its_answer(server: RunningServer) -> None:
    ann = DeflatePeer(server.address)
    subscribe = struct.pack(">IBBH", 4, FrameType.PING, 0, 7)
    ann.web.send(deflated(2, HELLO), deflated(2, subscribe), deflated(2, STREAM[:100]))
    ann.expect(FrameType.WELCOME)
    ann.expect(FrameType.PONG)
    ann.close()


BROKEN = {
    "compressed text": (1003, deflated(1, b"{}")),
    "a compressed ping": (1002, frame(0x49)),
    "a compressed close": (1002, frame(0x48, b"\x03\xe8")),
    "a compressed continuation": (1002, frame(2, fin=False) + frame(0x40)),
    "what cannot be inflated": (1002, frame(0x42, b"\xff" * 10)),
    "a message that was cut": (1002, frame(0x42, b"\xf2\x48")),
    "nothing at all": (1002, frame(0x42)),
    "a bomb": (1009, deflated(2, bytes(10_000_000), level=9)),
    "a large one in fragments": (
        1009,
        frame(0x42, bytes(40_000), fin=False) + frame(0, bytes(40_000)),
    ),
    "no frames": (4004, deflated(2, b"\xff" * 8)),
}


@pytest.mark.parametrize(("code", "data"), BROKEN.values(), ids=BROKEN)
def test_a_broken_rule_has_its_code(
    server: RunningServer, ann: DeflatePeer, code: int, data: bytes
) -> None:
    bob = DeflatePeer(server.address)
    bob.login("bob")
    ann.web.send(deflated(2, encode_message("room:1", "ann", b"before")), data)
    assert ann.expect(FrameType.MESSAGE).endswith(b"before"), "what came before has its effect"
    assert ann.web.closed() == code
    bob.ping()
    bob.close()


def test_before_hello_a_message_is_bounded_as_hello_is(start_server: Start) -> None:
    server = start_server(websocket=ON, limits={"hello_bytes": 1_000})
    for data in (deflated(2, bytes(1_001)), frame(0x42, bytes(2_000))):
        web = Web(server.address, asked(), data)
        assert web.closed() == 1009
        web.hang_up()
    assert server.stats()["inflated"] == 0


def test_bombs_within_the_bound_take_turns_with_others(start_server: Start) -> None:
    """400 messages of 60 kB, each from one of less than 200 bytes: one read of them is 20 MB and
    more, and the memory for all messages is 16."""
    server = start_server(websocket=ON, threads=1, limits={"pool_bytes": 2**24})
    ann, bob = DeflatePeer(server.address), server.user("bob")
    ann.login("ann")
    ann.subscribe("room:1")
    bomb = deflated(2, encode_message("room:1", "ann", bytes(60_000)), level=9)
    assert len(bomb) < 200
    ann.web.send(bomb * 400)
    bob.ping()
    for _ in range(400):
        assert ann.expect(FrameType.MESSAGE).endswith(bytes(60_000))
    assert server.stats()["pool_refusals"] == 0
    bomb = deflated(2, encode_message("room:2", "ann", bytes(60_000)), level=9)
    ann.web.send(bomb)
    ann.ping()
    turns = server.stats()["turns"]
    ann.web.send(bomb * 400)
    ann.ping()
    assert server.stats()["turns"] - turns > 80, "also where nobody reads them"
    ann.close()


def test_a_slow_reader_gets_whole_messages_in_order(start_server: Start) -> None:
    """The kernel takes pieces of what was compressed; the rest waits in the outbox."""
    limits = {"outbox_hard_bytes": 2**24, "outbox_soft_bytes": 2**23, "max_frame_bytes": 2**18}
    server = start_server(websocket=ON, limits=limits)
    bob, ann = DeflatePeer(server.address, receive_bytes=4_096), server.user("ann")
    bob.login("bob")
    bob.subscribe("room:1")
    noise = os.urandom(3_000)
    sizes = [random.Random(n).choice((10, 900, 5_000, 70_000)) for n in range(600)]
    bodies = [(noise[:400] + b"text " * 20_000)[:size] + b"%d" % n for n, size in enumerate(sizes)]
    for n, body in enumerate(bodies):
        ann.publish("room:1", "ann", body, id=n + 1, flags=NO_ECHO)
        if n % 100 == 99:
            ann.ping()
            bob.web.send(frame(9, b"?"))
    for body in bodies:
        assert bob.expect(FrameType.MESSAGE).endswith(b"ann" + body)
    assert bob.web.inflated > 1
    bob.close()


def test_a_reader_that_stops_hears_whole_messages_and_its_code(start_server: Start) -> None:
    server = start_server(websocket=ON, limits=NARROW)
    bob = DeflatePeer(server.address, receive_bytes=4_096)
    hears_whole_messages_and_its_code(server, bob, lambda: os.urandom(1_000) + b"x" * 500)
    assert bob.web.inflated


def test_nothing_is_left_behind(server: RunningServer) -> None:
    before = server.stats()["messages"]
    bomb = deflated(2, encode_message("room:9", "ann", bytes(50_000)), level=9)
    for n in range(30):
        ann = DeflatePeer(server.address)
        ann.login("ann")
        ann.web.send(bomb * (n + 1), frame(0x42, b"half", fin=False), bomb[: n + 1])
        ann.web.hang_up()
    for _ in range(1_000):
        stats = server.stats()
        if not stats["connections"] and stats["messages"] <= before + 5:
            return
        time.sleep(0.01)
    raise AssertionError(server.stats())


# Messages of a program


@pytest.fixture
def echo(server: RunningServer) -> Iterator[Web]:
    web = Web(server.address, asked("/echo"))
    yield web
    web.hang_up()


def test_plain_messages_come_and_go(echo: Web) -> None:
    echo.send(deflated(1, b"hi"), deflated(2, bytes(60_000)), frame(1, "ü".encode() * 2_000))
    echo.send(frame(0x41, b"\xf2\x48", fin=False), frame(9), frame(0, b"\xcd\xc9\xc9\x07\x00"))
    received = [echo.receive() for _ in range(5)]
    assert received.pop(received.index((10, b""))) is not None
    assert received == [(1, b"hi"), (2, bytes(60_000)), (1, "ü".encode() * 2_000), (1, b"Hello")]
    assert echo.inflated == 2
    echo.send(close(1000))
    assert echo.closed() == 1000


PLAIN_BROKEN = {
    "no text": (1007, deflated(1, b"\xff")),
    "half a character": (1007, deflated(1, "ü".encode()[:1])),
    "a bomb": (1009, deflated(2, bytes(65_537))),
    "a large bomb": (1009, deflated(2, bytes(20_000_000))),
    "what cannot be inflated": (1002, frame(0x42, b"\xff" * 10)),
}


@pytest.mark.parametrize(("code", "data"), PLAIN_BROKEN.values(), ids=PLAIN_BROKEN)
def test_a_broken_plain_message_has_its_code(echo: Web, code: int, data: bytes) -> None:
    echo.send(deflated(2, b"before"), data)
    assert echo.receive() == (2, b"before")
    assert echo.closed() == code


# Other people's clients


async def test_websockets_gets_along(server: RunningServer) -> None:
    url = "ws://{}:{}".format(*server.address)
    async with websockets.connect(url + "/ws", subprotocols=["im.v1"]) as ws:  # type: ignore[list-item]
        assert ws.response
        assert ws.response.headers["Sec-WebSocket-Extensions"] == AGREED
        await ws.send(HELLO)
        assert (await ws.recv())[4] == FrameType.WELCOME
    async with websockets.connect(url + "/echo") as ws:
        for message in ("hi", "ü" * 20_000, bytes(60_000), os.urandom(60_000), ""):
            await ws.send(message)
            assert await ws.recv() == message
        await ws.send(["a" * 2_000, "b" * 2_000])
        assert await ws.recv() == "a" * 2_000 + "b" * 2_000
    assert ws.close_code == 1000


async def test_aiohttp_gets_along(server: RunningServer) -> None:
    url = "http://{}:{}".format(*server.address)
    async with aiohttp.ClientSession() as session:
        async with session.ws_connect(url + "/ws", protocols=["im.v1"], compress=15) as ws:
            assert ws.compress
            await ws.send_bytes(HELLO)
            assert (await ws.receive_bytes())[4] == FrameType.WELCOME
        async with session.ws_connect(url + "/echo", compress=15) as ws:
            for text in ("hi", "ü" * 20_000):
                await ws.send_str(text)
                assert await ws.receive_str() == text


async def test_text_is_compressed_too(server: RunningServer) -> None:
    async with websockets.connect("ws://{}:{}/ws".format(*server.address)) as ws:
        await ws.send('{"type": "hello", "version": 1, "user": "ann"}')
        assert '"welcome"' in await ws.recv()
        await asyncio.sleep(0)
