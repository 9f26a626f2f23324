"""Messages that are kept, end to end: a real server, its store on a disk, bare sockets.

What survives the death of the process is in test_torture, faults of the disk in
test_kept_faults, members in test_kept_members; the policy of redelivery in test_redelivery; the
store alone in test_timeline.
"""

import time

import apsw
import pytest
from harness import JSON
from kept import ROOM, Start, keep, reader, seqs

from imserver import Server
from imserver.config import Delivery, Limits, Namespace
from imserver.errors import CloseCode, ErrorCode, ImError
from imserver.hooks import Publication
from imserver.protocol import (
    DURABLE,
    HISTORY,
    NO_ECHO,
    REDELIVERED,
    RETRY,
    FrameType,
    Subscribe,
    Unsubscribe,
    encode_frame,
)

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


def test_dev_opens_rooms_and_leaves_the_rest_of_their_policy(serve: Start) -> None:
    server = serve(namespaces=(Namespace(prefix="room", durable="always"),))
    ann = reader(server, "ann")
    ann.peer.publish(ROOM, "ann", id=1)
    assert ann.expect(FrameType.RECEIPT).seq == 1
