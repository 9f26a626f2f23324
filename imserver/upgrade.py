"""The request that begins a WebSocket: read, judged, answered.

The head is parsed by httptools (llhttp); RFC 6455 and the rules of this server are judged here.
What is not allowed is refused with a status of HTTP and one of our numbers, before anything is
spent on it.

    U1  a request has one meaning or is refused: repeated, contradicting or unknown parts of the
        handshake, and bodies, are errors.
    U2  a browser's request (it has Origin) is from a listed origin, compared as a whole.

Not here: the bytes that follow (the core), who the token is (auth).
"""

import base64
import binascii
import hashlib
from collections import defaultdict
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import Final, NamedTuple

import httptools

from imserver.upgrade_extensions import AGREED, offers_deflate

#: The subprotocol of frames in binary messages, and the prefix of one that is a token.
SUBPROTOCOL: Final = "im.v1"
TOKEN_PREFIX: Final = "im.token."
#: Where WebSockets begin.
PATH: Final = "/ws"

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3


class Upgrade(NamedTuple):
    """An allowed request. `speaks_frames`: with the subprotocol; `offers_deflate`: messages may
    be compressed, if we agree."""

    path: str
    accept: str
    offers_deflate: bool
    speaks_frames: bool
    token: str | None


class Refusal(Exception):
    """Why not, as HTTP says it."""

    def __init__(self, status: int, reason: str, header: str = "") -> None:
        super().__init__(reason)
        self.status, self.header = status, header

    def response(self) -> bytes:
        text = f"{self}\n"
        return (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n{self.header}"
            "Content-Type: text/plain; charset=utf-8\r\n"
            f"Content-Length: {len(text.encode())}\r\nConnection: close\r\n\r\n{text}"
        ).encode()


def read_upgrade(head: bytes, paths: Collection[str], may_come: Callable[[str], bool]) -> Upgrade:
    """Judge the head of a request, up to its empty line. `may_come` is asked for the origin of a
    browser's, as it is. Refusal for what is not allowed."""
    request = _Request(head)
    if request.method != "GET":
        raise Refusal(405, "WebSockets begin with GET", "Allow: GET\r\n")
    path = request.path.partition("?")[0]
    if path not in paths:
        raise Refusal(404, f"there is nothing but WebSocket on this port, at {PATH}")
    if request.version != "1.1":
        raise Refusal(400, "WebSockets begin with HTTP/1.1")
    request.one("host")
    if "transfer-encoding" in request.headers or request.one("content-length", "0") != "0":
        raise Refusal(400, "the request has a body")
    if "websocket" not in request.words("upgrade") or "upgrade" not in request.words("connection"):
        header = "Upgrade: websocket\r\n"
        raise Refusal(426, f"this is a WebSocket at {PATH}; the HTTP API has its own port", header)
    if request.one("sec-websocket-version") != "13":
        raise Refusal(426, "the version of WebSocket is 13", "Sec-WebSocket-Version: 13\r\n")
    key = request.one("sec-websocket-key")
    try:
        is_key = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        is_key = False
    if not is_key:
        raise Refusal(400, "Sec-WebSocket-Key is 16 bytes in base64")
    if "origin" in request.headers and not may_come(request.one("origin")):
        raise Refusal(403, "this origin is not in websocket.origins")
    try:
        is_offered = offers_deflate(",".join(request.headers["sec-websocket-extensions"]))
    except ValueError as error:
        raise Refusal(400, f"Sec-WebSocket-Extensions: {error}") from error
    accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest()).decode()
    return Upgrade(path, accept, is_offered, *_subprotocol(request, path))


def switch(upgrade: Upgrade, *, deflates: bool = False) -> bytes:
    """The response that accepts, and agrees to compression."""
    agreed = f"Sec-WebSocket-Extensions: {AGREED}\r\n" if deflates else ""
    chosen = f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n" if upgrade.speaks_frames else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {upgrade.accept}\r\n{chosen}{agreed}\r\n"
    ).encode()


def _subprotocol(request: "_Request", path: str) -> tuple[bool, str | None]:
    """Whether frames are spoken, and the token if one was brought."""
    offered = request.words("sec-websocket-protocol", fold=False)
    tokens = [one[len(TOKEN_PREFIX) :] for one in offered if one.startswith(TOKEN_PREFIX)]
    kind, _, bearer = request.one("authorization", "").partition(" ")
    if kind:
        if kind.lower() != "bearer" or not bearer.strip():
            raise Refusal(400, 'Authorization is "Bearer" and a token')
        tokens.append(bearer.strip())
    if len(tokens) > 1:
        raise Refusal(400, "one token")
    if offered and (SUBPROTOCOL not in offered or path != PATH):
        raise Refusal(400, f"the subprotocol is {SUBPROTOCOL}, at {PATH}")
    return SUBPROTOCOL in offered, tokens[0] if tokens else None


class _Request:
    """A head as httptools takes it apart; also the callbacks for that."""

    def __init__(self, head: bytes) -> None:
        self.path = ""
        self.headers: defaultdict[str, list[str]] = defaultdict(list)
        parser = httptools.HttpRequestParser(self)
        try:
            parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            raise Refusal(400, f"this is no HTTP request: {error}") from error
        self.method = parser.get_method().decode()
        self.version = parser.get_http_version()

    def on_url(self, url: bytes) -> None:
        self.path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()].append(value.decode("latin-1"))

    def one(self, name: str, default: str | None = None) -> str:
        """The only value of a header."""
        values = self.headers.get(name, [])
        if len(values) > 1 or (not values and default is None):
            raise Refusal(400, f"the header {name} is there once")
        return values[0] if values else default or ""

    def words(self, name: str, *, fold: bool = True) -> list[str]:
        """The parts of a header that is a list, however often it comes."""
        text = ",".join(self.headers.get(name, []))
        return [
            word.strip() for word in (text.lower() if fold else text).split(",") if word.strip()
        ]
