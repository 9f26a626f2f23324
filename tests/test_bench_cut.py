"""Cutting replies: of each protocol whole ones are found wherever they begin and end, and nothing
else is taken for one."""

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.peers import Adapter, mosquitto, nats, python, redis
from bench.peers.adapter import RAW, im_v1
from imserver import _load
from imserver.load import LENGTH, MQTT, NATS, RESP3, WEBSOCKET, WEBSOCKET_MANY, Generator, LoadError

MAX_BYTES = 100_000
MORE, BAD = 0, 0xFFFFFFFF
Reply = tuple[bytes, int]  # and its type


def cut(kind: int, data: bytes, *, type_at: int = -1, max_bytes: int = MAX_BYTES) -> Any:
    """The size of the first reply and its type, or MORE, or BAD."""
    how = {"kind": kind, "length_adds": 4, "type_at": type_at, "max_bytes": max_bytes}
    held = _load.ffi.new("uint8_t[]", data) if data else _load.ffi.new("uint8_t[1]")
    type = _load.ffi.new("uint8_t *")
    size = _load.lib.cut_reply(_load.ffi.new("struct cut *", how), held, len(data), type)
    return size if size in (MORE, BAD) else (size, type[0])


# --- replies of each protocol --------------------------------------------------------------------

PAYLOADS = st.one_of(st.binary(max_size=40), st.integers(120, 70_000).map(bytes))
WORDS = st.from_regex(r"[a-z:.]{1,12}", fullmatch=True).map(str.encode)
LINES = st.binary(max_size=20).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))


@st.composite
def by_length(draw: st.DrawFn) -> Reply:
    payload = draw(PAYLOADS.filter(len))
    return struct.pack(">I", len(payload)) + payload, payload[0]


@st.composite
def of_nats(draw: st.DrawFn) -> Reply:
    if draw(st.booleans()):
        words = draw(st.lists(WORDS, min_size=2, max_size=3))
        payload = draw(PAYLOADS)
        head = b"MSG %s %d\r\n" % (b" ".join(words), len(payload))
        return head + payload + b"\r\n", ord("S")
    word = draw(st.sampled_from([b"INFO ", b"PING", b"PONG", b"-ERR "]))
    text = draw(LINES) if word.endswith(b" ") else b""
    return word + text + b"\r\n", word[1]


def of_length(mark: bytes, items: list[bytes], count: int) -> bytes:
    return mark + str(count).encode() + b"\r\n" + b"".join(items)


LEAVES = st.one_of(
    st.builds(lambda mark, text: mark + text + b"\r\n", st.sampled_from([b"+", b"-"]), LINES),
    st.builds(
        lambda mark, number: mark + str(number).encode() + b"\r\n",
        st.sampled_from([b":", b",", b"("]),
        st.integers(),
    ),
    st.sampled_from([b"_\r\n", b"#t\r\n"]),
    st.builds(
        lambda mark, data: of_length(mark, [data, b"\r\n"], len(data)),
        st.sampled_from([b"$", b"!", b"="]),
        PAYLOADS,
    ),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda mark, items: of_length(mark, items, len(items)),
            st.sampled_from([b"*", b"~", b">"]),
            st.lists(inner, max_size=4),
        ),
        st.lists(st.tuples(inner, inner).map(b"".join), max_size=3).map(
            lambda pairs: of_length(b"%", pairs, len(pairs))
        ),
        st.builds(lambda key, value, of: b"|1\r\n" + key + value + of, inner, inner, inner),
    ),
    max_leaves=8,
)


def of_mqtt(type: int, payload: bytes) -> Reply:
    size, length = len(payload), b""
    while size > 127:
        length += bytes([size % 128 + 128])
        size //= 128
    return bytes([type << 4]) + length + bytes([size]) + payload, type


def of_websocket(first: int, payload: bytes) -> Reply:
    """The type is told by the fourth byte of a binary message, else by the first of all."""
    size = len(payload)
    if size < 126:
        length = bytes([size])
    elif size < 1 << 16:
        length = struct.pack(">BH", 126, size)
    else:
        length = struct.pack(">BQ", 127, size)
    return bytes([first]) + length + payload, payload[3] if first == 0x82 else first


LONG = PAYLOADS.filter(lambda data: len(data) > 3)
HTTP = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", ord("H")


class Protocol(NamedTuple):
    kind: int
    type_at: int
    replies: st.SearchStrategy[Reply]


PROTOCOLS = {
    "length": Protocol(LENGTH, 4, by_length()),
    "nats": Protocol(NATS, -1, of_nats()),
    "resp3": Protocol(RESP3, -1, VALUES.map(lambda value: (value, value[0]))),
    "mqtt": Protocol(MQTT, -1, st.builds(of_mqtt, st.integers(1, 14), PAYLOADS)),
    "websocket": Protocol(
        WEBSOCKET,
        3,
        st.one_of(
            st.just(HTTP),
            st.builds(of_websocket, st.just(0x82), LONG),
            st.builds(of_websocket, st.sampled_from([0x81, 0x88, 0x89, 0x8A]), PAYLOADS),
        ),
    ),
}
PROTOCOLS["websocket of many"] = Protocol(
    WEBSOCKET_MANY,
    4,
    st.one_of(
        st.just(HTTP),
        by_length(),
        st.builds(of_websocket, st.sampled_from([0x88, 0x89, 0x8A]), PAYLOADS),
        LONG.map(lambda body: (ws(body).removesuffix(body), 0x82)),
    ),
)
EACH = pytest.mark.parametrize("name", PROTOCOLS)


@EACH
@given(data=st.data())
def test_replies_in_a_row_are_cut_one_by_one(name: str, data: st.DataObject) -> None:
    kind, type_at, replies = PROTOCOLS[name]
    expected = [one for one in data.draw(st.lists(replies, max_size=6)) if len(one[0]) <= MAX_BYTES]
    stream, found = b"".join(reply for reply, _ in expected), []
    while stream:
        size, type = cut(kind, stream, type_at=type_at)
        found.append((stream[:size], type))
        stream = stream[size:]
    assert found == expected


@EACH
@given(data=st.data())
def test_a_reply_is_waited_for_until_its_last_byte(name: str, data: st.DataObject) -> None:
    kind, type_at, replies = PROTOCOLS[name]
    reply, type = data.draw(replies.filter(lambda one: len(one[0]) <= MAX_BYTES))
    for end in {*range(min(len(reply), 60)), *range(max(0, len(reply) - 60), len(reply))}:
        assert cut(kind, reply[:end], type_at=type_at) == MORE
    assert cut(kind, reply, type_at=type_at, max_bytes=len(reply)) == (len(reply), type)
    assert cut(kind, reply, type_at=type_at, max_bytes=len(reply) - 1) == BAD


@EACH
@given(data=st.binary(max_size=64))
def test_no_bytes_are_cut_beyond_their_end(name: str, data: bytes) -> None:
    kind, type_at, _ = PROTOCOLS[name]
    found = cut(kind, data, type_at=type_at)
    assert found in (MORE, BAD) or 0 < found[0] <= len(data)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("length", b"\xff\xff\xff\xff"),
        ("length", b"\0\0\0\0"),  # no room for the type
        ("nats", b"+OK\r\n"),
        ("nats", b"H"),
        ("nats", b"MSG a 1 \r\n"),
        ("nats", b"MSG a 1 -1\r\n"),
        ("nats", b"MSG a 1 99999999999999999999\r\n"),
        ("nats", b"MSG a 1 2\r\nabcd"),  # longer than it said
        ("nats", b"INFO " + bytes(MAX_BYTES)),  # a line without end
        ("resp3", b"HTTP/1.1 400"),
        ("resp3", b"$-1\r\n"),
        ("resp3", b"$?\r\n"),
        ("resp3", b"$\r\n"),
        ("resp3", b"*9999999\r\n"),
        ("resp3", b"$4294967295\r\n"),
        ("resp3", b">2\r\n:1\r\nx"),
        ("resp3", b">1\r\n" * 40_000),  # nested without end
        ("mqtt", b"\0"),
        ("mqtt", b"\xf0"),
        ("mqtt", b"\x30\x80\x80\x80\x80"),
        ("mqtt", b"\x30\xff\xff\xff\x7f"),
        ("websocket", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("websocket", b"HTTP/1.1 101 " + bytes(MAX_BYTES)),
        ("websocket", b"\x02"),  # the first piece of several
        ("websocket", b"\xc2"),  # compressed
        ("websocket", b"\x82\x84"),  # masked
        ("websocket", b"\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("websocket", b"\x82\x03abc"),  # no room for the type
    ],
)
def test_what_can_be_no_reply_is_said_to_be_none(name: str, data: bytes) -> None:
    kind, type_at, _ = PROTOCOLS[name]
    assert cut(kind, data, type_at=type_at) == BAD


# --- a connection that gets its replies byte by byte, from a fake --------------------------------


class FakeServer:
    """A fake of any server: to a request of so many bytes it gives an answer, byte by byte."""

    def __init__(self, greeting: bytes, exchanges: list[tuple[int, Callable[[bytes], bytes]]]):
        self._greeting, self._exchanges = greeting, exchanges
        self.heard: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(10)
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        link, _ = self._listener.accept()
        link.settimeout(10)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with link, suppress(ConnectionError):  # the other side goes when it has what it wants
            self._say(link, self._greeting)
            for size, answer in self._exchanges:
                self.heard.append(link.recv(size, socket.MSG_WAITALL))
                self._say(link, answer(self.heard[-1]))
            while link.recv(4096):
                pass  # what is left unread would reset the connection

    @staticmethod
    def _say(link: socket.socket, answer: bytes) -> None:
        for at in range(len(answer)):
            link.send(answer[at : at + 1])

    def close(self) -> None:
        self._listener.close()
        self._thread.join(20)
        assert not self._thread.is_alive()


def ws(frame: bytes) -> bytes:
    return of_websocket(0x82, frame)[0]


def framed(type: int, body: bytes = b"{}") -> bytes:
    return struct.pack(">IBBH", 4 + len(body), type, 64, 1) + body


def pushed(body: bytes) -> bytes:
    parts = (b"message", b"t", body)
    return of_length(b">", [b"$%d\r\n%s\r\n" % (len(part), part) for part in parts], 3)


class Conversation(NamedTuple):
    """What the server says first, to each step, and to a message of which it knows the body."""

    adapter: Adapter
    greeting: bytes
    answers: list[bytes]
    message: Callable[[bytes], bytes]
    body_ends: int = 0  # so far before the end of what is published


CONVERSATIONS = {
    "raw": Conversation(RAW, b"", [framed(11), framed(11)], lambda body: framed(7, body)),
    "imserver": Conversation(python.TCP, b"", [framed(2), framed(4)], lambda b: framed(7, b)),
    "nats": Conversation(
        nats.adapter(),
        b'INFO {"server_id":"?"}\r\n',
        [b"", b"PONG\r\n", b"PONG\r\n"],
        lambda body: b"MSG t 1 %d\r\n%s\r\n" % (len(body), body),
        body_ends=2,
    ),
    "jetstream": Conversation(
        nats.jetstream_adapter(),
        b'INFO {"server_id":"?"}\r\n',
        [b"", b"PONG\r\n", b"PONG\r\n"],
        lambda body: b'MSG _INBOX.bench-0 1 25\r\n{"stream":"kept","seq":1}\r\n',
    ),
    "mqtt": Conversation(
        mosquitto.ADAPTER,
        b"",
        [b"\x20\x02\0\0", b"\x90\x03\0\x01\0"],
        lambda body: of_mqtt(3, b"\0\x01t" + body)[0],
    ),
    "redis": Conversation(
        redis.PUBSUB,
        b"",
        [b"%1\r\n$5\r\nproto\r\n:3\r\n", b">3\r\n$9\r\nsubscribe\r\n$1\r\nt\r\n:1\r\n"],
        lambda body: pushed(body) + b":1\r\n",
        body_ends=2,
    ),
    "redis-streams": Conversation(
        redis.STREAMS,
        b"",
        [b"%1\r\n$5\r\nproto\r\n:3\r\n"],
        lambda body: b"$15\r\n1526919030474-0\r\n",
    ),
    "websocket of many": Conversation(
        im_v1(python.TCP),
        b"",
        [HTTP[0], ws(framed(2)), ws(framed(12) + framed(4))],
        lambda body: ws(framed(12) + framed(7, body)),
    ),
    "websocket": Conversation(
        python.WEBSOCKET,
        b"",
        [HTTP[0], ws(framed(2)), ws(framed(4))],
        lambda body: ws(framed(7, body)),
    ),
}


@pytest.mark.parametrize("size", [8, 64, 1_000])
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_replies_that_come_byte_by_byte_are_counted(name: str, size: int) -> None:
    adapter, greeting, answers, message, body_ends = CONVERSATIONS[name]
    script = (*adapter.login(0), *adapter.subscribe("t"))
    frame = adapter.publish(0, "t", bytes(size))
    exchanges: list[tuple[int, Callable[[bytes], bytes]]] = [
        (len(step.data), lambda _, answer=answer: answer)
        for step, answer in zip(script, answers, strict=True)
        if step.data
    ]

    def answer(request: bytes) -> bytes:
        end = len(request) - body_ends
        return message(request[end - size : end])

    fake = FakeServer(greeting, exchanges + [(len(frame), answer)] * 3)
    try:
        with Generator(adapter.wire, 1) as load:
            load.add(load.group(1), frames=[frame], script=script)
            load.open(fake.address, timeout_s=10)
            traffic = load.check(load.run(10, depth=1, messages=3))
    finally:
        fake.close()
    assert traffic.received == 3
    assert traffic.latency.count == (3 if adapter.wire.stamp_from_end else 0)
    assert traffic.latency.max < 20 * 10**9  # a stamp read elsewhere would be years ago


def test_a_ping_of_nats_is_answered() -> None:
    adapter = nats.adapter()
    login = adapter.login(0)[1]
    fake = FakeServer(
        b"INFO {}\r\n", [(len(login.data), lambda _: b"PONG\r\nPING\r\n"), (6, lambda _: b"")]
    )
    try:
        with Generator(adapter.wire, 1) as load:
            load.add(load.group(1), script=adapter.login(0))
            load.open(fake.address, timeout_s=10)
            load.run(0.1)
    finally:
        fake.close()
    assert fake.heard[-1] == b"PONG\r\n"


@pytest.mark.parametrize("name", [name for name in CONVERSATIONS if name != "raw"])
def test_garbage_loses_the_connection_with_its_text(name: str) -> None:
    adapter = CONVERSATIONS[name].adapter
    fake = FakeServer(b"\xf1\xf2 who is there?\r\n", [])
    try:
        with Generator(adapter.wire, 1) as load:
            load.add(load.group(1), script=adapter.login(0))
            with pytest.raises(LoadError, match=r"bytes that are no reply: \."):
                load.open(fake.address, timeout_s=10)
    finally:
        fake.close()


@pytest.mark.parametrize(
    ("name", "refusal", "text"),
    [
        ("nats", b"-ERR 'Authorization Violation'\r\n", "Authorization"),
        ("redis", b"-NOAUTH HELLO must be called\r\n", "NOAUTH"),
        ("websocket", b"HTTP/1.1 101 Yes\r\n\r\n\x88\x05\x03\xf0hey", "hey"),
        ("websocket", HTTP[0] + ws(framed(15, b'{"code":401}')), '"code":401'),
    ],
)
def test_a_refusal_is_told_with_its_text(name: str, refusal: bytes, text: str) -> None:
    adapter = CONVERSATIONS[name].adapter
    fake = FakeServer(refusal, [])
    try:
        with Generator(adapter.wire, 1) as load:
            load.add(load.group(1), script=adapter.login(0))
            with pytest.raises(LoadError, match=f"refused by the server: .*{text}"):
                load.open(fake.address, timeout_s=10)
    finally:
        fake.close()
