"""Messages that are kept, end to end: a real server, its store on a disk, bare sockets.

What survives the death of the process is in test_torture; the policy of redelivery in
test_redelivery; the store alone in test_timeline.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from harness import JSON, Peer, RunningServer, dev_config

from imserver import Server, gateway_tasks
from imserver.config import Delivery, Limits, Namespace
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.hooks import Publication
from imserver.model import Message
from imserver.protocol import (
    DURABLE,
    HISTORY,
    NO_ECHO,
    REDELIVERED,
    RETRY,
    Call,
    FrameType,
    Position,
    Receipt,
    Subscribe,
    Subscribed,
    Unsubscribe,
    Unsubscribed,
    decode_body,
    decode_message,
    decode_receipt,
    encode_bare,
    encode_frame,
    encode_message,
    encode_position,
)

ROOM = "room:lobby"
Start = Callable[..., RunningServer]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Start]:
    """serve(prepare=None, **config): a server with a store, in the same directory every time."""
    started: list[RunningServer] = []

    def start(prepare: Callable[[Server], None] | None = None, **sections: Any) -> RunningServer:
        for running in started:
            running.stop()
        started[:] = [RunningServer(dev_config(data_dir=str(tmp_path), **sections), prepare)]
        return started[0]

    yield start
    for running in started:
        running.stop()


class Reader:
    """What a peer reads, sorted: messages in one list, everything else as it is asked for."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.messages: list[Message] = []
        self.others: list[tuple[int, bytes]] = []

    def read(self) -> None:
        frame = self.peer.receive()
        assert frame is not None, "the connection ended"
        type, flags, request, body = frame
        if type == FrameType.MESSAGE:
            whole = (len(body) + 4).to_bytes(4) + bytes((type, flags)) + request.to_bytes(2) + body
            self.messages.append(decode_message(whole))
        elif type == FrameType.PING:
            self.peer.send(encode_bare(FrameType.PONG, request))
        elif type != FrameType.SUBSCRIBED or request:
            self.others.append((type, body))

    def expect(self, type: FrameType) -> Any:
        while not any(kind == type for kind, _ in self.others):
            self.read()
        at = next(i for i, (kind, _) in enumerate(self.others) if kind == type)
        _, body = self.others.pop(at)
        return decode_receipt(body) if type == FrameType.RECEIPT else decode_body(type, JSON, body)

    def take(self, count: int) -> list[Message]:
        while len(self.messages) < count:
            self.read()
        taken, self.messages = self.messages[:count], self.messages[count:]
        return taken

    def subscribe(self, topic: str = ROOM, **fields: Any) -> Subscribed:
        body = Subscribe(topic, **fields)
        self.peer.send(encode_frame(FrameType.SUBSCRIBE, body, JSON, 2))
        answer = self.expect(FrameType.SUBSCRIBED)
        assert isinstance(answer, Subscribed)
        return answer

    def call(self, method: str, params: Any) -> Any:
        self.peer.send(encode_frame(FrameType.CALL, Call(method, params), JSON, 5))
        return self.expect(FrameType.RESULT).result

    def ack(self, seq: int, topic: str = ROOM, type: FrameType = FrameType.ACK) -> None:
        self.peer.send(encode_position(type, Position(seq, topic)))

    def is_still(self) -> bool:
        """Nothing but what was taken has come, by the time that a PING is answered."""
        self.peer.send(encode_bare(FrameType.PING, 77))
        self.expect_pong()
        return not self.messages

    def expect_pong(self) -> None:
        while not any(kind == FrameType.PONG for kind, _ in self.others):
            self.read()
        self.others = [other for other in self.others if other[0] != FrameType.PONG]


def reader(server: RunningServer, name: str, device: str = "test") -> Reader:
    return Reader(server.user(name, device))


def keep(
    author: Reader, sender: str, count: int = 1, first_id: int = 1, topic: str = ROOM, **fields: Any
) -> list[Receipt]:
    """Publish so many with DURABLE, and wait for their receipts."""
    flags = DURABLE | fields.pop("flags", 0)
    body = fields.pop("body", b"x")
    author.peer.send(
        *(
            encode_message(topic, sender, body, id=first_id + i, flags=flags, **fields)
            for i in range(count)
        )
    )
    return [author.expect(FrameType.RECEIPT) for _ in range(count)]


def seqs(messages: list[Message]) -> list[int]:
    return [message.seq for message in messages]


# Publishing


def test_a_kept_message_has_a_receipt_and_a_place(serve: Start, threads: int) -> None:
    server = serve(threads=threads)
    bob, ann = reader(server, "bob"), reader(server, "ann")
    bob.peer.subscribe(ROOM)
    receipts = keep(ann, "ann", 100)
    assert [receipt.id for receipt in receipts] == list(range(1, 101))
    assert [receipt.seq for receipt in receipts] == list(range(1, 101))
    messages = bob.take(100)
    assert [(one.id, one.seq, one.time_ms) for one in messages] == [tuple(r) for r in receipts]
    assert {one.flags for one in messages} == {DURABLE}


def test_a_repeat_gets_the_first_receipt_and_goes_to_nobody(serve: Start) -> None:
    server = serve()
    ann = reader(server, "ann")
    first = keep(ann, "ann", body=b"hello")
    for is_restarted in (False, True):
        server = serve() if is_restarted else server
        ann, bob = reader(server, "ann"), reader(server, "bob")
        bob.peer.subscribe(ROOM)
        assert keep(ann, "ann", body=b"hello", flags=RETRY) == first
        ann.peer.publish(ROOM, "ann", b"other", id=1, flags=DURABLE | RETRY)
        error = ann.expect(FrameType.ERROR)
        assert (error.code, error.id, error.topic) == (ErrorCode.CONFLICT, 1, ROOM)
        assert bob.is_still()
    phone = reader(server, "ann", device="phone")
    assert keep(phone, "ann", body=b"other", flags=RETRY)[0].seq == 2, "another device, another id"


def test_what_a_namespace_never_keeps_is_refused(serve: Start, threads: int) -> None:
    server = serve(
        threads=threads, namespaces=(Namespace(prefix="x", publish="anyone", subscribe="anyone"),)
    )
    ann = reader(server, "ann")
    ann.peer.publish("x:1", "ann", id=5, flags=DURABLE)
    error = ann.expect(FrameType.ERROR)
    assert (error.code, error.id, error.topic) == (ErrorCode.NOT_DURABLE, 5, "x:1")
    ann.peer.send(encode_frame(FrameType.SUBSCRIBE, Subscribe("x:1", durable=True), JSON, 3))
    assert ann.expect(FrameType.ERROR).code == ErrorCode.NOT_DURABLE


def test_without_a_store_nothing_is_kept(start_server: Start) -> None:
    server = start_server()
    ann = reader(server, "ann")
    ann.peer.publish(ROOM, "ann", id=5, flags=DURABLE)
    assert ann.expect(FrameType.ERROR).code == ErrorCode.NOT_DURABLE
    for fields in ({"durable": True}, {"after": 0}):
        ann.peer.send(encode_frame(FrameType.SUBSCRIBE, Subscribe(ROOM, **fields), JSON, 3))
        assert ann.expect(FrameType.ERROR).code == ErrorCode.NOT_DURABLE
    with pytest.raises(ImError, match="507"):
        server.run(lambda: server.server.publish(ROOM, "x", durable=True))
    with pytest.raises(ImError, match="507"):
        server.run(lambda: server.server.join("group:1", ["ann"]))


def test_an_inbox_keeps_what_does_not_ask_for_it(serve: Start) -> None:
    server = serve()
    receipt = server.run(lambda: server.server.publish("user:bob", "for later"))
    assert receipt.seq == 1
    bob = reader(server, "bob")
    server.run(lambda: server.server.publish("user:bob", "now"))
    messages = bob.take(2)
    assert [(one.seq, one.value()) for one in messages] == [(1, "for later"), (2, "now")]
    assert all(one.flags & DURABLE for one in messages)
    bob.ack(1, "user:bob")
    bob.peer.ping()
    tablet = reader(server, "bob", device="tablet")
    keep(tablet, "bob")  # by then it is subscribed
    assert tablet.take(1)[0].seq in (1, 2), "what no device has acknowledged is new to this one"


def test_the_program_has_a_receipt_too(serve: Start, threads: int) -> None:
    server = serve(threads=threads)
    ann = reader(server, "ann")
    ann.peer.subscribe(ROOM)
    keep(ann, "ann")
    receipt = server.run(lambda: server.server.publish(ROOM, "x", durable=True, id=9))
    assert (receipt.id, receipt.seq) == (9, 2)
    assert seqs(ann.take(2)) == [1, 2]


def test_a_hook_decides_before_the_disk(serve: Start) -> None:
    def prepare(server: Server) -> None:
        @server.on_publish("room:*")
        async def judge(batch: list[Publication]) -> None:
            for publication in batch:
                if publication.message.body == b"bad":
                    publication.refuse()

    server = serve(prepare)
    ann = reader(server, "ann")
    ann.peer.publish(ROOM, "ann", b"bad", id=1, flags=DURABLE)
    ann.peer.publish(ROOM, "ann", b"good", id=2, flags=DURABLE)
    assert ann.expect(FrameType.ERROR).id == 1
    receipt = ann.expect(FrameType.RECEIPT)
    assert (receipt.id, receipt.seq) == (2, 1)


def test_no_echo_is_nobody_elses_loss(serve: Start, threads: int) -> None:
    server = serve(threads=threads)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    for one in (ann, bob):
        one.subscribe(durable=True)
    keep(ann, "ann", flags=NO_ECHO)
    keep(bob, "bob")
    assert seqs(bob.take(2)) == [1, 2]
    assert seqs(ann.take(1)) == [2]


# Reading


def test_who_comes_late_gets_what_was_kept_then_what_comes(serve: Start, threads: int) -> None:
    server = serve(threads=threads)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    keep(ann, "ann", 600)
    told = bob.subscribe(after=100)
    assert (told.head, told.cursor, told.first, told.durable) == (600, 100, 1, False)
    past = bob.take(500)
    assert seqs(past) == list(range(101, 601))
    assert {one.flags for one in past} == {DURABLE | HISTORY}
    keep(ann, "ann", 10, first_id=700)
    assert seqs(bob.take(10)) == list(range(601, 611))


def test_a_durable_subscription_goes_on_where_it_was_acknowledged(
    serve: Start, threads: int
) -> None:
    server = serve(threads=threads)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    told = bob.subscribe(durable=True)
    assert told.durable
    keep(ann, "ann", 50)
    assert seqs(bob.take(50)) == list(range(1, 51))
    bob.ack(20)
    bob.peer.ping()
    bob.peer.close()
    keep(ann, "ann", 10, first_id=100)
    for is_restarted in (False, True):
        server = serve(threads=threads) if is_restarted else server
        bob = reader(server, "bob")
        assert bob.subscribe(durable=True).cursor == 20
        assert seqs(bob.take(40)) == list(range(21, 61))
        bob.peer.close()
    tablet = reader(server, "bob", device="tablet")
    assert tablet.subscribe(durable=True).cursor == 60, "a device has its own place"


def test_a_window_is_kept_and_the_change_to_live_loses_nothing(serve: Start, threads: int) -> None:
    server = serve(threads=threads, limits=Limits(window=8))
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    got: list[int] = []
    for burst in range(30):
        keep(ann, "ann", burst % 13 + 1, first_id=1 + 100 * burst)
        while bob.messages or not bob.is_still():
            assert len(bob.messages) <= 8
            got += seqs(bob.take(len(bob.messages)))
            if burst % 3:
                bob.ack(got[-1])
    total = sum(burst % 13 + 1 for burst in range(30))
    while len(got) < total:
        if got:
            bob.ack(got[-1])
        got += seqs(bob.take(1))
    assert got == list(range(1, total + 1))


def test_a_filter_passes_over_what_it_does_not_want(serve: Start) -> None:
    server = serve(limits=Limits(window=4))
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True, tags="news")
    for number in range(60):
        keep(ann, "ann", first_id=1 + number, tag="news" if number % 20 == 0 else "talk")
    assert seqs(bob.take(3)) == [1, 21, 41]
    bob.ack(41)
    keep(ann, "ann", first_id=100, tag="news")
    assert seqs(bob.take(1)) == [61]


def test_what_is_not_acknowledged_comes_again_and_ends_as_a_dead_letter(serve: Start) -> None:
    server = serve(delivery=Delivery(ack_wait_ms=200, backoff_max_ms=400, attempts=3))
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    keep(ann, "ann", 2)
    assert [(one.seq, one.attempt) for one in bob.take(2)] == [(1, 0), (2, 0)]
    again = bob.take(4)
    assert [(one.seq, one.attempt) for one in again] == [(1, 1), (2, 1), (1, 2), (2, 2)]
    assert all(one.flags & REDELIVERED for one in again)
    store = server.server._store
    assert store is not None
    until = time.monotonic() + 20
    while len(letters := server.run(lambda: store.dead())) < 2:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [(one.seq, one.attempts, one.reason) for one in letters] == [
        (1, 3, "unacknowledged"),
        (2, 3, "unacknowledged"),
    ]
    keep(ann, "ann", first_id=10)
    assert seqs(bob.take(1)) == [3], "the cursor has moved on"


def test_a_nack_sets_one_aside_also_past_a_restart(serve: Start) -> None:
    settings = Delivery(ack_wait_ms=100, backoff_max_ms=200, attempts=50)
    server = serve(delivery=settings)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    keep(ann, "ann", 3)
    assert seqs(bob.take(3)) == [1, 2, 3]
    bob.ack(2, type=FrameType.NACK)
    bob.ack(3)
    assert (again := bob.take(1)[0]).seq == 2
    assert again.attempt == 1
    assert again.flags & REDELIVERED
    server = serve(delivery=settings)
    bob = reader(server, "bob")
    assert bob.subscribe(durable=True).cursor == 3
    assert (again := bob.take(1)[0]).seq == 2
    assert again.attempt >= 2
    bob.ack(2)
    store = server.server._store
    assert store is not None
    until = time.monotonic() + 20
    while server.run(lambda: store.aside("bob", "test", ROOM)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_who_cannot_refuse_a_message_is_closed_and_gets_it_again(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    keep(ann, "ann", 2)
    bob.take(2)
    store = server.server._store
    assert store is not None

    def fail() -> None:
        raise apsw.FullError("database or disk is full")

    store._writer._flush = fail  # type: ignore[method-assign]
    bob.ack(1, type=FrameType.NACK)
    bob.ack(2)  # is not taken any more
    assert bob.expect(FrameType.GOAWAY).code == CloseCode.OVERLOADED
    server = serve()
    bob = reader(server, "bob")
    bob.subscribe(durable=True)
    assert seqs(bob.take(2)) == [1, 2]


def test_an_ack_of_what_was_never_sent_is_an_error(serve: Start) -> None:
    server = serve()
    ann = reader(server, "ann")
    ann.ack(1)
    assert ann.expect(FrameType.ERROR).code == ErrorCode.NOT_FOUND
    ann.subscribe(durable=True)
    keep(ann, "ann")
    ann.take(1)
    for type in (FrameType.ACK, FrameType.NACK):
        ann.ack(2, type=type)
        assert ann.expect(FrameType.ERROR).code == ErrorCode.BAD_FRAME
    ann.ack(1)
    ann.ack(1, type=FrameType.NACK)
    assert ann.expect(FrameType.ERROR).code == ErrorCode.NOT_FOUND


def test_what_retention_took_is_told_when_a_reader_comes_back(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    bob.peer.close()
    for number in range(1, 11):
        keep(ann, "ann", first_id=number)
    store = server.server._store
    assert store is not None
    server.run(lambda: store.trim(ROOM, 5))
    bob = reader(server, "bob")
    told = bob.subscribe(durable=True)
    assert (told.cursor, told.first, told.missed, told.head) == (0, 5, 4, 10)
    assert seqs(bob.take(6)) == [5, 6, 7, 8, 9, 10]


def test_an_old_epoch_starts_anew(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    keep(ann, "ann", 5)
    epoch = bob.subscribe(after=5).epoch
    assert bob.subscribe(after=3, epoch=epoch).cursor == 3
    told = bob.subscribe(after=4, epoch="123")
    assert (told.cursor, told.epoch) == (0, epoch)


# Members


def test_a_member_reads_and_writes_from_now_on(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    ann.peer.publish("group:1", "ann", id=1, flags=DURABLE)
    assert ann.expect(FrameType.ERROR).code == ErrorCode.FORBIDDEN
    server.run(lambda: server.server.join("group:1", ["ann", "bob", "eve"]))
    assert keep(ann, "ann", first_id=2, topic="group:1")[0].seq == 1
    assert seqs(bob.take(1)) == [1]
    eve = reader(server, "eve")
    assert keep(eve, "eve", topic="group:1")[0].seq == 2, "judged when it is known who is a member"
    server.run(lambda: server.server.leave("group:1", ["bob"]))
    left = bob.expect(FrameType.UNSUBSCRIBED)
    assert left == Unsubscribed("group:1", ErrorCode.FORBIDDEN)
    keep(ann, "ann", first_id=3, topic="group:1")
    assert seqs(bob.messages) in ([], [2])
    bob.peer.publish("group:1", "bob", id=1)
    assert bob.expect(FrameType.ERROR).code == ErrorCode.FORBIDDEN


def test_a_new_member_can_read_what_was_said_before_and_has_it_not_unread(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    server.run(lambda: server.server.join("group:1", ["ann"]))
    keep(ann, "ann", 3, topic="group:1")
    server.run(lambda: server.server.join("group:1", ["bob"]))
    assert bob.is_still(), "nobody sends it by itself"
    history = bob.call("history", {"topic": "group:1", "after": 0})
    assert [message["seq"] for message in history["messages"]] == [1, 2, 3]
    assert bob.call("unread", {"topics": ["group:1"]})["group:1"]["unread"] == 0
    keep(ann, "ann", first_id=4, topic="group:1")
    assert bob.call("unread", {"topics": ["group:1"]})["group:1"]["unread"] == 1
    bob.take(1)
    bob.subscribe("group:1", after=0)
    assert seqs(bob.take(4)) == [1, 2, 3, 4]


def test_a_member_who_leaves_by_a_call_is_unsubscribed_everywhere(serve: Start) -> None:
    server = serve()
    ann, phone, tab = reader(server, "ann"), reader(server, "bob"), reader(server, "bob", "tab")
    keep(ann, "ann", topic="dm:ann:bob")
    assert seqs(phone.take(1)) == seqs(tab.take(1)) == [1]
    assert phone.call("leave", {"topic": "dm:ann:bob"}) == {"left": True}
    left = Unsubscribed("dm:ann:bob", ErrorCode.FORBIDDEN)
    assert phone.expect(FrameType.UNSUBSCRIBED) == tab.expect(FrameType.UNSUBSCRIBED) == left
    keep(ann, "ann", first_id=2, topic="dm:ann:bob")
    assert phone.is_still()
    assert tab.is_still()
    again = reader(server, "bob", "watch")
    assert again.is_still(), "nor at the next login"
    assert phone.call("leave", {"topic": "dm:ann:bob"}) == {"left": False}


def test_a_member_hears_which_topics_the_connection_has_no_room_for(serve: Start) -> None:
    server = serve(limits=Limits(subscriptions=3))
    for number in range(5):
        server.run(lambda topic=f"group:{number}": server.server.join(topic, ["bob"]))
    bob = reader(server, "bob")
    told = [bob.expect(FrameType.ERROR) for _ in range(3)]
    assert {(one.code, one.id) for one in told} == {(ErrorCode.TOO_MANY_SUBSCRIPTIONS, 0)}
    assert [one.topic for one in told] == ["group:2", "group:3", "group:4"]
    server.run(lambda: server.server.join("group:5", ["bob"]))
    assert bob.expect(FrameType.ERROR).topic == "group:5", "also when it becomes one"
    bob.peer.send(encode_frame(FrameType.UNSUBSCRIBE, Unsubscribe("group:0"), JSON, 3))
    bob.expect(FrameType.UNSUBSCRIBED)
    assert bob.subscribe("group:4", durable=True).durable, "there is room for one that it chooses"
    assert [kind for kind, _ in bob.others] == []


def test_memberships_that_cannot_be_read_are_told(serve: Start) -> None:
    server = serve()
    store = server.server._store
    assert store is not None

    async def stopped(user: str) -> list[str]:
        raise ImError(ErrorCode.NOT_DURABLE, "the store has stopped: EIO")

    store.memberships = stopped  # type: ignore[method-assign]
    error = reader(server, "bob").expect(FrameType.ERROR)
    assert (error.code, error.topic) == (ErrorCode.NOT_DURABLE, "")
    assert error.message.endswith("the store has stopped: EIO")


def test_who_cannot_be_subscribed_by_itself_for_want_of_room_comes_again(
    serve: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    ann = reader(server, "ann")
    assert ann.is_still()
    monkeypatch.setattr(gateway_tasks, "WAITING_MAX", 0)
    server.run(lambda: server.server.join("group:1", ["ann"]))
    assert ann.expect(FrameType.GOAWAY).code == CloseCode.OVERLOADED
    bob = reader(server, "bob")
    assert bob.expect(FrameType.GOAWAY).code == CloseCode.OVERLOADED


def test_a_first_message_finds_the_other_of_the_two(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    keep(ann, "ann", topic="dm:ann:bob", body=b"hi")
    assert [one.body for one in bob.take(1)] == [b"hi"]
    server = serve()
    bob = reader(server, "bob")
    assert [one.body for one in bob.take(1)] == [b"hi"], "it was not acknowledged"


# Faults


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


def test_a_slow_disk_holds_up_nothing_but_receipts(serve: Start, threads: int) -> None:
    server = serve(threads=threads)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.peer.subscribe(ROOM)
    keep(ann, "ann")
    bob.take(1)
    store = server.server._store
    assert store is not None
    flush, slow = store._writer._flush, [True]

    def wait() -> None:
        while slow[0]:
            time.sleep(0.01)
        flush()

    store._writer._flush = wait  # type: ignore[method-assign]
    ann.peer.publish(ROOM, "ann", b"kept", id=2, flags=DURABLE)
    ann.peer.publish(ROOM, "ann", b"live", id=3)
    assert [one.body for one in bob.take(1)] == [b"live"]
    ann.peer.ping()
    slow[0] = False
    assert ann.expect(FrameType.RECEIPT).seq == 2
    assert [one.body for one in bob.take(1)] == [b"kept"]


def test_a_full_journal_holds_publishers_and_loses_nothing(serve: Start) -> None:
    server = serve(limits=Limits(pool_bytes=16_777_216))
    ann = reader(server, "ann")
    keep(ann, "ann")
    store = server.server._store
    assert store is not None
    flush, slow = store._writer._flush, [True]

    def wait() -> None:
        while slow[0]:
            time.sleep(0.01)
        flush()

    store._writer._flush = wait  # type: ignore[method-assign]
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
    slow[0] = False
    ann.peer.socket.settimeout(20)
    ann.peer.send(data[sent:])
    assert [ann.expect(FrameType.RECEIPT).seq for _ in frames] == list(range(2, 402))


# Subscriptions that end and begin again


def test_what_was_acknowledged_just_before_an_unsubscribe_does_not_come_again(
    serve: Start, threads: int
) -> None:
    server = serve(threads=threads)
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    keep(ann, "ann", 10)
    bob.take(10)
    bob.ack(7)
    bob.peer.send(encode_frame(FrameType.UNSUBSCRIBE, Unsubscribe(ROOM), JSON, 3))
    bob.expect(FrameType.UNSUBSCRIBED)
    assert bob.subscribe(durable=True).cursor == 7
    assert seqs(bob.take(3)) == [8, 9, 10]
    bob.ack(9)
    assert bob.subscribe(durable=True, tags="news").cursor == 9, "replaced, not ended"
    keep(ann, "ann", first_id=20, tag="news")
    assert seqs(bob.take(1)) == [11]


def test_who_gathers_nearly_a_window_before_an_ack_is_not_stopped(serve: Start) -> None:
    server = serve(limits=Limits(window=10))
    ann, bob = reader(server, "ann"), reader(server, "bob")
    bob.subscribe(durable=True)
    got: list[int] = []
    for burst in range(12):
        keep(ann, "ann", 7, first_id=1 + 10 * burst)
        while len(got) < 7 * (burst + 1):
            got += seqs(bob.take(1))
            if len(got) % 9 == 0:
                bob.ack(got[-1])
    assert got == list(range(1, 85))
    assert not server.stats()["redelivered"]


def test_a_dm_that_the_program_begins_has_its_members(serve: Start) -> None:
    server = serve()
    bob = reader(server, "bob")
    server.run(lambda: server.server.publish("dm:ann:bob", "hello", durable=True))
    assert [one.value() for one in bob.take(1)] == ["hello"]
    with pytest.raises(ImError, match="422"):
        server.run(lambda: server.server.publish("dm:bob:ann", "hello", durable=True))
    with pytest.raises(TypeError):
        server.run(lambda: server.server.join("group:1", "ann"))


def test_who_joins_again_hears_nothing_of_the_time_between(serve: Start) -> None:
    server = serve()
    ann, bob = reader(server, "ann"), reader(server, "bob")
    server.run(lambda: server.server.join("group:1", ["ann", "bob"]))
    keep(ann, "ann", topic="group:1")
    assert seqs(bob.take(1)) == [1]
    bob.ack(1, "group:1")
    bob.peer.ping()
    server.run(lambda: server.server.leave("group:1", ["bob"]))
    bob.expect(FrameType.UNSUBSCRIBED)
    keep(ann, "ann", first_id=2, topic="group:1")
    server.run(lambda: server.server.join("group:1", ["bob"]))
    keep(bob, "bob", first_id=1, topic="group:1")
    assert seqs(bob.take(1)) == [3]


def test_dev_opens_rooms_and_leaves_the_rest_of_their_policy(serve: Start) -> None:
    server = serve(namespaces=(Namespace(prefix="room", durable="always"),))
    ann = reader(server, "ann")
    ann.peer.publish(ROOM, "ann", id=1)
    assert ann.expect(FrameType.RECEIPT).seq == 1
