"""What one publishes, the others receive: bytes, order, tags, rights, hooks. Real sockets."""

import asyncio
import json
import random
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from harness import JSON, Peer, RunningServer

from imserver import ImError, Server
from imserver.protocol import (
    NO_ECHO,
    RETRY,
    Call,
    FrameType,
    Hello,
    Subscribe,
    Unsubscribe,
    decode_message,
    encode_frame,
    encode_message,
)


def whole(peer: Peer) -> bytes:
    """The next frame, head included, which has to be a MESSAGE."""
    frame = peer.receive()
    assert frame is not None
    assert frame[0] == FrameType.MESSAGE, frame
    type, flags, request, rest = frame
    return struct.pack(">IBBH", len(rest) + 4, type, flags, request) + rest


def call(peer: Peer, method: str, params: Any) -> Any:
    peer.send(encode_frame(FrameType.CALL, Call(method, params), JSON, 3))
    return json.loads(peer.expect(FrameType.RESULT)).get("result")


@pytest.mark.parametrize("size", [0, 1, 63, 1000, 4096, 60_000])
@pytest.mark.parametrize("codec", [0, 1, 2, 3])
def test_a_delivery_is_the_publication_byte_for_byte_but_for_time(
    server: RunningServer, codec: int, size: int
) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    alice.subscribe("room:a")
    before_ms = int(time.time() * 1000)
    sent = encode_message(
        "room:a", "bob", random.randbytes(size), tag="news", id=2**64 - 1, codec=codec
    )
    bob.send(sent)
    got = whole(alice)
    assert got[:16] == sent[:16]
    assert got[24:] == sent[24:]
    assert before_ms - 5 <= struct.unpack(">Q", got[16:24])[0] <= time.time() * 1000 + 5


def test_retry_is_cleared_and_no_echo_is_kept(server: RunningServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    for peer in (alice, bob):
        peer.subscribe("room:a")
    bob.publish("room:a", "bob", b"1", flags=RETRY | NO_ECHO, id=1)
    bob.publish("room:a", "bob", b"2", id=2)
    assert decode_message(whole(alice)).flags == NO_ECHO
    assert decode_message(whole(bob)).id == 2


def test_each_connection_receives_a_message_once_and_in_order(server: RunningServer) -> None:
    readers = [server.user(f"reader{i}") for i in range(8)]
    writers = [server.user(f"writer{i}") for i in range(3)]
    for reader in readers:
        reader.subscribe("room:order")
        reader.subscribe("room:order")  # a second time changes nothing
    for writer in writers:
        name = f"writer{writers.index(writer)}"
        writer.send(*(encode_message("room:order", name, b"", id=i) for i in range(500)))
    for reader in readers:
        ids: dict[str, list[int]] = {}
        for _ in range(3 * 500):
            message = decode_message(whole(reader))
            ids.setdefault(message.sender, []).append(message.id)
        assert ids == {f"writer{i}": list(range(500)) for i in range(3)}


def test_what_was_sent_in_one_piece_arrives_as_if_sent_one_by_one(server: RunningServer) -> None:
    """Runs of like messages travel as one; where they differ in anything the run ends."""
    chance = random.Random(3)
    topics, tags, flags = ["room:a", "room:b"], ["", "x", "y"], [0, RETRY, NO_ECHO]
    bob = server.user("bob")
    readers = {tag: server.user(f"reader-{tag or 'all'}") for tag in tags}
    for tag, reader in readers.items():
        for topic in topics:
            reader.subscribe(topic, tag or "*")
    bob.subscribe("room:a")
    sent: list[tuple[str, str, int, bytes]] = []
    pieces: list[bytes] = []
    for id in range(3_000):
        if not sent or chance.random() < 0.1:
            topic, tag, flag = map(chance.choice, (topics, tags, flags))
            if chance.random() < 0.2:
                pieces.append(struct.pack(">IBBH", 4, FrameType.PING, 0, 9))
        body = chance.randbytes(chance.choice([0, 1, 64, 64, 64, 700]))
        sent.append((topic, tag, flag, body))
        pieces.append(encode_message(topic, "bob", body, tag=tag, flags=flag, id=id))
    stream, at = b"".join(pieces), 0
    while at < len(stream):
        size = chance.choice([1, 100, 5_000, 50_000, 200_000])
        bob.send(stream[at : at + size])
        at += size

    def arrived(reader: Peer, wanted: list[int]) -> None:
        for id in wanted:
            topic, tag, flag, body = sent[id]
            expected = encode_message(topic, "bob", body, tag=tag, flags=flag & ~RETRY, id=id)
            frame = whole(reader)
            assert frame[:16] + bytes(8) + frame[24:] == expected
            assert frame[16:24] != bytes(8)
        reader.ping()

    for tag, reader in readers.items():
        arrived(reader, [id for id, one in enumerate(sent) if tag in ("", one[1])])
    echoed = [id for id, one in enumerate(sent) if one[0] == "room:a" and not one[2] & NO_ECHO]
    ids = []
    while len(ids) < len(echoed):
        frame = bob.receive()
        assert frame is not None
        if frame[0] == FrameType.MESSAGE:
            ids.append(int.from_bytes(frame[3][16:24]))
    assert ids == echoed


@pytest.mark.parametrize(
    ("expression", "received"),
    [
        ("*", ["", "a", "b", "ab", "ä"]),
        ("a", ["a"]),
        ("a||b", ["a", "b"]),
        ("ab", ["ab"]),
        ("ä||zzz", ["ä"]),
        ("nothing", []),
    ],
)
def test_a_subscriber_gets_the_tags_it_asked_for(
    server: RunningServer, expression: str, received: list[str]
) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    alice.subscribe("room:tags", expression)
    alice.subscribe("room:end")
    for tag in ["", "a", "b", "ab", "ä"]:
        bob.publish("room:tags", "bob", tag=tag)
    bob.publish("room:end", "bob")
    got = []
    while (message := decode_message(whole(alice))).topic != "room:end":
        got.append(message.tag)
    assert got == received


def test_a_second_subscribe_replaces_the_tags(server: RunningServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    alice.subscribe("room:tags", "a")
    alice.subscribe("room:tags", "b")
    for tag in ("a", "b"):
        bob.publish("room:tags", "bob", tag=tag)
    assert decode_message(whole(alice)).tag == "b"


def test_after_unsubscribe_nothing_comes(server: RunningServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    alice.subscribe("room:a")
    alice.send(encode_frame(FrameType.UNSUBSCRIBE, Unsubscribe("room:a"), JSON, 4))
    assert json.loads(alice.expect(FrameType.UNSUBSCRIBED))["topic"] == "room:a"
    bob.publish("room:a", "bob")
    bob.ping()
    alice.ping()


def test_two_users_talk_in_private(server: RunningServer) -> None:
    alice, bob, eve = (server.user(name) for name in ("alice", "bob", "eve"))
    for peer in (alice, bob):
        peer.subscribe("dm:alice:bob")
    alice.publish("dm:alice:bob", "alice", b"psst")
    assert decode_message(whole(bob)).body == b"psst"
    eve.publish("dm:alice:bob", "eve")
    assert json.loads(eve.expect(FrameType.ERROR))["code"] == 403


def test_presence_and_members_are_told(server: RunningServer) -> None:
    alice = server.user("alice", "phone")
    server.user("alice", "desk")
    server.user("bob").subscribe("room:who")
    alice.subscribe("room:who")
    presence = call(alice, "presence", {"users": ["alice", "nobody"]})
    assert presence["alice"]["online"]
    assert sorted(presence["alice"]["devices"]) == ["desk", "phone"]
    assert not presence["nobody"]["online"]
    assert sorted(call(alice, "members", {"topic": "room:who"})) == ["alice", "bob"]


def test_the_same_device_takes_over(server: RunningServer) -> None:
    first = server.user("alice", "phone")
    second = server.user("alice", "phone")
    assert json.loads(first.expect(FrameType.GOAWAY))["code"] == 4009
    assert first.receive() is None
    second.ping()


def test_a_hook_sees_its_topics_and_no_others(start_server: Callable[..., RunningServer]) -> None:
    seen: list[str] = []

    def prepare(server: Server) -> None:
        @server.on_publish("room:moderated-*")
        async def moderate(batch: list[Any]) -> None:
            for publication in batch:
                seen.append(publication.message.topic)
                if b"bad" in publication.message.body:
                    publication.refuse(1451, "mind your words")

    running = start_server(prepare, threads=1)
    alice, bob = running.user("alice"), running.user("bob")
    for topic in ("room:free", "room:moderated-1"):
        alice.subscribe(topic)
    bodies = [b"good" if i % 3 else b"bad" for i in range(300)]
    bob.send(*(encode_message("room:moderated-1", "bob", b, id=i) for i, b in enumerate(bodies)))
    bob.publish("room:free", "bob", b"bad")
    assert sum(decode_message(whole(alice)).body == b"good" for _ in range(201)) == 200
    refused = [json.loads(bob.expect(FrameType.ERROR)) for _ in range(100)]
    assert {error["code"] for error in refused} == {1451}
    assert sorted(error.get("id", 0) for error in refused) == list(range(0, 300, 3))
    assert set(seen) == {"room:moderated-1"}


def test_a_hook_keeps_the_order(start_server: Callable[..., RunningServer]) -> None:
    def prepare(server: Server) -> None:
        @server.on_publish("room:*")
        async def slow(batch: list[Any]) -> None:
            await asyncio.sleep(random.random() / 100)

    running = start_server(prepare, threads=2)
    alice, bob = running.user("alice"), running.user("bob")
    alice.subscribe("room:a")
    bob.send(*(encode_message("room:a", "bob", b"", id=i) for i in range(200)))
    assert [decode_message(whole(alice)).id for _ in range(200)] == list(range(200))


def test_a_hook_that_fails_refuses(start_server: Callable[..., RunningServer]) -> None:
    def prepare(server: Server) -> None:
        @server.on_publish("room:*")
        async def broken(batch: list[Any]) -> None:
            raise RuntimeError("a bug of the application")

    bob = start_server(prepare, threads=0).user("bob")
    bob.publish("room:a", "bob", id=5)
    error = json.loads(bob.expect(FrameType.ERROR))
    assert (error["code"], error["id"]) == (500, 5)


def test_hooks_decide_on_logins_subscriptions_and_calls(
    start_server: Callable[..., RunningServer],
) -> None:
    closed: list[tuple[str, int]] = []

    def prepare(server: Server) -> None:
        @server.on_connect
        async def no_eve(login: Any) -> None:
            if login.user == "eve":
                raise ImError(403, "not you")

        @server.on_subscribe("room:secret*")
        async def members_only(session: Any, topic: str, tags: str) -> None:
            raise ImError(403, "members only")

        @server.on_call("add")
        async def add(session: Any, params: Any) -> Any:
            return {"sum": params["a"] + params["b"], "for": session.user}

        @server.on_close
        async def note(session: Any, code: int) -> None:
            closed.append((session.user, code))

    running = start_server(prepare, threads=1)
    eve = running.peer()
    eve.send(encode_frame(FrameType.HELLO, Hello(
        version=1, user="eve"), JSON, 1))  # fmt: skip
    assert json.loads(eve.expect(FrameType.ERROR))["code"] == 403
    assert json.loads(eve.expect(FrameType.GOAWAY))["code"] == 4003
    bob = running.user("bob")
    bob.send(encode_frame(FrameType.SUBSCRIBE, Subscribe(
        topic="room:secret1"), JSON, 2))  # fmt: skip
    assert json.loads(bob.expect(FrameType.ERROR))["code"] == 403
    assert call(bob, "add", {"a": 1, "b": 2}) == {"sum": 3, "for": "bob"}
    bob.close()
    for _ in range(500):
        if closed:
            break
        time.sleep(0.01)
    assert closed == [("bob", 0)]


def test_a_revoked_right_ends_on_the_live_connection(server: RunningServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    for peer in (alice, bob):
        peer.subscribe("room:r")
    bob.publish("room:r", "bob", b"before")
    whole(alice)
    whole(bob)
    server.run(lambda: server.server.revoke("bob", "room:r"))
    gone = json.loads(bob.expect(FrameType.UNSUBSCRIBED))
    assert (gone["topic"], gone["code"]) == ("room:r", 403)
    bob.publish("room:r", "bob", b"after")
    assert json.loads(bob.expect(FrameType.ERROR))["code"] == 403
    alice.publish("room:r", "alice", b"still")
    assert decode_message(whole(alice)).body == b"still"
    bob.ping()


def test_a_revocation_holds_when_revoke_returns(server: RunningServer) -> None:
    alice = server.user("alice")
    for i in range(10):
        topic = f"room:now{i}"
        bob = server.user("bob", f"device{i}")
        alice.subscribe(topic)
        bob.publish(topic, "bob", b"before")
        whole(alice)

        async def revoke_and_publish(bob: Peer = bob, topic: str = topic) -> None:
            await server.server.revoke("bob", topic)
            bob.publish(topic, "bob", b"after")

        server.run(revoke_and_publish)
        assert json.loads(bob.expect(FrameType.ERROR))["code"] == 403
    alice.ping()


def test_a_disconnected_user_is_told_and_gone(server: RunningServer) -> None:
    bob = server.user("bob")
    server.run(lambda: server.server.disconnect("bob", 4010))
    assert json.loads(bob.expect(FrameType.GOAWAY))["code"] == 4010
    assert bob.receive() is None


def test_the_application_publishes_and_broadcasts(server: RunningServer) -> None:
    alice, bob = server.user("alice"), server.user("bob")
    alice.subscribe("room:news")
    server.run(lambda: server.server.publish("room:news", b"from the application"))
    message = decode_message(whole(alice))
    assert (message.sender, message.body) == ("$server", b"from the application")

    async def broadcast() -> None:
        await server.server.broadcast(b"to everybody")

    server.run(broadcast)
    assert [decode_message(whole(peer)).body for peer in (alice, bob)] == [b"to everybody"] * 2


def test_memory_returns_when_everybody_has_gone(server: RunningServer) -> None:
    def settled(name: str, value: int) -> bool:
        for _ in range(500):
            if server.stats()[name] == value:
                return True
            time.sleep(0.01)
        return False

    server.forget_peers()
    assert settled("connections", 0)
    peers = [server.user(f"user{i}") for i in range(50)]
    for peer in peers:
        peer.subscribe("room:memory", "a||b")
    for i, peer in enumerate(peers):
        peer.publish("room:memory", f"user{i}", b"x" * 3000, tag="a")
        peer.send(b"\x00\x00\x40")  # half a frame
    server.forget_peers()
    for gauge in ("connections", "messages", "topics", "rights"):
        assert settled(gauge, 0), (gauge, server.stats()[gauge])
