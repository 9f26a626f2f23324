"""Requests for WebSocket: who gets one, and what everybody else is told."""

import socket
import time
from collections.abc import Callable, Iterator

import jwt
import pytest
from harness import RunningServer
from web import Web, frame, request

from imserver import Config, Server
from imserver.config import Websocket
from imserver.gateway_upgrades import Origins
from imserver.protocol import CODEC_JSON, FrameType, Hello, encode_frame

Start = Callable[..., RunningServer]
HELLO = encode_frame(FrameType.HELLO, Hello(1, user="ann"), CODEC_JSON, 1)
IM = {"sec_websocket_protocol": "im.v1"}


@pytest.fixture
def server(start_server: Start) -> RunningServer:
    return start_server(
        limits={"hello_bytes": 2_048, "handshake_ms": 700},
        websocket={"origins": ("https://app.example", "http://other.example:8080")},
        http="127.0.0.1:7999",
    )


@pytest.fixture
def web(server: RunningServer) -> Iterator[Callable[..., Web]]:
    opened: list[Web] = []

    def open(asked: bytes, early: bytes = b"") -> Web:
        opened.append(Web(server.address, asked, early))
        return opened[-1]

    yield open
    for one in opened:
        one.hang_up()


def test_the_answer_is_that_of_the_rfc(web: Callable[..., Web]) -> None:
    key = "dGhlIHNhbXBsZSBub25jZQ=="
    answer = web(request(sec_websocket_key=key, **IM))
    assert answer.status == 101
    assert "\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer.head
    assert answer.head.endswith("\r\nSec-WebSocket-Protocol: im.v1")


ALLOWED = {
    "no browser": {},
    "a listed origin": {"origin": "https://app.example"},
    "another listed origin": {"origin": "http://other.example:8080"},
    "our own page": {"origin": "http://127.0.0.1:7999"},
    "our own page by its name": {"origin": "http://localhost:7999"},
    "with dev a page of this machine": {"origin": "http://localhost:3000"},
    "with dev one by its address": {"origin": "https://[::1]:3000"},
    "words in other letters": {"upgrade": "WebSocket", "connection": "keep-alive, UPGRADE"},
    "several subprotocols": {"sec_websocket_protocol": "chat, im.v1 ,im.token.abc"},
    "an empty body": {"content_length": "0"},
}


@pytest.mark.parametrize("headers", ALLOWED.values(), ids=ALLOWED)
def test_allowed(web: Callable[..., Web], headers: dict[str, str]) -> None:
    assert web(request(**(IM | headers))).status == 101


def test_a_query_means_nothing(web: Callable[..., Web]) -> None:
    assert web(request("/ws?token=abc", **IM)).status == 101


FOREIGN = [
    "null",
    "",
    "https://APP.example",
    "HTTP://localhost:7999",
    "http://app.example",
    "https://app.example:443",
    "https://app.example.evil.example",
    "https://evil.example/https://app.example",
    "https://evilapp.example",
    "https://app.example/",
    "https://app.example@evil.example",
    "https://sub.app.example",
    "http://127.0.0.1.evil.example",
    "http://localhost@evil.example",
    "http://localhost:80@evil.example",
    "http://localhost/evil",
    "http://localhost.evil.example:7999",
    "file://",
    "*",
    "https://app.example, https://evil.example",
    "https://app.example https://evil.example",
    "https://app\u0131.example".encode().decode("latin-1"),
]


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_page_of_somebody_else_gets_no_socket(web: Callable[..., Web], origin: str) -> None:
    """Cross-site WebSocket hijacking: the origin is compared as a whole."""
    asked = request(origin="MARK", **IM).replace(b"MARK", origin.encode("latin-1"))
    answer = web(asked)
    assert answer.status == 403
    assert "Upgrade" not in answer.head


def test_without_dev_a_page_of_this_machine_is_one_of_somebody_else() -> None:
    own = Origins(
        Config(http="127.0.0.1:7999", websocket=Websocket(origins=("https://a.example",)))
    )
    for origin in ("https://a.example", "http://127.0.0.1:7999", "http://localhost:7999"):
        assert own.may_come(origin)
    for origin in ("http://localhost:3000", "http://127.0.0.1", "http://127.0.0.1:7400", "null"):
        assert not own.may_come(origin)


REFUSED: dict[str, tuple[int, bytes]] = {
    "POST": (405, request(method="POST")),
    "HEAD": (405, request(method="HEAD")),
    "another path": (404, request("/")),
    "a longer path": (404, request("/ws/")),
    "a path that climbs": (404, request("/x/../ws")),
    "an encoded path": (404, request("/%77s")),
    "a path in other letters": (404, request("/WS")),
    "a whole URL": (404, request("http://127.0.0.1/ws")),
    "two slashes": (404, request("//ws")),
    "HTTP/1.0": (400, request(version="1.0")),
    "HTTP/2.0": (400, request(version="2.0")),
    "no Host": (400, request(host=None)),
    "no Upgrade": (426, request(upgrade=None)),
    "another protocol": (426, request(upgrade="h2c")),
    "no Connection": (426, request(connection="keep-alive")),
    "an old version": (426, request(sec_websocket_version="8")),
    "no version": (400, request(sec_websocket_version=None)),
    "no key": (400, request(sec_websocket_key=None)),
    "a short key": (400, request(sec_websocket_key="AAAA")),
    "a key that is not base64": (400, request(sec_websocket_key="!" * 24)),
    "another subprotocol": (400, request(sec_websocket_protocol="mqtt")),
    "a token alone": (400, request(sec_websocket_protocol="im.token.abc")),
    "two tokens": (
        400,
        request(authorization="Bearer a", sec_websocket_protocol="im.v1, im.token.b"),
    ),
    "another kind of authorization": (400, request(authorization="Basic YTpi", **IM)),
    "an empty bearer": (400, request(authorization="Bearer ", **IM)),
    "a body": (400, request(content_length="5", **IM) + b"hello"),
    "a chunked body": (400, request(transfer_encoding="chunked", **IM) + b"0\r\n\r\n"),
    "two lengths": (
        400,
        request(**IM).replace(b"\r\n\r\n", b"\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n"),
    ),
    "two hosts": (400, request(**IM).replace(b"\r\n\r\n", b"\r\nHost: other\r\n\r\n")),
    "two keys": (
        400,
        request(**IM).replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: AAAA\r\n\r\n"),
    ),
    "two versions": (
        400,
        request(**IM).replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Version: 13\r\n\r\n"),
    ),
    "two origins": (
        400,
        request(origin="https://app.example", **IM).replace(
            b"\r\n\r\n", b"\r\nOrigin: https://evil.example\r\n\r\n"
        ),
    ),
    "a folded header": (400, request(**IM).replace(b"\r\n\r\n", b"\r\nX-A: b\r\n c\r\n\r\n")),
    "a header without a name": (400, request(**IM).replace(b"\r\n\r\n", b"\r\n: b\r\n\r\n")),
    "a space before the colon": (400, request(**IM).replace(b"Upgrade:", b"Upgrade :", 1)),
    "a zero byte": (400, request(**IM).replace(b"websocket", b"web\0socket", 1)),
    "a line that ends in LF": (
        400,
        request(**IM).replace(b"Host: 127.0.0.1\r\n", b"Host: a\rb\r\n"),
    ),
    "no request at all": (400, b"NONSENSE\r\n\r\n"),
    "a method that is none": (400, b"GE T /ws HTTP/1.1\r\nHost: a\r\n\r\n"),
}


@pytest.mark.parametrize(("status", "asked"), REFUSED.values(), ids=REFUSED)
def test_refused(web: Callable[..., Web], status: int, asked: bytes) -> None:
    answer = web(asked)
    assert answer.status == status
    assert "\r\nConnection: close" in answer.head
    assert answer.socket.recv(1_000) is not None  # the reason; then the end
    while answer.socket.recv(1_000):
        pass


def test_a_head_without_an_end_is_refused_at_its_bound(web: Callable[..., Web]) -> None:
    assert web(request(**IM).replace(b"\r\n\r\n", b"\r\nX-A: " + b"a" * 3_000)).status == 431


def test_a_head_that_drips_is_refused_at_its_time(server: RunningServer) -> None:
    slow = Web(server.address, request()[:40])
    assert slow.status == 408
    slow.hang_up()


def test_who_upgrades_and_says_nothing_is_closed_at_the_same_time(web: Callable[..., Web]) -> None:
    assert web(request(**IM)).closed() == 4160


def test_what_was_sent_too_early_is_taken(web: Callable[..., Web]) -> None:
    early = web(request(**IM), frame(2, HELLO) + frame(9, b"!"))
    kinds = {early.receive()[0], early.receive()[0]}  # type: ignore[index]
    assert kinds == {2, 10}


@pytest.mark.parametrize("piece", [1, 7, 100])
def test_a_request_in_pieces_is_one(server: RunningServer, piece: int) -> None:
    asked = request(**IM) + frame(2, HELLO)
    web = Web(server.address, asked[:piece], answer=False)
    for at in range(piece, len(asked), piece):
        web.send(asked[at : at + piece])
    web.read_head()
    assert web.status == 101
    received = web.receive()
    assert received is not None
    assert received[1][4] == FrameType.WELCOME
    web.hang_up()


SECRET = "0123456789abcdef0123456789abcdef"


def token(user: str) -> str:
    return jwt.encode({"sub": user, "exp": int(time.time()) + 60}, SECRET, "HS256")


def test_a_token_comes_by_header_by_subprotocol_or_in_hello(start_server: Start) -> None:
    server = start_server(auth={"keys": ({"algorithm": "HS256", "secret": SECRET},)})
    without = encode_frame(FrameType.HELLO, Hello(1), CODEC_JSON, 1)
    ways = [
        (request(authorization=f"Bearer {token('ann')}", **IM), without),
        (request(sec_websocket_protocol=f"im.v1, im.token.{token('ann')}"), without),
        (
            request(**IM),
            encode_frame(FrameType.HELLO, Hello(1, token=token("ann")), CODEC_JSON, 1),
        ),
    ]
    for asked, hello in ways:
        web = Web(server.address, asked, frame(2, hello))
        received = web.receive()
        assert received is not None
        assert b'"user":"ann"' in received[1]
        web.hang_up()
    web = Web(server.address, request(f"/ws?token={token('ann')}", **IM), frame(2, without))
    assert web.closed() == 4001
    web = Web(
        server.address,
        ways[0][0],
        frame(2, encode_frame(FrameType.HELLO, Hello(1, token=token("bob")), CODEC_JSON, 1)),
    )
    assert web.closed() == 4001, "two tokens"


def test_a_server_that_leaves_upgrades_nobody(server: RunningServer) -> None:
    """Its listener is closed, so this is one that was accepted before."""
    waiting = Web(server.address, request()[:20], answer=False)
    server.user("ann")

    async def leave() -> None:
        server.server._running().leave()

    server.run(leave)
    waiting.send(request()[20:])
    waiting.read_head()
    assert waiting.status == 503
    waiting.hang_up()


def test_half_open_upgrades_cost_little_and_are_let_go(start_server: Start) -> None:
    server = start_server(limits={"handshake_ms": 3_000})
    sockets = []
    for _ in range(2_000):
        sockets.append(socket.create_connection(server.address, 20))
        sockets[-1].sendall(request()[:100])
    server.user("ann").ping()  # others come in meanwhile
    assert server.stats()["connections"] == 2_001
    assert server.stats()["messages"] <= 2_000 + 10, "a small buffer each"
    for one in sockets:
        assert one.recv(100).startswith(b"HTTP/1.1 408")
        one.close()
    server.user("bob").ping()


def test_the_program_cannot_take_our_path() -> None:
    server = Server()
    for path in ("/ws", "echo", "/with space", ""):
        with pytest.raises(ValueError, match="path"):
            server.on_websocket(path)
