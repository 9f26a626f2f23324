"""The protocol as a table: what a server answers to every frame, in every state, over real sockets.

Rows are data; one test reads them. After each refusal that leaves the connection open a PING has
to be answered, so a row also shows that nothing else was disturbed. docs/protocol.md says the
same in prose.
"""

import asyncio
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from harness import JSON, Peer, RunningServer

from imserver import Server
from imserver.protocol import FrameType, Hello, encode_frame, encode_message

MAX = 65_536  # the default limit on a frame, head included
HELLO_MAX = 8_192
FLAG_JSON = JSON << 6


def raw(type: int, body: bytes = b"", *, flags: int = FLAG_JSON, request: int = 5) -> bytes:
    return struct.pack(">IBBH", len(body) + 4, type, flags, request) + body


def with_length(length: int, type: int, body: bytes = b"") -> bytes:
    """A frame whose length field says what we want it to."""
    return struct.pack(">IBBH", length, type, FLAG_JSON, 5) + body


def message(**changes: Any) -> bytes:
    """A MESSAGE of bob's to room:table, as plain as can be, with some fields changed."""
    fields: dict[str, Any] = {
        "flags": 0, "request": 0, "seq": 0, "time": 0, "id": 77, "attempt": 0,
        "topic": b"room:table", "tag": b"", "sender": b"bob", "body": b"hi",
    } | changes  # fmt: skip
    lengths = [len(fields[name]) for name in ("topic", "tag", "sender")]
    lengths = [fields.get(f"{name}_len", n) for name, n in zip(
        ("topic", "tag", "sender"), lengths, strict=True
    )]  # fmt: skip
    fixed = struct.pack(
        ">QQQBBBB", fields["seq"], fields["time"], fields["id"], *lengths, fields["attempt"]
    )
    body = fixed + fields["topic"] + fields["tag"] + fields["sender"] + fields["body"]
    head = struct.pack(">IBBH", len(body) + 4, FrameType.MESSAGE, fields["flags"],
                       fields["request"])  # fmt: skip
    return head + body


def ack(type: int) -> bytes:
    return raw(type, struct.pack(">Q", 1) + b"room:table", flags=0)


SUBSCRIBE = raw(FrameType.SUBSCRIBE, b'{"topic":"room:table"}')
UNSUBSCRIBE = raw(FrameType.UNSUBSCRIBE, b'{"topic":"room:table"}')
CALL = raw(FrameType.CALL, b'{"method":"presence","params":{"users":["bob"]}}')
HELLO = raw(FrameType.HELLO, b'{"version":1,"user":"bob"}')

#: One well-formed frame of every type, and of types that do not exist.
FRAMES: dict[str, bytes] = {
    "HELLO": HELLO,
    "WELCOME": raw(FrameType.WELCOME, b"{}"),
    "SUBSCRIBE": SUBSCRIBE,
    "SUBSCRIBED": raw(FrameType.SUBSCRIBED, b"{}"),
    "UNSUBSCRIBE": UNSUBSCRIBE,
    "UNSUBSCRIBED": raw(FrameType.UNSUBSCRIBED, b"{}"),
    "MESSAGE": message(),
    "RECEIPT": raw(FrameType.RECEIPT, bytes(24), flags=0),
    "ACK": ack(FrameType.ACK),
    "NACK": ack(FrameType.NACK),
    "PING": raw(FrameType.PING, flags=0),
    "PONG": raw(FrameType.PONG, flags=0),
    "CALL": CALL,
    "RESULT": raw(FrameType.RESULT, b"{}"),
    "ERROR": raw(FrameType.ERROR, b"{}"),
    "GOAWAY": raw(FrameType.GOAWAY, b"{}"),
    "type 0": raw(0),
    "type 17": raw(17),
    "type 128": raw(128),
    "type 255": raw(255),
}

#: What an active connection gets back: a type, or the number of an ERROR; None: nothing.
ACTIVE: dict[str, FrameType | int | None] = {
    "HELLO": 400,
    "WELCOME": 400,
    "SUBSCRIBE": FrameType.SUBSCRIBED,
    "SUBSCRIBED": 400,
    "UNSUBSCRIBE": FrameType.UNSUBSCRIBED,
    "UNSUBSCRIBED": 400,
    "MESSAGE": None,
    "RECEIPT": 400,
    "ACK": 404,
    "NACK": 404,
    "PING": FrameType.PONG,
    "PONG": None,
    "CALL": FrameType.RESULT,
    "RESULT": 400,
    "ERROR": 400,
    "GOAWAY": 400,
    "type 0": 404,
    "type 17": 404,
    "type 128": 404,
    "type 255": 404,
}

#: Broken or forbidden frames and the number of the answer; the connection stays.
REFUSED: dict[str, tuple[bytes, int]] = {
    "SUBSCRIBE without a body": (raw(FrameType.SUBSCRIBE), 422),
    "SUBSCRIBE with broken JSON": (raw(FrameType.SUBSCRIBE, b"{topic"), 422),
    "SUBSCRIBE without a topic": (raw(FrameType.SUBSCRIBE, b"{}"), 422),
    "SUBSCRIBE with a number as topic": (raw(FrameType.SUBSCRIBE, b'{"topic":1}'), 422),
    "SUBSCRIBE with an empty topic": (raw(FrameType.SUBSCRIBE, b'{"topic":""}'), 422),
    "SUBSCRIBE with a topic of 256 bytes": (
        raw(FrameType.SUBSCRIBE, json.dumps({"topic": "room:" + "x" * 251}).encode()), 422),
    "SUBSCRIBE with a control character": (raw(FrameType.SUBSCRIBE, b'{"topic":"room:\\n"}'), 422),
    "SUBSCRIBE in bytes": (raw(FrameType.SUBSCRIBE, b'{"topic":"room:a"}', flags=0), 400),
    "SUBSCRIBE with unknown flags": (raw(FrameType.SUBSCRIBE, b"{}", flags=FLAG_JSON | 32), 400),
    "SUBSCRIBE marked DURABLE": (raw(FrameType.SUBSCRIBE, b"{}", flags=FLAG_JSON | 1), 400),
    "SUBSCRIBE to a durable topic": (
        raw(FrameType.SUBSCRIBE, b'{"topic":"room:a","durable":true}'), 507),
    "SUBSCRIBE after a seq": (raw(FrameType.SUBSCRIBE, b'{"topic":"room:a","after":3}'), 507),
    "SUBSCRIBE with a broken expression": (
        raw(FrameType.SUBSCRIBE, b'{"topic":"room:a","tags":"a|b"}'), 422),
    "SUBSCRIBE with an empty expression": (
        raw(FrameType.SUBSCRIBE, b'{"topic":"room:a","tags":""}'), 422),
    "SUBSCRIBE with too many tags": (
        raw(FrameType.SUBSCRIBE, json.dumps(
            {"topic": "room:a", "tags": "||".join(f"t{i}" for i in range(17))}).encode()), 422),
    "SUBSCRIBE to somebody else's inbox": (raw(FrameType.SUBSCRIBE, b'{"topic":"user:eve"}'), 403),
    "SUBSCRIBE to an internal topic": (raw(FrameType.SUBSCRIBE, b'{"topic":"$sys"}'), 403),
    "SUBSCRIBE to an unknown namespace": (raw(FrameType.SUBSCRIBE, b'{"topic":"zoo:a"}'), 403),
    "UNSUBSCRIBE with broken JSON": (raw(FrameType.UNSUBSCRIBE, b"}"), 422),
    "CALL of an unknown method": (raw(FrameType.CALL, b'{"method":"nothing"}'), 404),
    "CALL with broken JSON": (raw(FrameType.CALL, b"["), 422),
    "CALL presence without users": (raw(FrameType.CALL, b'{"method":"presence"}'), 422),
    "CALL members of a forbidden topic": (
        raw(FrameType.CALL, b'{"method":"members","params":{"topic":"user:eve"}}'), 403),
    "PING with a body": (raw(FrameType.PING, b"x", flags=0), 400),
    "PONG with a body": (raw(FrameType.PONG, b"x", flags=0), 400),
    "PING with unknown flags": (raw(FrameType.PING, flags=32), 400),
    "ACK without a topic": (raw(FrameType.ACK, bytes(8), flags=0), 400),
    "ACK too short": (raw(FrameType.ACK, bytes(3), flags=0), 400),
    "NACK with a topic of 256 bytes": (raw(FrameType.NACK, bytes(8 + 256), flags=0), 400),
    "MESSAGE without anything": (raw(FrameType.MESSAGE, flags=0), 400),
    "MESSAGE one byte short of its fixed part": (raw(FrameType.MESSAGE, bytes(27), flags=0), 400),
    "MESSAGE without a topic": (message(topic=b""), 400),
    "MESSAGE without a sender": (message(sender=b""), 400),
    "MESSAGE with a tag of 65 bytes": (message(tag=b"t" * 65), 400),
    "MESSAGE with a sender of 65 bytes": (message(sender=b"s" * 65), 400),
    "MESSAGE whose topic is longer than the frame": (message(topic_len=255, body=b""), 400),
    "MESSAGE whose tag is longer than the frame": (message(tag_len=64, body=b""), 400),
    "MESSAGE whose sender is longer than the frame": (message(sender_len=64, body=b""), 400),
    "MESSAGE with a seq": (message(seq=1), 400),
    "MESSAGE with a time": (message(time=1), 400),
    "MESSAGE with an attempt": (message(attempt=1), 400),
    "MESSAGE with a request": (message(request=9), 400),
    "MESSAGE marked REDELIVERED": (message(flags=4), 400),
    "MESSAGE marked HISTORY": (message(flags=16), 400),
    "MESSAGE with unknown flags": (message(flags=32), 400),
    "MESSAGE from somebody else": (message(sender=b"eve"), 403),
    "MESSAGE from a longer name": (message(sender=b"bobb"), 403),
    "MESSAGE from the server": (message(sender=b"$server"), 403),
    "MESSAGE with a tag of the server": (message(tag=b"$presence"), 403),
    "MESSAGE with a space in its tag": (message(tag=b"a b"), 400),
    "MESSAGE with a bar in its tag": (message(tag=b"a|b"), 400),
    "MESSAGE with a star in its tag": (message(tag=b"*"), 400),
    "MESSAGE with a control character in its tag": (message(tag=b"a\x07"), 400),
    "MESSAGE with broken UTF-8 in its tag": (message(tag=b"\xff"), 400),
    "MESSAGE with a surrogate in its tag": (message(tag=b"\xed\xa0\x80"), 400),
    "MESSAGE with broken UTF-8 in its topic": (message(topic=b"room:\xff"), 400),
    "MESSAGE with a control character in its topic": (message(topic=b"room:\x00"), 400),
    "MESSAGE to an unknown namespace": (message(topic=b"zoo:table"), 403),
    "MESSAGE to an internal topic": (message(topic=b"$sys"), 403),
    "MESSAGE to a conversation of others": (message(topic=b"dm:alice:eve"), 403),
    "MESSAGE marked DURABLE": (message(flags=1), 507),
}  # fmt: skip

#: Lengths that are none of this protocol, or too large, whatever the type: close codes.
LENGTHS: dict[str, tuple[int, int]] = {
    "0": (0, 4004),
    "1": (1, 4004),
    "3": (3, 4004),
    "max": (MAX - 3, 4013),
    "2^24-5": (2**24 - 5, 4013),
    "2^24-4": (2**24 - 4, 4004),
    "2^31-1": (2**31 - 1, 4004),
    "2^32-1": (2**32 - 1, 4004),
}


def error_code(body: bytes) -> int:
    return int(json.loads(body)["code"])


def assert_goes_away(peer: Peer, code: int) -> None:
    assert json.loads(peer.expect(FrameType.GOAWAY))["code"] == code
    assert peer.receive() is None


def assert_answer(peer: Peer, expected: FrameType | int | None) -> None:
    """The documented answer, and after it a connection that works."""
    peer_ping = raw(FrameType.PING, flags=0, request=99)
    peer.send(peer_ping)
    if isinstance(expected, FrameType):
        assert peer.receive() is not None
    elif expected is not None:
        assert error_code(peer.expect(FrameType.ERROR)) == expected
    frame = peer.receive()
    assert frame is not None
    assert (frame[0], frame[2]) == (FrameType.PONG, 99)


@pytest.mark.parametrize("name", FRAMES)
def test_an_active_connection_answers_as_documented(server: RunningServer, name: str) -> None:
    bob = server.user("bob")
    if name == "UNSUBSCRIBE":
        bob.subscribe("room:table")
    bob.send(FRAMES[name])
    if isinstance(expected := ACTIVE[name], FrameType):
        assert bob.expect(expected) is not None
        assert_answer(bob, None)
    else:
        assert_answer(bob, expected)


@pytest.mark.parametrize("name", [name for name in FRAMES if name != "HELLO"])
def test_nothing_but_hello_comes_first(server: RunningServer, name: str) -> None:
    peer = server.peer()
    peer.send(FRAMES[name])
    assert_goes_away(peer, 4001)


@pytest.mark.parametrize("name", FRAMES)
def test_what_comes_while_authenticating_waits_its_turn(
    start_server: Callable[..., RunningServer], name: str
) -> None:
    release = asyncio.Event()

    def prepare(server: Server) -> None:
        @server.on_connect
        async def wait(login: Any) -> None:
            await release.wait()

    running = start_server(prepare, threads=1)
    peer = running.peer()
    peer.send(HELLO, SUBSCRIBE, FRAMES[name])
    running.run(lambda: asyncio.sleep(0))
    running._loop.call_soon_threadsafe(release.set)
    peer.expect(FrameType.WELCOME)
    peer.expect(FrameType.SUBSCRIBED)
    if isinstance(expected := ACTIVE[name], FrameType):
        peer.expect(expected)
        assert_answer(peer, None)
    elif name == "MESSAGE":
        assert peer.expect(FrameType.MESSAGE)
        assert_answer(peer, None)
    else:
        assert_answer(peer, expected)


@pytest.mark.parametrize("name", FRAMES)
def test_a_draining_connection_finishes_its_work(
    start_server: Callable[..., RunningServer], name: str
) -> None:
    running = start_server(threads=1)
    bob = running.user("bob")
    bob.subscribe("room:table")
    running._loop.call_soon_threadsafe(
        lambda: setattr(running, "draining", asyncio.ensure_future(running.server.drain()))
    )
    assert json.loads(bob.expect(FrameType.GOAWAY))["code"] == 4201
    bob.send(FRAMES[name])
    if isinstance(expected := ACTIVE[name], FrameType):
        bob.expect(expected)
        assert_answer(bob, None)
    elif name == "MESSAGE":
        assert bob.expect(FrameType.MESSAGE)
    else:
        assert_answer(bob, expected)


@pytest.mark.parametrize("name", FRAMES)
def test_a_closing_connection_is_not_heard(server: RunningServer, name: str) -> None:
    bob = server.user("bob")
    bob.send(with_length(0, 0), FRAMES[name])
    assert_goes_away(bob, 4004)


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_frame_is_refused_by_number_and_disturbs_nothing(
    server: RunningServer, name: str
) -> None:
    frame, code = REFUSED[name]
    bob, witness = server.user("bob"), server.user("witness")
    witness.subscribe("room:table")
    bob.send(frame)
    assert_answer(bob, code)
    assert_answer(witness, None)


@pytest.mark.parametrize("name", ["HELLO", "SUBSCRIBE", "MESSAGE", "PING", "CALL", "type 17"])
@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_that_cannot_be_ends_the_connection(
    server: RunningServer, length: str, name: str
) -> None:
    value, code = LENGTHS[length]
    bob = server.user("bob")
    bob.send(with_length(value, FRAMES[name][4]))
    assert_goes_away(bob, code)


@pytest.mark.parametrize("length", LENGTHS)
def test_a_stranger_with_a_lying_length_is_shown_out(server: RunningServer, length: str) -> None:
    value, code = LENGTHS[length]
    peer = server.peer()
    peer.send(with_length(value, FrameType.HELLO))
    assert_goes_away(peer, code)


def test_the_largest_frame_passes_and_one_byte_more_does_not(server: RunningServer) -> None:
    bob = server.user("bob")
    bob.subscribe("room:table")
    overhead = len(message(body=b""))
    bob.send(message(body=b"x" * (MAX - overhead)))
    assert len(bob.expect(FrameType.MESSAGE)) == MAX - 8
    bob.send(message(body=b"x" * (MAX - overhead - 1)))
    assert len(bob.expect(FrameType.MESSAGE)) == MAX - 9
    bob.send(message(body=b"x" * (MAX - overhead + 1)))
    assert_goes_away(bob, 4013)


def test_a_hello_of_the_largest_size_passes_and_one_byte_more_does_not(
    server: RunningServer,
) -> None:
    def hello(size: int) -> bytes:
        body = b'{"version":1,"user":"bob","client":"'
        return raw(FrameType.HELLO, body + b"x" * (size - 8 - len(body) - 2) + b'"}')

    peer = server.peer()
    peer.send(hello(HELLO_MAX))
    peer.expect(FrameType.WELCOME)
    peer = server.peer()
    peer.send(hello(HELLO_MAX + 1))
    assert_goes_away(peer, 4013)


#: HELLOs that are refused: ERROR number, close code.
LOGINS: dict[str, tuple[bytes, int, int]] = {
    "no body": (raw(FrameType.HELLO), 422, 4004),
    "broken JSON": (raw(FrameType.HELLO, b"{"), 422, 4004),
    "codec bytes": (raw(FrameType.HELLO, b"{}", flags=0), 400, 4004),
    "no user and no token": (raw(FrameType.HELLO, b'{"version":1}'), 401, 4001),
    "a bad user": (raw(FrameType.HELLO, b'{"version":1,"user":"b o b"}'), 422, 4004),
    "a user of the server": (raw(FrameType.HELLO, b'{"version":1,"user":"$server"}'), 422, 4004),
    "a long user": (
        raw(FrameType.HELLO, json.dumps({"version": 1, "user": "b" * 65}).encode()), 422, 4004),
    "a bad device": (
        raw(FrameType.HELLO, b'{"version":1,"user":"bob","device":""}'), 422, 4004),
    "a bad token": (raw(FrameType.HELLO, b'{"version":1,"token":"x"}'), 401, 4001),
    "version 0": (raw(FrameType.HELLO, b'{"version":0,"user":"bob"}'), 400, 4005),
    "version 2": (raw(FrameType.HELLO, b'{"version":2,"user":"bob"}'), 400, 4005),
}  # fmt: skip


@pytest.mark.parametrize("name", LOGINS)
def test_a_bad_login_is_told_why_and_ended(server: RunningServer, name: str) -> None:
    frame, code, close = LOGINS[name]
    peer = server.peer()
    peer.send(frame)
    assert error_code(peer.expect(FrameType.ERROR)) == code
    assert_goes_away(peer, close)


def test_a_stranger_who_says_nothing_is_shown_out(
    start_server: Callable[..., RunningServer],
) -> None:
    running = start_server(limits={"handshake_ms": 100})
    assert_goes_away(running.peer(), 4160)


def test_one_subscription_too_many_is_refused(start_server: Callable[..., RunningServer]) -> None:
    running = start_server(limits={"subscriptions": 2})
    bob = running.user("bob")
    bob.subscribe("room:1")
    bob.subscribe("room:2")
    bob.send(raw(FrameType.SUBSCRIBE, b'{"topic":"room:3"}'))
    assert_answer(bob, 442)
    bob.subscribe("room:2", "other")  # to change the tags of one it has


@pytest.mark.parametrize("codec", [1, 2, 3], ids=["json", "msgpack", "protobuf"])
def test_a_server_answers_in_the_codec_of_hello(server: RunningServer, codec: int) -> None:
    peer = server.peer()
    peer.send(encode_frame(FrameType.HELLO, Hello(version=1, user="bob"), codec, 9))
    frame = peer.receive()
    assert frame is not None
    assert frame[:3] == (FrameType.WELCOME, codec << 6, 9)
    peer.send(with_length(0, 0))
    frame = peer.receive()
    assert frame is not None
    assert frame[:2] == (FrameType.GOAWAY, codec << 6)


def test_every_split_of_a_conversation_gives_the_same_answers(server: RunningServer) -> None:
    stream = HELLO + SUBSCRIBE + message() + raw(FrameType.PING, flags=0) + CALL
    expected = [FrameType.WELCOME, FrameType.SUBSCRIBED, FrameType.MESSAGE, FrameType.PONG,
                FrameType.RESULT]  # fmt: skip
    for at in range(1, len(stream), 3):
        peer = server.peer()
        peer.send(stream[:at])
        peer.send(stream[at:])
        for type in expected:
            peer.expect(type)
        peer.close()


def test_byte_by_byte_is_as_good_as_at_once(server: RunningServer) -> None:
    bob = server.user("bob")
    bob.subscribe("room:table")
    for byte in message(body=b"slowly") * 2:
        bob.send(bytes([byte]))
    assert bob.expect(FrameType.MESSAGE).endswith(b"slowly")
    assert bob.expect(FrameType.MESSAGE).endswith(b"slowly")


def test_the_table_is_as_large_as_promised() -> None:
    rows = len(FRAMES) * 5 + len(REFUSED) + len(LENGTHS) * 7 + len(LOGINS)
    assert rows >= 150
    assert encode_message("room:table", "bob", b"hi", id=77) == message()
