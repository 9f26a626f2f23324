"""Stores that fail, are damaged, slow or full, seen by the clients of a real server."""

import threading
from pathlib import Path

import apsw
import pytest
from harness import RunningServer
from kept import ROOM, Start, keep, reader, seqs

from imserver.config import Limits
from imserver.errors import ErrorCode, ImError
from imserver.protocol import (
    DURABLE,
    FrameType,
    encode_message,
)


def test_a_disk_that_fails_ends_receipts_and_nothing_else(serve: Start, threads: int) -> None:
    server = serve(threads=threads)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.peer.subscribe(ROOM)
    keep(ann, "ann", 3)
    store = server.server._store
    assert store is not None
    assert not server.server.failure

    def fail() -> None:
        raise apsw.FullError("database or disk is full")

    store._writer._flush = fail  # type: ignore[method-assign]
    for number in range(10, 13):
        ann.peer.publish(ROOM, "ann", id=number, flags=DURABLE)
        while (error := ann.expect(FrameType.ERROR)).topic == "user:ann":
            pass  # an inbox that could not be subscribed any more
        assert (error.code, error.id, error.topic) == (ErrorCode.NOT_DURABLE, number, ROOM)
    assert "disk is full" in server.server.failure
    ann.peer.publish(ROOM, "ann", b"live")
    assert sorted(one.seq for one in bob.take(4)) == [0, 1, 2, 3]
    with pytest.raises(ImError, match="507"):
        server.run(lambda: server.server.publish(ROOM, "x", durable=True))
    server = serve(threads=threads)
    bob = reader(server, "bob")
    bob.subscribe(after=0)
    assert seqs(bob.take(3)) == [1, 2, 3]
    assert bob.is_still()


def test_a_flipped_bit_is_told_to_the_reader_and_its_neighbours_come(
    serve: Start, tmp_path: Path
) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    for number in range(1, 6):  # a commit each, with pages of its own
        keep(ann, "ann", first_id=number, body=b"body %d " % number * 2_000)
    bob.take(5)
    server.stop()
    (path,) = tmp_path.glob("*.db")
    data = bytearray(path.read_bytes())
    data[data.index(b"body 3 " * 100)] ^= 4
    path.write_bytes(data)
    server = serve()
    for fields in ({"after": 0}, {"durable": True}):
        bob = reader(server, "bob")
        bob.subscribe(**fields)
        error = bob.expect(FrameType.ERROR)
        assert (error.code, error.topic) == (ErrorCode.LOST, ROOM)
        assert seqs(bob.take(4)) == [1, 2, 4, 5]
        bob.peer.close()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    assert keep(ann, "ann", first_id=9)[0].seq == 6, "and it goes on"
    bob.subscribe(after=5)
    assert seqs(bob.take(1)) == [6]


def held_flush(server: RunningServer) -> threading.Event:
    """No flush of the store begins until it is set."""
    store, released = server.server._store, threading.Event()
    assert store is not None
    flush = store._writer._flush

    def wait() -> None:
        released.wait()
        flush()

    store._writer._flush = wait  # type: ignore[method-assign]
    return released


def test_a_slow_disk_holds_up_nothing_but_receipts(serve: Start, threads: int) -> None:
    server = serve(threads=threads)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.peer.subscribe(ROOM)
    keep(ann, "ann")
    bob.take(1)
    flush = held_flush(server)
    ann.peer.publish(ROOM, "ann", b"kept", id=2, flags=DURABLE)
    ann.peer.publish(ROOM, "ann", b"live", id=3)
    assert [one.body for one in bob.take(1)] == [b"live"]
    ann.peer.ping()
    flush.set()
    assert ann.expect(FrameType.RECEIPT).seq == 2
    assert [one.body for one in bob.take(1)] == [b"kept"]


def test_a_full_journal_holds_publishers_and_loses_nothing(serve: Start) -> None:
    server = serve(limits=Limits(pool_bytes=16_777_216))
    ann = reader(server, "ann")
    keep(ann, "ann")
    flush = held_flush(server)
    frames = [
        encode_message(ROOM, "ann", b"x" * 60_000, id=number, flags=DURABLE)
        for number in range(2, 402)  # 24 MB: more than half of the pool
    ]
    sent = 0
    ann.peer.socket.settimeout(1)
    data = b"".join(frames)
    try:
        while sent < len(data):
            sent += ann.peer.socket.send(data[sent : sent + 262_144])
    except TimeoutError:
        pass
    assert sent < len(data), "it is not read any more"
    assert server.stats()["store_waits"]
    flush.set()
    ann.peer.socket.settimeout(20)
    ann.peer.send(data[sent:])
    assert [ann.expect(FrameType.RECEIPT).seq for _ in frames] == list(range(2, 402))
